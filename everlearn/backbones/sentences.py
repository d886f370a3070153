"""What sentence-transformers stores beside an encoder: pooling, layers after it, prompts and the length of a text.

Every file is read completely. A module, a setting or a value of which everlearn does not know what it computes is
refused, because the features would otherwise be others than those of the library, without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.folder import ADAPTER, MODEL_SETTINGS, MODULES, TEXT_SETTINGS, WEIGHTS, ModelFolder
from everlearn.backbones.tensors import in_float32, read_tensors, same_shapes
from everlearn.errors import DataError, shown

SWITCHES = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""The poolings by their switch in older files, in the order in which several are put side by side."""
ACTIVATIONS = ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
FEATURE = ("sentence_embedding",)
STATES = {"method": "forward", "method_output_name": "last_hidden_state"}
ANY = None  # a setting that is read apart, or that changes no feature

# The settings of each file with their possible values. What is empty (null, [], {}) says nothing and is possible too.
TRANSFORMER = {
    "max_seq_length": ANY, "do_lower_case": (True, False), "unpad_inputs": ANY, "modality_config": ANY,
    "transformer_task": ("feature-extraction",), "module_output_name": ("token_embeddings",),
}  # fmt: skip
MODEL = {
    "__version__": ANY, "requirements": ANY, "model_type": ("SentenceTransformer",), "prompts": ANY,
    "default_prompt_name": ANY, "similarity_fn_name": SIMILARITIES, "truncate_dim": ANY,
}  # fmt: skip
POOLING = {
    "word_embedding_dimension": ANY, "embedding_dimension": ANY, "pooling_mode": ANY, "include_prompt": (True, False),
    **dict.fromkeys(SWITCHES, (True, False)),
}  # fmt: skip
DENSE = {
    "in_features": ANY, "out_features": ANY, "bias": (True, False), "use_residual": (True, False),
    "activation_function": ("torch.nn.modules.linear.Identity",
                            *(f"torch.nn.modules.activation.{name}" for name in ACTIVATIONS)),
    "module_input_name": FEATURE, "module_output_name": FEATURE,
}  # fmt: skip


@dataclass(frozen=True)
class Sentences:
    """What is computed before and after the encoder.

    Args:
        width: the size of a feature.
        pooling: how the states of a text's tokens become one vector; several are put side by side.
        layers: what follows the pooling.
        dimensions: how many numbers of the result are kept; None for all.
        max_length: the most tokens of a text; None where the tokenizer says it.
        prompts: what is put before a text, by its role: None for a text without one, "query" and "document".
        pools_prompt: whether the tokens of a prompt are pooled too.
        similarity: how queries and documents are compared.
    """

    width: int
    pooling: tuple[str, ...] = ("mean",)
    layers: tuple[nn.Module, ...] = ()
    dimensions: int | None = None
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str | None, str] = field(default_factory=lambda: dict.fromkeys((None, "query", "document"), ""))
    pools_prompt: bool = True
    similarity: str = "cosine"


class Dense(nn.Module):
    """A linear layer with an activation, in float32 wherever it is used.

    Args:
        tensors: `linear.weight` (out, in), `linear.bias` (out,) or none, `residual.weight` (out, in) or none.
        activation: the name of a module of torch.nn.
        residual: whether the input, or its projection, is added to the output.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], activation: str, residual: bool) -> None:
        super().__init__()
        held = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
        self.weight, self.bias = held["linear.weight"], held.get("linear.bias")
        self.projection = held.get("residual.weight")
        self.activation, self.residual = getattr(nn, activation)(), residual

    def extra_repr(self) -> str:
        return f"residual={self.residual}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out = self.activation(F.linear(x.float(), self.weight, self.bias))
            if self.residual:
                out = out + (x if self.projection is None else F.linear(x.float(), self.projection))
        return out


class Normalize(nn.Module):
    """Divides each feature by its length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x, dim=-1)


