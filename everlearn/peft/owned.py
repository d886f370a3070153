"""Weights that tasks share out among themselves: each belongs to one task, and later ones use but never change it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from everlearn.state import Stateful

FREE = 255
"""The owner of a weight that belongs to no task."""


class _Seen(torch.autograd.Function):
    """A weight as a task sees it. Comparisons are written as numbers, because `torch.where` is five times slower."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, owner: Tensor, task: int) -> Tensor:
        ctx.owner, ctx.task = owner, task
        return torch.le(owner, task, out=torch.empty_like(weight)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return torch.eq(ctx.owner, ctx.task, out=torch.empty_like(gradient)).mul_(gradient), None, None


class Owned(Stateful):
    """A parametrization of torch: of a parameter, task t sees its own weights and those of earlier tasks. All others
    are zero, and only its own get a gradient. One byte a weight says whose it is; at first the weights are free.

    Args:
        shape: of the parameter.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> nn.init.ones_(layer.weight)
    Parameter containing:
    tensor([[1., 1.]], requires_grad=True)
    >>> owned = Owned(layer.weight.shape)
    >>> _ = parametrize.register_parametrization(layer, "weight", owned)
    >>> owned.owner[0, 0] = 0
    >>> layer.weight.tolist()
    [[1.0, 0.0]]
    """

    owner: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("owner", torch.full(tuple(shape), FREE, dtype=torch.uint8))
        self.task = 0

    def forward(self, weight: Tensor) -> Tensor:
        """What the task uses, of the same shape as the weight."""
        seen: Tensor = _Seen.apply(weight, self.owner, self.task)
        return seen

    def claim(self, task: int) -> None:
        """Give all free weights to this task."""
        self.owner[self.owner == FREE] = task

    def release(self, weight: Tensor, share: float) -> None:
        """Free this share of the task's own weights: those of the smallest magnitude.

        Args:
            weight: the parameter itself, of the same shape as `owner`.
        """
        own = self.owner == self.task
        released = int(share * int(own.sum()))
        if released:
            sizes = weight.detach().abs()
            self.owner[own & (sizes <= sizes[own].kthvalue(released).values)] = FREE


def own_weights(module: nn.Module) -> None:
    """Have tasks own the weights of a module and of those in it: of all parameters but vectors, such as a bias.

    >>> layer = nn.Linear(2, 3)
    >>> own_weights(layer)
    >>> [owned.owner.shape for _, owned in owned_weights(layer)]
    [torch.Size([3, 2])]
    """
    for part in list(module.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.dim() > 1:
                parametrize.register_parametrization(part, name, Owned(parameter.shape))


def owned_weights(module: nn.Module) -> Iterator[tuple[nn.Parameter, Owned]]:
    """The parameters that tasks own in a module, each with what knows their owners, of the same shape.

    >>> list(owned_weights(nn.Linear(2, 3)))
    []
    """
    for part in module.modules():
        if isinstance(part, parametrize.ParametrizationList) and isinstance(part[0], Owned):
            assert isinstance(part.original, nn.Parameter)
            yield part.original, part[0]
