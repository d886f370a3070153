"""Prototype: a class is the mean of its features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.heads.statistics import Statistics


class Prototype(Statistics):
    """Scores cos(f, mean of the class): nearest class mean, with nothing trained.

    Sums are kept in float64. A class without examples scores -1, the least a cosine can be.

    Args:
        width: length of a feature vector.

    >>> head = Prototype(2)
    >>> head.grow(["cat", "dog", "emu"])
    >>> head.add(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    >>> head(torch.tensor([[2.0, 0.0]])).tolist()
    [[1.0, 0.0, -1.0]]
    """

    by_class = {"sums": 0}  # noqa: RUF012
    sums: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) cosines."""
        means = normalize(self.sums, dim=1).to(features.dtype)  # the direction of a sum is that of the mean
        return (normalize(features, dim=1) @ means.T).masked_fill(self.counts == 0, -1.0)

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        self.sums.index_add_(0, labels, features.detach().to(self.sums), alpha=sign)