def pooled(states: torch.Tensor, mask: torch.Tensor, modes: tuple[str, ...], first: int = 0) -> torch.Tensor:
    """One vector (n, width · number of modes) for each text, from the states (n, tokens, width) of its tokens.

    Args:
        mask: (n, tokens), 1 for tokens and 0 for padding.
        first: how many tokens at the beginning of each text are left out.

    >>> states, mask = torch.tensor([[[1.0], [2.0], [6.0], [9.0]]]), torch.tensor([[1, 1, 1, 0]])
    >>> pooled(states, mask, ("cls", "max", "mean", "lasttoken")).tolist()
    [[1.0, 6.0, 3.0, 6.0]]
    >>> pooled(states, mask, ("mean", "weightedmean"), first=1).tolist()  # 4 and (2 · 2 + 3 · 6) ÷ 5
    [[4.0, 4.400000095367432]]
    """
    place = mask.cumsum(1) * mask  # from 1 for the first token of a text; 0 for padding
    kept = (place > first).to(states.dtype).unsqueeze(-1)
    rows = torch.arange(states.shape[0], device=states.device)  # len would fix the number in an export
    found = []
    for mode in modes:
        if mode == "cls":
            found.append(states[rows, kept.squeeze(-1).argmax(1)])
        elif mode == "lasttoken":
            found.append(states[rows, place.argmax(1)])
        elif mode == "max":
            found.append(states.masked_fill(kept == 0, float("-inf")).amax(1))
        else:
            weights = kept * place.unsqueeze(-1) if mode == "weightedmean" else kept
            count = weights.sum(1).clamp(min=1e-9)
            found.append((states * weights).sum(1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count))
    return torch.cat(found, dim=-1)


def read(folder: ModelFolder) -> Sentences:
    """What sentence-transformers stores beside the encoder; without its files, the mean of the tokens' states.

    Raises:
        DataError: a file describes features that everlearn does not compute; the message says which and why.
    """
    modules, width = folder.read_json(MODULES, list), folder.config.hidden_size
    if not modules:
        if found := next((name for name in ("1_Pooling", MODEL_SETTINGS) if (folder.path / name).exists()), None):
            raise DataError(f"{folder.path / MODULES} does not exist, but {found} does: copy the whole folder again")
        return Sentences(width)
    if (folder.path / ADAPTER).exists():
        raise _refuse(folder.path / ADAPTER, "an adapter beside the encoder", "merge it into the encoder")
    places = list(_places(folder, modules))
    if [kind for kind, _ in places[:2]] != ["Transformer", "Pooling"]:
        raise _refuse(folder.path / MODULES, "what does not begin with the modules Transformer and Pooling",
                      "take another model")  # fmt: skip
    pooling = places[1][1]
    told = _transformer(folder) | _pooling(folder, pooling) | _model(folder)
    width *= len(told["pooling"])
    layers: list[nn.Module] = []
    for kind, path in places[2:]:
        layer, width = _layer(folder, kind, path, width)
        layers += [layer] if layer is not None else []
    if not told["pools_prompt"] and "cls" in told["pooling"] and any(told["prompts"].values()):
        raise _refuse(folder.path / pooling / "config.json", "pooling by the first token without the prompt, which "
                      "releases of sentence-transformers compute differently", "take another model")  # fmt: skip
    return Sentences(min(width, told["dimensions"] or width), layers=tuple(layers), **told)


def _places(folder: ModelFolder, modules: list[Any]) -> Iterator[tuple[str, str]]:
    """The name of each module's class, and its folder."""
    file = folder.path / MODULES
    for number, module in enumerate(modules):
        module = module if isinstance(module, dict) else {}
        kind, path = module.get("type"), module.get("path")
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise _refuse(file, f"the module {shown(kind)}, which is not one of sentence-transformers",
                          "take another model")  # fmt: skip
        if not isinstance(path, str) or not re.fullmatch(r"[1-9]\w*" if number else "", path):
            raise _refuse(file, f"the folder {shown(path)} for a module", "save the model again with a current "
                          "sentence-transformers")  # fmt: skip
        if module.get("kwargs"):
            raise _refuse(file, f"a module that takes {shown(module['kwargs'])}", "take another model")
        yield kind.rpartition(".")[2], path


def _transformer(folder: ModelFolder) -> dict[str, Any]:
    name = next((name for name in TEXT_SETTINGS if (folder.path / name).exists()), TEXT_SETTINGS[0])
    told, file = _settings(folder, name, TRANSFORMER), folder.path / name
    modalities = told.get("modality_config", {"text": STATES})
    if not isinstance(modalities, dict) or modalities.get("text") != STATES:
        raise _refuse(file, f"texts read as {shown(modalities)}", "take another model")
    length = told.get("max_seq_length")
    if length is not None and (type(length) is not int or not 3 <= length <= 1_000_000):  # 3 are CLS, a word and SEP
        raise DataError(f"{file}: max_seq_length is {shown(length)}, not a number of at least 3 tokens: copy the "
                        "folder again")  # fmt: skip
    return {"max_length": length, "lower_case": bool(told.get("do_lower_case"))}


