"""Parallel adapters: AdaptFormer (Chen et al., 2022, https://arxiv.org/abs/2205.13535).

The form that APER and RanPAC train in their first session.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from everlearn.peft.delta import Delta


class ParallelAdapter(Delta):
    """y + scale · Up(ReLU(Down(x))), beside a feed-forward layer; Up is zero at first.

    Args:
        width: size of the site's input; `out_width` of its output.
        bottleneck: size of the hidden layer.
        scale: fixed factor of the branch.

    >>> import torch
    >>> delta, x, y = ParallelAdapter(8, 8, bottleneck=2), torch.ones(1, 8), torch.ones(1, 8)
    >>> torch.equal(delta(x, y), y)
    True
    """

    def __init__(self, width: int, out_width: int, *, bottleneck: int = 64, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, out_width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.scale * self.up(torch.relu(self.down(x)))
