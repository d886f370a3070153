"""Deltas: modules of new parameters. Each delta sits on one named site of an unmodified backbone.

A site has an input and an output. A delta gets both and returns a new output. It is attached by forward hooks,
so the code of a backbone is never copied or changed.
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
        name: a readable name, which is also part of hashes, e.g. ``block 3 query``.
        enter: the module whose first input is the input of the site.
        leave: the module whose output is the output of the site; often the same module as `enter`.
        width: size of the last dimension of the input.
        out_width: size of the last dimension of the output.
        columns: the slice of the output's last dimension that belongs to the site, if a layer computes
            several projections at once (a fused query-key-value projection).

    >>> layer = nn.Linear(4, 6)
    >>> site = Site("block 0 query", layer, layer, 4, 2, columns=slice(0, 2))
    >>> tuple(site.weight.shape)
    (2, 4)
    """

    name: str
    enter: nn.Module
    leave: nn.Module
    width: int
    out_width: int
    columns: slice | None = None

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight (out_width, width) of the layer that the output leaves; None where that has none."""
        weight = getattr(self.leave, "weight", None)
        return weight if weight is None or self.columns is None else weight[self.columns]


class Delta(nn.Module):
    """New parameters on one site. Subclasses define ``forward(x, y)``, which takes the input x and the output y of
    the site and returns the new output. While the delta is attached, `site.weight` is the weight of the layer that
    it changes.

    Hooks are bound methods, never closures, so that `copy.deepcopy` of a model with deltas gives
    an independent model.

    Raises:
        ContractError: it is attached while it is on another site.

    >>> class Twice(Delta):
    ...     def forward(self, x, y):
    ...         return 2 * y
    >>> layer, twice = nn.Linear(3, 3), Twice()
    >>> _ = twice.attach(Site("layer", layer, layer, 3, 3))
    >>> x = torch.ones(1, 3)
    >>> changed = layer(x)
    >>> twice.detach()
    >>> torch.equal(changed, 2 * layer(x))
    True
    """

    added_tokens = 0
    """The number of tokens that the delta appends to the sequence. Only prompts append tokens."""

    leaves_after_errors = False
    """Whether `_on_leave` must be called even if the site has raised an error."""

    def __init__(self) -> None:
        super().__init__()
        self.is_active = True
        self.site_name = ""
        self.site: Site | None = None
        self._input: torch.Tensor | None = None
        self._handles: list[Any] = []

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The new output (n, tokens, out_width) of the site, from its input x (n, tokens, width) and its output y.
        A prompt appends tokens."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, y)")

    def attach(self, site: Site) -> Delta:
        """Attach to `site`. A delta sits on one site at a time."""
        if self._handles:
            raise RuntimeError(f"{type(self).__name__} already sits on {self.site_name}; detach it first")
        self.site_name, self.site = site.name, site
        self._handles = [
            site.enter.register_forward_pre_hook(self._on_enter),
            site.leave.register_forward_hook(self._on_leave, always_call=self.leaves_after_errors),
        ]
        return self

    def detach(self) -> None:
        """Take the delta off its site, so that the backbone computes as it did before."""
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
    """Switch `deltas` on (or off) inside the `with` statement, and restore their previous state afterwards.

    >>> delta = Delta()
    >>> with only([delta], active=False):
    ...     print(delta.is_active)
    False
    """
    before = [(delta, delta.is_active) for delta in deltas]
    try:
        for delta, _ in before:
            delta.is_active = active
        yield
    finally:
        for delta, was in before:
            delta.is_active = was
