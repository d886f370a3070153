"""SSF: scale and shift every feature (Lian et al., 2022, https://arxiv.org/abs/2210.08823)."""

from __future__ import annotations

import torch
from torch import nn

from everlearn.peft.delta import Delta


class ScaleShift(Delta):
    """gamma · y + beta for each channel, after a linear or normalisation layer.

    The paper draws gamma near 1 and beta near 0, with a standard deviation of 0.02. Here they start at exactly
    1 and 0, so that a new delta changes nothing.

    Args:
        out_width: size of the output of the site.

    >>> delta, y = ScaleShift(4), torch.ones(2, 4)
    >>> torch.equal(delta(y, y), y)
    True
    """

    def __init__(self, out_width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(out_width))
        self.beta = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The output y (n, tokens, out_width) of the site, scaled and shifted; x is not used."""
        return y * self.gamma + self.beta
