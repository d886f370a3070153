"""LoRA and prefixes in the folder format of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

`peft.PeftModel.from_pretrained` loads what `save` writes onto the transformers model, and `load` reads what PEFT saves.

* LoRA gives the same states in PEFT and in everlearn. PEFT supports whole linear layers only, so LoRA on parts of
  a fused query-key-value projection is written as one LoRA whose rank is the sum of theirs, and is read as such.
* A prefix gives the same keys and values in PEFT and in everlearn. But with a BERT-like backbone, PEFT also shifts
  the positions of the text by the length of the prefix, and everlearn does not. PEFT supports no prefix for other
  backbones (DistilBERT, ViTs).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as to_bytes
from torch import nn

from everlearn.backbones.tensors import same_shapes
from everlearn.errors import DataError, EverlearnError, EverlearnWarning, one_line, printable
from everlearn.peft.delta import Delta, Site
from everlearn.peft.folder import CONFIG, WEIGHTS, read_config, read_weights, write
from everlearn.peft.lora import LoRA
from everlearn.peft.prefix import Prefix
from everlearn.peft.targets import of_layer, targets
from everlearn.peft.unified import DeltaSet, sites

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone

Tensors = dict[str, torch.Tensor]

PROMPT = "prompt_embeddings"
KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<half>[AB])\.weight")


def save(deltas: DeltaSet, backbone: Backbone, folder: str | Path) -> None:
    """Write LoRA or prefixes in PEFT's format, completely or not at all. An adapter in the folder is replaced.

    Args:
        deltas: LoRA on linear layers, or one prefix on every block. A re-parametrised prefix is written as the
            keys and values that it gives.
        backbone: the backbone that the deltas were made for.
        folder: a new or empty folder, or one that holds an adapter and nothing else.

    Raises:
        EverlearnError: PEFT's format cannot hold these deltas, or the folder holds other files.

    >>> import os, tempfile
    >>> from everlearn import backbones
    >>> from everlearn.peft.unified import insert
    >>> tiny, folder = backbones.load("tiny"), tempfile.mkdtemp()
    >>> save(insert(tiny, "lora"), tiny, folder)
    >>> sorted(os.listdir(folder))
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    kinds = {type(delta) for delta in deltas}
    if kinds == {LoRA}:
        config, tensors = _lora_written(deltas, backbone)
    elif kinds == {Prefix}:
        if any(delta.compensated for delta in deltas):
            raise EverlearnError("an adapter in PEFT's format holds no compensated prefixes: learn with prefix alone, "
                                 "or keep these in everlearn's checkpoints")  # fmt: skip
        config, tensors = _prefix_written(deltas, backbone)
    else:
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise EverlearnError(f"an adapter in PEFT's format holds LoRA alone or prefixes alone, not {names}: save LoRA "
                             "and prefixes separately; keep other deltas in everlearn's checkpoints")  # fmt: skip
    model = _model(backbone)
    config |= {
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "auto_mapping": {"base_model_class": type(model).__name__, "parent_library": type(model).__module__},
        "inference_mode": True,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    settings = json.dumps(config, indent=2, sort_keys=True).encode()
    write(Path(folder), {CONFIG: settings, WEIGHTS: to_bytes(tensors, metadata={"format": "pt"})})


def load(backbone: Backbone, folder: str | Path) -> DeltaSet:
    """Read LoRA or prefixes from a folder in PEFT's format and attach them to `backbone`. Nothing is unpickled, and
    nothing is attached unless all of the adapter is there and suits the backbone.

    Raises:
        EverlearnError: the folder is incomplete or damaged, was made for another backbone, or has a setting
            that everlearn does not support.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> from everlearn.peft.unified import insert
    >>> tiny, folder = backbones.load("tiny"), tempfile.mkdtemp()
    >>> save(insert(tiny, "lora"), tiny, folder)
    >>> [delta.site_name for delta in load(tiny, folder)]
    ['block 0 query', 'block 0 value', 'block 1 query', 'block 1 value']
    """
    place = Path(folder)
    with one_line(place, "copy the adapter again"):
        config = read_config(place / CONFIG)
        tensors = read_weights(place)
        read = _lora_read if config["peft_type"] == "LORA" else _prefix_read
        placed = read(config, tensors, backbone, place)
    return DeltaSet([backbone.attach(delta.to(backbone.device), site) for delta, site in placed])


# -- LoRA ------------------------------------------------------------------------------------------
def _lora_written(deltas: DeltaSet, backbone: Backbone) -> tuple[dict[str, Any], Tensors]:
    named, paths = sites(backbone), _paths(backbone)
    layers: dict[str, list[tuple[LoRA, Site]]] = {}
    for delta in deltas:
        site = named.get(delta.site_name)
        if site is None or site.enter is not site.leave or not isinstance(site.leave, nn.Linear):
            raise EverlearnError(f"PEFT supports LoRA on single linear layers only, and '{delta.site_name}' is not "
                                 f"one in backbone '{backbone.name}': to save LoRA, insert it on query, key, value or "
                                 "an operation")  # fmt: skip
        layers.setdefault(paths[site.leave], []).append((delta, site))  # type: ignore[arg-type]
    tensors, ranks, alphas = {}, {}, {}
    for path, parts in layers.items():
        scale = parts[0][0].scale or 1.0
        # Several LoRAs on one layer add up to one: stack their A along the rows and their B along the columns, where
        # each B has zeros outside the rows of its own site.
        name = f"base_model.model.{path}.lora_"
        tensors[f"{name}A.weight"] = torch.cat([delta.a for delta, _ in parts])
        tensors[f"{name}B.weight"] = torch.cat([_rows(d.b * (d.scale / scale), site) for d, site in parts], dim=1)
        ranks[path] = len(tensors[f"{name}A.weight"])
        alphas[path] = scale * ranks[path]
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA", "task_type": None, "target_modules": list(layers), "bias": "none",
        "r": rank, "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "lora_alpha": alpha, "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
    }, tensors  # fmt: skip


