"""Before: the trained weights as they were before a task, for methods that average them with those after it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from everlearn.state import Stateful, check_saved


class Before(Stateful):
    """Weights before a task, kept while it is learned, so that a run that was stopped within it can be resumed. Between
    tasks it holds nothing.

    >>> before = Before()
    >>> before.keep({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    >>> before.weights()["weight"].shape, before.stored_bytes()
    (torch.Size([2, 3]), 32)
    >>> before.clear()
    >>> before.stored_bytes()
    0
    """

    flat: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flat", torch.empty(0))
        self._shapes: dict[str, torch.Size] = {}

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """A task begins with these weights. Call it in `begin_task`, before anything grows."""
        self._shapes = {name: weight.shape for name, weight in weights.items()}
        self.flat = torch.cat([weight.detach().flatten() for weight in weights.values()])

    def weights(self) -> dict[str, Tensor]:
        """Those that were kept, by name."""
        parts = self.flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def clear(self) -> None:
        """The task is over."""
        self.flat, self._shapes = self.flat.new_empty(0), {}

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """Nothing, or as many numbers as the weights had when the task began."""
        for name, tensor in saved.items():
            check_saved(name, tensor, self.flat, (0,) if not tensor.numel() else None)
