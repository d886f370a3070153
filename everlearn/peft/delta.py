"""Where new parameters go: a Delta sits on a named site of an unmodified backbone.

A site is where a tensor enters and where the result leaves. A delta sees both and returns what
leaves instead. It is attached by forward hooks, so no backbone is ever copied or forked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Site:
    """A place in a backbone.

    Args:
        name: for people and for hashes, e.g. ``block 3 query``.
        enter: the module whose first input is the site's input.
        leave: the module whose output is the site's output; often the same as `enter`.
        columns: the slice of the output's last dimension that belongs to the site, where a layer
            computes several at once (a fused query-key-value projection).
        width: size of the input's last dimension; `out_width` of the output's.
    """

    name: str
    enter: nn.Module
    leave: nn.Module
    width: int
    out_width: int
    columns: slice | None = None

    @property
    def weight(self) -> torch.Tensor | None:
        """The (out_width, …) weight of the layer that the output leaves; None where that has none."""
        weight = getattr(self.leave, "weight", None)
        return weight if weight is None or self.columns is None else weight[self.columns]


class Delta(nn.Module):
    """New parameters on a site. Subclasses define ``forward(x, y)``: the site's input and output
    in, the new output out. While it is attached, `site.weight` is the weight of the layer that it changes.

    Hooks are bound methods, never closures, so that `copy.deepcopy` of a model with deltas gives
    an independent model.
    """

    added_tokens = 0
    """How many tokens the delta appends to the sequence; only prompts do."""

    def __init__(self) -> None:
        super().__init__()
        self.is_active = True
        self.site_name = ""
        self.site: Site | None = None
        self._input: torch.Tensor | None = None
        self._handles: list[Any] = []

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, y)")

    def attach(self, site: Site) -> Delta:
        """Attach to `site`; a delta sits on one site at a time."""
        self._sit_on(site)
        self._handles = [
            site.enter.register_forward_pre_hook(self._on_enter),
            site.leave.register_forward_hook(self._on_leave),
        ]
        return self

    def _sit_on(self, site: Site) -> None:
        if self._handles:
            raise RuntimeError(f"{type(self).__name__} already sits on {self.site_name}; detach it first")
        self.site_name, self.site = site.name, site

    def detach(self) -> None:
        """Take the delta off its site: the backbone answers as before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._input = args[0] if self.is_active and args else None

    def _on_leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self.is_active:
            return None  # torch keeps the output as it is
        x, self._input = self._input, None  # a graph tensor left on a module breaks deepcopy
        first, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        columns = self.site.columns if self.site else None
        if columns is None:
            first = self(x, first)
        else:
            first = first.clone()
            first[..., columns] = self(x, first[..., columns])
        return first if rest is None else (first, *rest)


@contextmanager
def only(deltas: Iterable[Delta], active: bool = True) -> Iterator[None]:
    """Switch `deltas` on (or off) inside the block, and back as they were afterwards."""
    before = [(delta, delta.is_active) for delta in deltas]
    try:
        for delta, _ in before:
            delta.is_active = active
        yield
    finally:
        for delta, was in before:
            delta.is_active = was