def _pooling(folder: ModelFolder, path: str) -> dict[str, Any]:
    name = f"{path}/config.json"
    told = _settings(folder, name, POOLING)
    modes = told.get("pooling_mode") or [mode for switch, mode in SWITCHES.items() if told.get(switch)] or "mean"
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not all(mode in SWITCHES.values() for mode in modes):
        raise _refuse(folder.path / name, f"the pooling {shown(modes)}", "take another model")
    return {"pooling": tuple(modes), "pools_prompt": bool(told.get("include_prompt", True))}


def _model(folder: ModelFolder) -> dict[str, Any]:
    told, file = _settings(folder, MODEL_SETTINGS, MODEL), folder.path / MODEL_SETTINGS
    prompts, default = told.get("prompts") or {}, told.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise DataError(f"{file}: prompts is {shown(prompts)}, not texts by their names: copy the folder again")
    if default is not None and default not in prompts and default not in ("query", "document"):
        raise DataError(f"{file}: default_prompt_name is {shown(default)}, and there is no such prompt: copy the "
                        "folder again")  # fmt: skip
    dimensions = told.get("truncate_dim")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise DataError(
            f"{file}: truncate_dim is {shown(dimensions)}, not a whole number from 1: copy the folder again"
        )
    return {
        "prompts": {role: prompts.get(name) or "" for role, name in
                    ((None, default), ("query", "query"), ("document", "document"))},
        "similarity": told.get("similarity_fn_name") or "cosine", "dimensions": dimensions,
    }  # fmt: skip


def _layer(folder: ModelFolder, kind: str, path: str, width: int) -> tuple[nn.Module | None, int]:
    """A module after the pooling, or None if it does nothing to a feature, and the width of what it gives."""
    name, weights = f"{path}/config.json", folder.path / path / WEIGHTS
    if kind == "Normalize":
        _settings(folder, name, {"module_input_name": FEATURE, "module_output_name": FEATURE})
        return Normalize(), width
    if kind == "Dropout":  # only in training, and everlearn trains encoders without dropout
        return None, width
    if kind == "LayerNorm":
        _settings(folder, name, {"dimension": (width,)})
        tensors = _weights(weights, {"norm.weight": [width], "norm.bias": [width]})
        norm = nn.LayerNorm(width)
        norm.load_state_dict({name.removeprefix("norm."): tensor for name, tensor in tensors.items()})
        return norm, width
    if kind == "Dense":
        told = _settings(folder, name, DENSE)
        into, out, residual = told.get("in_features"), told.get("out_features"), told.get("use_residual", False)
        if into != width or type(out) is not int or not 1 <= out <= 1_000_000:
            raise DataError(f"{folder.path / name}: a layer from {shown(into)} to {shown(out)} numbers does not follow "
                            f"features of {width}: copy the folder again")  # fmt: skip
        shapes = {"linear.weight": [out, into]}
        if told.get("bias", True):
            shapes["linear.bias"] = [out]
        if residual and into != out:
            shapes["residual.weight"] = [out, into]
        activation = told.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
        return Dense(_weights(weights, shapes), activation, residual), out
    raise _refuse(folder.path / MODULES, f"the module {shown(kind)} after the pooling", "take another model")


def _weights(file: Path, shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    if not file.exists():
        raise DataError(f"{file} does not exist, and other formats (.bin) are never read, since a pickle file can run "
                        "code: save the model as safetensors")  # fmt: skip
    tensors = in_float32(read_tensors(file), file)
    same_shapes(tensors, shapes, file, "its config.json")
    return tensors


def _settings(folder: ModelFolder, name: str, possible: Mapping[str, tuple[Any, ...] | None]) -> dict[str, Any]:
    """The settings of a file that say something, each with a possible value."""
    told = {key: value for key, value in folder.read_json(name).items() if value not in (None, {}, [])}
    for key, value in told.items():
        values = possible.get(key, ())
        if values is not None and value not in values:
            raise _refuse(folder.path / name, f"{shown(key)} {shown(value)}", "take another model")
    return told


def _refuse(file: Path, what: str, remedy: str) -> DataError:
    return DataError(f"{file} describes {what}, and everlearn would compute other features than sentence-transformers: "
                     f"{remedy}")  # fmt: skip
