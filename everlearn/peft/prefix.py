"""Prefixes: additional keys and values in attention (Li & Liang, 2021, https://arxiv.org/abs/2101.00190)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from everlearn.errors import EverlearnError
from everlearn.peft.delta import Delta


class KeysValues(Delta):
    """Adds given keys and values to those of one attention layer, at the `heads` site of a block.

    They are not parameters of this delta: their owner (a pool, a task) passes them in for each pass. The length
    of the sequence does not change. In each head, queries attend to them as they do to the example's own keys.

    >>> from everlearn import backbones
    >>> tiny = backbones.load("tiny")
    >>> delta, before = tiny.attach(KeysValues(), tiny.block(0).heads), tiny(["a text"])
    >>> with delta.given(torch.ones(1, 4, 32), torch.ones(1, 4, 32)):
    ...     torch.equal(tiny(["a text"]), before)
    False
    """

    leaves_after_errors = True  # a mode that is left behind would change every attention that follows
    compensated = False
    """Whether attention to the added keys counts in full, whatever its share is (see `Prefix`)."""

    def __init__(self) -> None:
        super().__init__()
        self.is_active = False
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None
        self._modes: list[_Joined] = []

    @contextmanager
    def given(self, keys: torch.Tensor, values: torch.Tensor) -> Iterator[None]:
        """Inside the `with` statement every pass gets `keys` and `values`, each of shape (n or 1, p, width)."""
        self._given, self.is_active = (keys, values), True
        try:
            yield
        finally:
            self._given, self.is_active = None, False

    def keys_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of this pass, each (n or 1, p, width)."""
        assert self._given is not None, "KeysValues is used inside `with prefix.given(keys, values):`"
        return self._given

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.is_active:
            self._modes.append(_Joined(*self.keys_values(), self.compensated))
            self._modes[-1].__enter__()

    def _on_leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._modes:
            return
        mode = self._modes.pop()
        mode.__exit__(None, None, None)
        if not mode.met and output is not None:
            raise EverlearnError(
                f"{self.site_name}: no keys or values can be added, because {type(module).__name__} does not use "
                "torch's scaled_dot_product_attention: use a method without prefixes, or another backbone"
            )


class Prefix(KeysValues):
    """Trained additional keys and values of one attention layer: prefix-tuning.

    Args:
        width: size of a key and of a value, over all heads.
        length: number of keys and of values.
        hidden: size of the hidden layer of the re-parametrisation, 0 for none. With it, keys and values are
            Linear(tanh(Linear(e))) of trained vectors e, which makes training more stable.
        compensated: whether the attention to the prefix counts in full. Among many tokens its share λ of the attention
            is small, and so is its gradient; (1 − λ) · attention + attention to the prefix alone learns as fast as an
            adapter does (Gao et al., ICCV 2023, https://arxiv.org/abs/2303.10070).

    >>> prefix = Prefix(8, length=3)
    >>> [tuple(part.shape) for part in prefix.keys_values()]
    [(1, 3, 8), (1, 3, 8)]
    """

    def __init__(self, width: int, *, length: int = 10, hidden: int = 0, compensated: bool = False) -> None:
        super().__init__()
        self.is_active = True
        if compensated:  # an attribute only where it differs: it is part of the identity of what is computed
            self.compensated = True
        self.vectors = nn.Parameter(0.02 * torch.randn(length, width if hidden else 2 * width))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 2 * width)) if hidden else None

    def keys_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The trained keys and values, each (1, length, width)."""
        both = self.mlp(self.vectors) if self.mlp else self.vectors
        keys, values = both[None].chunk(2, dim=-1)
        return keys, values

    def fold(self) -> None:
        """Replace the re-parametrisation by the keys and values that it gives. For use after training."""
        self.vectors = nn.Parameter(torch.cat(self.keys_values(), dim=-1)[0].detach())
        self.mlp = None


class _Joined(TorchFunctionMode):
    """A mode in which every scaled dot-product attention gets the additional keys and values."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, compensated: bool) -> None:
        super().__init__()
        self.keys, self.values, self.compensated, self.met = keys, values, compensated, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.met = True
        query, key, value, *rest = args
        mask = rest.pop(0) if rest else kwargs.pop("attn_mask", None)
        if mask is not None:
            mask = F.pad(mask, (self.keys.shape[1], 0), value=True if mask.dtype == torch.bool else 0.0)
        keys, values = _heads(self.keys, key), _heads(self.values, value)
        joined = torch.cat([keys, key], dim=2)
        if not self.compensated:
            return func(query, joined, torch.cat([values, value], dim=2), mask, *rest, **kwargs)
        # With values of zero the prefix only takes its share away; what it gives is added in full.
        without = func(query, joined, torch.cat([torch.zeros_like(values), value], dim=2), mask, *rest, **kwargs)
        return without + func(query, keys, values, scale=kwargs.get("scale"))


def _heads(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape (n or 1, p, width) to (n, heads, p, width per head), in the dtype of `like`."""
    n, heads, _, size = like.shape
    return rows.reshape(rows.shape[0], -1, heads, size).transpose(1, 2).expand(n, -1, -1, -1).to(like.dtype)
