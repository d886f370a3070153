"""Finds the named sites of a transformer of any architecture by the names of its layers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from everlearn.backbones.backbone import Backbone, Block
from everlearn.backbones.precision import has_bfloat16
from everlearn.errors import EverlearnError, EverlearnWarning, one_line, printable
from everlearn.peft.delta import Site

# The names that the models of transformers and timm use for the same part.
PROJECTIONS = {
    "query": ("query", "q_proj", "q_lin", "q"),
    "key": ("key", "k_proj", "k_lin", "k"),
    "value": ("value", "v_proj", "v_lin", "v"),
}
FUSED = ("qkv", "Wqkv")
ATTENTION = ("attention", "attn", "self_attn")
ATTENTION_OUT = ("o_proj", "out_proj", "out_lin", "proj", "Wo", "o", "dense")
MLP = ("mlp", "ffn")
MLP_IN = ("intermediate",)
MLP_OUT = ("output.dense",)
LAST_NORM = ("norm", "layernorm", "final_norm", "final_layer_norm")


class Discovered(Backbone):
    """A backbone around a model whose blocks are found by their names. Its pooler is removed: it is not used, and
    unused weights must not change the identity."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self._blocks = find_blocks(model)
        self.depth = len(self._blocks)
        self.training_precision = "bfloat16" if has_bfloat16() else "float32"
        self.requires_grad_(False).eval()

    def block(self, index: int) -> Block:
        return find_block(self._blocks[index], index, self.hidden_width)

    def blocks_of(self) -> Sequence[nn.Module]:
        return self._blocks

    def last_norm(self) -> nn.Module | None:
        found = (getattr(self.model, name, None) for name in LAST_NORM)
        return next((norm for norm in found if isinstance(norm, nn.Module)), None)

    def check_forward(self, prepared: Any, where: object) -> None:
        """Try the model on one input, so that files that do not fit together are noticed when they are loaded. A model
        whose code mixes precisions fails in bfloat16 (DeBERTa): it computes in float32, which a warning says.

        Raises:
            EverlearnError: it fails, it has fewer or more tokens than its input, or its feature has another size or is
                not finite.
        """
        remedy = "the files describe a model that cannot run; copy them again, or take another model"

        def answer() -> tuple[torch.Tensor, int]:
            with self.inference():
                hidden = self.hidden(prepared)
                return self.pool(hidden), hidden.states.shape[1]

        with one_line(where, remedy):
            tokens = self.mask(prepared).shape[1]
            try:
                feature, found = answer()
            except RuntimeError as error:
                if self.precision == "float32":
                    raise
                self.precision = self.training_precision = "float32"
                feature, found = answer()
                warnings.warn(f"{where}: the model cannot compute in bfloat16, so it computes in float32, which is "
                              f"slower ({printable(error, 100)})", EverlearnWarning, stacklevel=2)  # fmt: skip
        if found != tokens:
            raise EverlearnError(f"{where}: the model has {found} tokens in its last layer for an input of {tokens}, "
                                 "as one that hides some at random: take another model")  # fmt: skip
        if feature.shape != (1, self.width) or not torch.isfinite(feature).all():
            problem = f"of the shape {tuple(feature.shape)} instead of {(1, self.width)}, or not finite"
            raise EverlearnError(f"{where}: a feature is {problem}: {remedy}")


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model: a list of modules of one type that contain an attention layer."""
    for module in model.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module)
        if len({type(child) for child in children}) == 1 and _child(children[0], ATTENTION):
            return children
    hint = "use a backbone that is a BERT-like text encoder or a plain ViT"
    raise EverlearnError(f"{type(model).__name__} has no list of transformer blocks that everlearn recognises: {hint}")


def find_block(block: nn.Module, index: int, width: int) -> Block:
    """The sites of one block."""
    attention = _need(block, ATTENTION, "attention")

    def site(name: str, enter: nn.Module, leave: nn.Module | None = None, columns: slice | None = None) -> Site:
        return Site(f"block {index} {name}", enter, leave or enter, width, width, columns)

    fused = _descendant(attention, FUSED)
    if fused is not None:
        parts = (slice(i * width, (i + 1) * width) for i in range(3))
        query, key, value = (site(name, fused, columns=part) for name, part in zip(PROJECTIONS, parts, strict=True))
    else:
        query, key, value = (site(name, _need(attention, names, name)) for name, names in PROJECTIONS.items())
    mlp = _child(block, MLP)
    enter, leave = (mlp, mlp) if mlp else (_need(block, MLP_IN, "feed-forward"), _need(block, MLP_OUT, "feed-forward"))
    out = _need(attention, ATTENTION_OUT, "attention output")
    return Block(
        query, key, value, site("heads", attention), site("attention", query.enter, out), site("mlp", enter, leave),
        site("output", block), _operations(block, index),
    )  # fmt: skip


def _operations(block: nn.Module, index: int) -> tuple[Site, ...]:
    sites = []
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear):
            sites.append(Site(f"block {index} {path}", module, module, module.in_features, module.out_features))
        elif isinstance(module, nn.LayerNorm):
            width = module.normalized_shape[-1]
            sites.append(Site(f"block {index} {path}", module, module, width, width))
    return tuple(sites)


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found = dict(module.named_modules())
    return next((found[name] for name in names if name in found), None)


def _descendant(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first module, at any depth, whose own name is one of `names`."""
    below = [(path.rsplit(".", 1)[-1], child) for path, child in module.named_modules()]
    return next((child for name in names for own, child in below if own == name), None)


def _need(module: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    found = _child(module, names) or _descendant(module, names)
    if found is None:
        raise EverlearnError(f"{type(module).__name__} has no {what} layer called {' or '.join(names)}")
    return found
