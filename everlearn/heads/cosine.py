"""Cosine: one trained direction per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from everlearn.heads.linear import append_rows
from everlearn.heads.statistics import names_of


class Cosine(nn.Module):
    """Scores σ·cos(w, f), which depend on the directions of weights and features, and not on their lengths.

    So classes learned later cannot win by longer weights, as they do in a linear head.
    `grow` appends rows as `Linear` does, in `begin_task` only.

    Args:
        width: length of a feature vector.
        scale: first value of σ, which is trained with the weights.

    >>> head = Cosine(4, scale=2.0)
    >>> head.grow(3)
    >>> scores = head(torch.randn(5, 4))
    >>> scores.shape, bool(scores.abs().max() <= 2.0)
    (torch.Size([5, 3]), True)
    """

    def __init__(self, width: int, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, width))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    @property
    def classes(self) -> int:
        """How many classes it scores."""
        return len(self.weight)

    def grow(self, classes: int | Sequence[str]) -> None:
        """Have a row for each of these classes, given by names or number. New rows point anywhere, with a length of
        about 0.58, as in the code of APER and RanPAC: the shorter a row is, the faster a step turns it."""
        new, width = len(names_of(classes)) - self.classes, self.weight.shape[1]
        if new > 0:
            self.weight = append_rows(self.weight, (2 * torch.rand(new, width) - 1) * width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) scores between -σ and σ."""
        return self.scale * normalize(features, dim=1) @ normalize(self.weight, dim=1).T
