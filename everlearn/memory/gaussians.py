"""Gaussians: count, mean and covariance of every class, exact however the features arrive."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from everlearn.errors import ContractError, EverlearnError
from everlearn.heads.prototype import class_counts
from everlearn.state import Stateful, grown


class Gaussians(Stateful):
    """One Gaussian a class, with a covariance of its own or one that all classes share.

    Only float64 sums of features and of their products are kept, so the result does not depend on
    the order or the grouping of what was added (about 1e-12 relative); memories merge by addition
    and an example leaves by subtraction. A product of two float32 features is exact in float64, so
    nothing is lost by not centring them first.

    Size: 8 `width`² bytes for each covariance, 8 `width` for each class.

    Args:
        width: length of a feature vector.
        shared: whether all classes share one covariance, that around their own means.

    >>> memory = Gaussians(2)
    >>> memory.grow(2)
    >>> memory.add(torch.tensor([[0.0, 0.0], [2.0, 4.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
    >>> memory.means.tolist(), memory.covariances()[0].tolist()
    ([[1.0, 2.0], [5.0, 5.0]], [[2.0, 4.0], [4.0, 8.0]])
    """

    sums: Tensor
    counts: Tensor
    moments: Tensor

    def __init__(self, width: int, *, shared: bool = False):
        super().__init__()
        self.shared = shared
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))
        self.register_buffer("moments", torch.zeros(int(shared), width, width, dtype=torch.float64))  # Σ f fᵀ

    @property
    def classes(self) -> int:
        return len(self.counts)

    @property
    def means(self) -> Tensor:
        """(classes, width) float64; zeros for a class without examples."""
        return self.sums / self.counts.clamp_min(1)[:, None]

    @property
    def freedom(self) -> Tensor:
        """Degrees of freedom of each covariance: examples less the means taken from them, at least 1."""
        own = self.counts - (self.counts > 0).long()
        return (own.sum(0, keepdim=True) if self.shared else own).clamp_min(1)

    def covariances(self, classes: Tensor | slice = slice(None)) -> Tensor:
        """(classes, width, width) float64, unbiased, of all or the given classes; (1, width, width)
        where it is shared. Zeros where no class has two examples."""
        if self.shared:
            return (self.moments - self.sums.T @ self.means).div_(self.freedom)
        own = self.moments[classes], self.sums[classes, :, None], self.means[classes, None]
        return torch.baddbmm(*own, alpha=-1).div_(self.freedom[classes, None, None])

    def grow(self, classes: int) -> None:
        """Have `classes` classes in all; nothing changes where there are that many."""
        for name in ("sums", "counts") if self.shared else ("sums", "counts", "moments"):
            setattr(self, name, grown(getattr(self, name), classes))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count (n, width) features with their (n,) labels.

        Raises:
            ContractError: where a label is outside the classes that the memory has grown to.
            EverlearnError: where a feature is not finite.
        """
        if not torch.isfinite(features).all():
            raise EverlearnError("a feature is not finite: the backbone or its input is broken; nothing was added")
        self._accumulate(features, labels, 1)

    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Undo `add` for these examples.

        Raises:
            ContractError: where more examples of a class leave than were added.
        """
        self._accumulate(features, labels, -1)

    def merge(self, other: Gaussians) -> None:
        """Count all that `other` has seen; label k is the same class in both.

        Raises:
            EverlearnError: where only one of the two shares its covariance.
        """
        if self.shared != other.shared:
            raise EverlearnError("cannot merge a shared covariance with one a class: give both the same `shared`")
        self.grow(other.classes)
        self.sums[: other.classes] += other.sums.to(self.sums.device)
        self.counts[: other.classes] += other.counts.to(self.counts.device)
        self.moments[: len(other.moments)] += other.moments.to(self.moments.device)

    @torch.no_grad()
    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        labels, features = labels.to(self.counts.device), features.to(self.sums)
        counts = self.counts + sign * class_counts(labels, self.classes)
        if (counts < 0).any():
            raise ContractError("remove: a class would be left with fewer than 0 examples")
        self.counts = counts
        self.sums.index_add_(0, labels, features, alpha=sign)
        if self.shared:
            self.moments[0].addmm_(features.T, features, alpha=sign)
        elif len(labels):
            present, sizes = labels.unique(return_counts=True)
            # Rows of zeros below the shorter classes add nothing: one product for all classes.
            rows = pad_sequence(features[labels.argsort()].split(sizes.tolist()), batch_first=True)  # type: ignore[no-untyped-call]
            self.moments.index_add_(0, present, rows.mT @ rows, alpha=sign)
