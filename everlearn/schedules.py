"""Schedules: how the learning rate changes while one task is learned.

A schedule is a function of the optimizer and of the number of steps that returns a scheduler of torch.
The schedule of a single paper stands in the file of its method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR

Schedule = Callable[[Optimizer, int], Any]


def constant(optimizer: Optimizer, steps: int) -> ConstantLR:
    """The learning rate stays as it is.

    Args:
        optimizer: whose learning rate it is.
        steps: of the task; it does not matter here.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    >>> schedule = constant(optimizer, steps=10)
    >>> optimizer.step(), schedule.step(), schedule.get_last_lr()
    (None, None, [0.5])
    """
    return ConstantLR(optimizer, factor=1.0)


def cosine(optimizer: Optimizer, steps: int) -> CosineAnnealingLR:
    """The learning rate falls to zero along half a cosine, a little with every step.

    Args:
        optimizer: whose learning rate it is.
        steps: of the task, after which the rate is zero.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    >>> schedule = cosine(optimizer, steps=2)
    >>> optimizer.step(), schedule.step(), round(schedule.get_last_lr()[0], 3)
    (None, None, 0.25)
    """
    return CosineAnnealingLR(optimizer, T_max=max(1, steps))