def _rows(b: torch.Tensor, site: Site) -> torch.Tensor:
    """B for the whole layer, with zeros for the outputs that do not belong to the site."""
    whole = b.new_zeros(site.leave.out_features, b.shape[1])  # type: ignore[call-overload]
    whole[site.columns or slice(None)] = b
    return whole


def _lora_read(config: dict[str, Any], tensors: Tensors, backbone: Backbone, place: Path) -> list[tuple[Delta, Site]]:
    file, model, paths = place / WEIGHTS, _model(backbone), _paths(backbone)
    layers: dict[str, Site] = {}
    for site in sites(backbone).values():
        if site.enter is site.leave and isinstance(site.leave, nn.Linear) and site.columns is None:
            layers.setdefault(paths[site.leave], site)  # `block 0 query` comes before the same layer's operation
    halves: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        found = KEY.fullmatch(key)
        if found is None:
            raise EverlearnError(f"{file}: '{printable(key)}' is not a LoRA weight of a linear layer: everlearn reads "
                                 "only lora_A and lora_B; train or export the adapter without it")  # fmt: skip
        if found["path"] not in layers:
            raise EverlearnError(f"{file}: no block of backbone '{backbone.name}' has a linear layer '"
                                 f"{printable(found['path'])}': load the backbone that the adapter was made "
                                 "for")  # fmt: skip
        halves.setdefault(found["path"], {})[found["half"]] = tensor
    _complete(list(halves), targets(config, model, place / CONFIG), place)
    ranks = of_layer(config.get("rank_pattern", {}), list(halves), config.get("r", 8), place / CONFIG)
    alphas = of_layer(config.get("alpha_pattern", {}), list(halves), config.get("lora_alpha", 8), place / CONFIG)
    placed: list[tuple[Delta, Site]] = []
    for path, site in layers.items():
        if path not in halves:
            continue
        rank, alpha = ranks[path], alphas[path]
        expected = {"lora_A": (rank, site.width), "lora_B": (site.out_width, rank)}
        own = {f"lora_{half}": tensor for half, tensor in halves[path].items()}
        same_shapes(own, expected, file, f"layer '{path}' of rank {rank} in backbone '{backbone.name}'")
        delta = LoRA(site.width, site.out_width, rank=rank, alpha=alpha)
        if config.get("use_rslora"):
            delta.scale = alpha / rank**0.5
        delta.a, delta.b = nn.Parameter(own["lora_A"]), nn.Parameter(own["lora_B"])
        placed.append((delta, site))
    return placed


