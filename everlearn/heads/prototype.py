"""Prototype: a class is the mean of its features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.errors import ContractError
from everlearn.state import Stateful, grown


class Prototype(Stateful):
    """Scores cos(f, mean of the class): nearest class mean, with nothing trained.

    Sums and counts are kept, in float64, so the head does not depend on the order or the grouping
    of what was added (up to float64 rounding), two heads merge by addition and a record leaves by
    subtraction. A class without examples scores -1, the least a cosine can be.

    Args:
        width: length of a feature vector.

    >>> head = Prototype(2)
    >>> head.grow(3)
    >>> head.add(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    >>> head(torch.tensor([[2.0, 0.0]])).tolist()
    [[1.0, 0.0, -1.0]]
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))

    @property
    def classes(self) -> int:
        return len(self.counts)

    def grow(self, classes: int) -> None:
        """Have `classes` classes in all; nothing changes where there are that many."""
        self.sums, self.counts = grown(self.sums, classes), grown(self.counts, classes)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count (n, width) features with their (n,) labels.

        Raises:
            ContractError: where a label is outside the classes that the head has grown to.
        """
        self._accumulate(features, labels, 1)

    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Undo `add` for these examples.

        Raises:
            ContractError: where more examples of a class leave than were added.
        """
        self._accumulate(features, labels, -1)

    def merge(self, other: Prototype) -> None:
        """Count all that `other` has seen; label k is the same class in both."""
        self.grow(other.classes)
        self.sums[: other.classes] += other.sums.to(self.sums.device)
        self.counts[: other.classes] += other.counts.to(self.counts.device)

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) cosines."""
        means = normalize(self.sums, dim=1).to(features.dtype)  # the direction of a sum is that of the mean
        return (normalize(features, dim=1) @ means.T).masked_fill(self.counts == 0, -1.0)

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        labels = labels.to(self.counts.device)
        counts = self.counts + sign * class_counts(labels, self.classes)
        if (counts < 0).any():
            raise ContractError("remove: a class would be left with fewer than 0 examples")
        self.sums.index_add_(0, labels, features.detach().to(self.sums), alpha=sign)
        self.counts = counts


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """How many of the (n,) labels are of each class, (classes,).

    Raises:
        ContractError: where a label is not below `classes`.
    """
    counts = torch.bincount(labels, minlength=classes)
    if len(counts) > classes:
        raise ContractError(f"label {len(counts) - 1} in a head of {classes} classes: call grow in begin_task first")
    return counts
