"""Gaussians: count, mean and covariance of every class, exact however the features arrive."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from everlearn.heads.statistics import Statistics

ROWS = 1024  # examples mapped at once: bounds the temporary where features are expanded


class Gaussians(Statistics):
    """One Gaussian per class, with a covariance of its own.

    Only float64 sums of features and of their products are kept. A product of two float32 features is
    exact in float64, so nothing is lost by not centring them first.

    Size: 8 `width`² + 8 `width` bytes per class.

    Args:
        width: length of a feature vector, or of what `expand` makes of it.

    >>> gaussians = Gaussians(2)
    >>> gaussians.grow(2)
    >>> gaussians.add(torch.tensor([[0.0, 0.0], [2.0, 4.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
    >>> gaussians.means.tolist(), gaussians.covariances()[0].tolist()
    ([[1.0, 2.0], [5.0, 5.0]], [[2.0, 4.0], [4.0, 8.0]])
    """

    by_class = {"sums": 0, "moments": 0}  # noqa: RUF012
    sums: Tensor
    moments: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        rows = 0 if "moments" in self.by_class else 1
        self.register_buffer("moments", torch.zeros(rows, width, width, dtype=torch.float64))  # Σ f fᵀ

    @property
    def means(self) -> Tensor:
        """(classes, width) float64; zeros for a class without examples."""
        return self.sums / self.counts.clamp_min(1)[:, None]

    @property
    def freedom(self) -> Tensor:
        """Degrees of freedom of each covariance: the examples less the mean taken from them, at least 1."""
        return (self.counts - (self.counts > 0).long()).clamp_min(1)

    def covariances(self, classes: Tensor | slice = slice(None)) -> Tensor:
        """(classes, width, width) float64, unbiased, of all or of the given classes. Zeros for a class that
        does not have two different examples."""
        own = self.moments[classes], self.sums[classes, :, None], self.means[classes, None]
        return without_rounding(torch.baddbmm(*own, alpha=-1), own[0]).div_(self.freedom[classes, None, None])

    def expand(self, features: Tensor) -> Tensor:
        """What the Gaussians are of: the features themselves, or a map of them."""
        return features

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        for rows, classes in zip(features.to(self.sums).split(ROWS), labels.split(ROWS), strict=True):
            expanded = self.expand(rows)
            self.sums.index_add_(0, classes, expanded, alpha=sign)
            self._add_products(expanded, classes, sign)

    def _add_products(self, features: Tensor, labels: Tensor, sign: int) -> None:
        if len(labels):
            present, sizes = labels.unique(return_counts=True)
            # Rows of zeros below the shorter classes add nothing: one product for all classes.
            rows = pad_sequence(features[labels.argsort()].split(sizes.tolist()), batch_first=True)  # type: ignore[no-untyped-call]
            self.moments.index_add_(0, present, rows.mT @ rows, alpha=sign)


def without_rounding(scatters: Tensor, moments: Tensor) -> Tensor:
    """(n, width, width) sums of centred products, in place: zeros where they are nothing but the rounding of the sums
    of products that they were taken from, as where all examples of a class are the same."""
    left, all_ = (products.diagonal(dim1=1, dim2=2).sum(1) for products in (scatters, moments))
    return scatters.masked_fill_((left <= 1e-12 * all_)[:, None, None], 0.0)


class SharedGaussians(Gaussians):
    """One Gaussian per class; all classes share one covariance, that of the features around their own means.

    Size: 8 `width`² bytes + 8 `width` per class.

    >>> gaussians = SharedGaussians(1)
    >>> gaussians.grow(2)
    >>> gaussians.add(torch.tensor([[1.0], [3.0], [10.0], [14.0]]), torch.tensor([0, 0, 1, 1]))
    >>> gaussians.covariances().tolist()
    [[[5.0]]]
    """

    by_class = {"sums": 0}  # noqa: RUF012
    over_all = ("moments",)

    @property
    def freedom(self) -> Tensor:
        """(1,) degrees of freedom: the examples less the means taken from them, at least 1."""
        return (self.counts - (self.counts > 0).long()).sum(0, keepdim=True).clamp_min(1)

    def covariances(self, classes: Tensor | slice = slice(None)) -> Tensor:
        """(1, width, width) float64, unbiased. Zeros where no class has two different examples."""
        return without_rounding(self.moments - self.sums.T @ self.means, self.moments).div_(self.freedom)

    def _add_products(self, features: Tensor, labels: Tensor, sign: int) -> None:
        self.moments[0].addmm_(features.T, features, alpha=sign)