def _complete(found: Sequence[str], named: Sequence[str], place: Path) -> None:
    """Raise a DataError unless the adapter holds exactly the layers that its configuration names."""
    missing, more = [path for path in named if path not in found], [path for path in found if path not in named]
    if missing:
        raise DataError(f"{place / WEIGHTS} holds {len(named) - len(missing)} of the {len(named)} layers that {CONFIG} "
                        f"names in target_modules; '{missing[0]}' is missing: copy the adapter again")  # fmt: skip
    if more:
        raise DataError(f"{place / WEIGHTS} holds {len(more)} layers that {CONFIG} does not name in target_modules, "
                        f"such as '{more[0]}': copy the adapter again")  # fmt: skip
    if not found:
        raise DataError(f"{place / WEIGHTS} holds no layer: copy the adapter again")


# -- prefixes --------------------------------------------------------------------------------------
def _prefix_written(deltas: DeltaSet, backbone: Backbone) -> tuple[dict[str, Any], Tensors]:
    heads = getattr(getattr(_model(backbone), "config", None), "num_attention_heads", None)
    if heads is None:
        raise EverlearnError(f"backbone '{backbone.name}' is not a model of transformers, and PEFT has prefixes only "
                             "for those: save LoRA, or keep the prefixes in everlearn's checkpoints")  # fmt: skip
    by_site = {delta.site_name: torch.cat(delta.keys_values(), dim=-1)[0] for delta in deltas}  # type: ignore[operator]
    names = [backbone.block(index).heads.name for index in range(backbone.depth)]
    lengths = {len(vectors) for vectors in by_site.values()}
    if len(deltas) != len(names) or set(by_site) != set(names) or len(lengths) > 1:
        raise EverlearnError(f"PEFT needs one prefix of one length on every block: {len(deltas)} prefixes with lengths "
                             f"{sorted(lengths)} on the {len(names)} blocks of backbone '{backbone.name}' cannot be "
                             "saved; insert them with insert(backbone, 'prefix')")  # fmt: skip
    _tell_positions(length := lengths.pop())
    return {
        "peft_type": "PREFIX_TUNING", "task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": length,
        "num_layers": backbone.depth, "token_dim": backbone.hidden_width, "num_attention_heads": heads,
        "num_transformer_submodules": 1, "encoder_hidden_size": backbone.hidden_width, "prefix_projection": False,
    }, {PROMPT: torch.cat([by_site[name] for name in names], dim=1)}  # fmt: skip


def _prefix_read(config: dict[str, Any], tensors: Tensors, backbone: Backbone, place: Path) -> list[tuple[Delta, Site]]:
    length, width = config.get("num_virtual_tokens", 0), backbone.hidden_width
    expected = {PROMPT: (length, backbone.depth * 2 * width)}
    same_shapes(tensors, expected, place / WEIGHTS, f"a prefix of {length} tokens for backbone '{backbone.name}'")
    _tell_positions(length)
    placed: list[tuple[Delta, Site]] = []
    # For each block the keys and then the values, in the order in which `Prefix` holds them.
    for index, vectors in enumerate(tensors[PROMPT].split(2 * width, dim=1)):
        delta = Prefix(width, length=len(vectors))
        delta.vectors = nn.Parameter(vectors.clone())
        placed.append((delta, backbone.block(index).heads))
    return placed


def _tell_positions(length: Any) -> None:
    warnings.warn(
        f"PEFT shifts the positions of the text by the length of the prefix ({length}), and everlearn does not: keys "
        "and values are equal, but features differ; train a prefix with the library that will use it",
        EverlearnWarning, stacklevel=4,
    )  # fmt: skip


# -- the model ----------------------------------------------------------------------------------------
def _model(backbone: Backbone) -> nn.Module:
    """The model that PEFT would wrap: the one that the backbone wraps, or else the backbone itself."""
    return getattr(backbone, "model", backbone)


def _paths(backbone: Backbone) -> dict[nn.Module, str]:
    return {module: path for path, module in _model(backbone).named_modules()}
