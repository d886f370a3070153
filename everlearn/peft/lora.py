"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2022, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import nn

from everlearn.peft.delta import Delta, Site


class LoRA(Delta):
    """y + (alpha / rank) · x Aᵀ Bᵀ. A is initialised at random and B with zeros, so a new LoRA changes nothing.

    Args:
        width: size of the input of the site.
        out_width: size of the output of the site.
        rank: the rank, r in the paper.
        alpha: the update is scaled by alpha / rank.

    >>> import torch
    >>> delta, x, y = LoRA(8, 8, rank=2), torch.ones(1, 8), torch.ones(1, 8)
    >>> torch.equal(delta(x, y), y)
    True
    """

    def __init__(self, width: int, out_width: int, *, rank: int = 8, alpha: float = 16.0) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, width))
        self.b = nn.Parameter(torch.zeros(out_width, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The new output (n, tokens, out_width) of the site, from its input x (n, tokens, width) and its output y."""
        return y + self.scale * (x @ self.a.T) @ self.b.T

    def merge(self, site: Site) -> None:
        """Add the update to the weight of `site` and switch the delta off, so that it costs nothing in prediction."""
        self._add_to_weight(site, self.scale)
        self.is_active = False

    def unmerge(self, site: Site) -> None:
        """Undo `merge`, up to rounding errors."""
        self._add_to_weight(site, -self.scale)
        self.is_active = True

    @torch.no_grad()
    def _add_to_weight(self, site: Site, scale: float) -> None:
        assert site.weight is not None
        site.weight.add_(scale * self.b @ self.a)
