"""Moments: what Adam knows of each parameter, kept from one task to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from everlearn.memory.per_parameter import PerParameter

SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Moments(nn.Module):
    """The state of Adam with amsgrad, for a method whose published code makes its optimizer once for all tasks.

    Here each task has a new optimizer. Inside `carried` it continues from the state of the one before, as if it
    were the same. The state is kept in buffers, so it is saved, moved and copied with the method.

    >>> weight, moments = nn.Parameter(torch.ones(1)), Moments()
    >>> moments.grow({"weight": weight})
    >>> for task in range(2):
    ...     optimizer = torch.optim.Adam([weight], amsgrad=True)
    ...     weight.grad = torch.ones(1)
    ...     with moments.carried(optimizer, {"weight": weight}):
    ...         optimizer.step()
    >>> int(optimizer.state[weight]["step"])
    2
    """

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0.0))
        self.slots = nn.ModuleDict({slot: PerParameter() for slot in SLOTS})

    def grow(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Have a state for each parameter, by its name. New parameters and new rows start at zero. Call it in
        `begin_task`, after everything has grown."""
        for kept in self._kept().values():
            kept.grow(parameters.items())

    @contextmanager
    def carried(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Inside the `with` statement the optimizer makes one step. If it is the first of a task, it continues from the
        kept state. Afterwards its state is kept."""
        if not optimizer.state:
            for name, parameter in parameters.items():
                known = {slot: kept[name].clone() for slot, kept in self._kept().items()}
                optimizer.state[parameter] = {"step": self.steps.clone(), **known}
        yield
        self.steps += 1
        for name, parameter in parameters.items():
            for slot, kept in self._kept().items():
                kept[name] = optimizer.state[parameter][slot]

    def _kept(self) -> dict[str, PerParameter]:
        return {slot: cast(PerParameter, kept) for slot, kept in self.slots.items()}
