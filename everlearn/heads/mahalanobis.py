"""Mahalanobis: the nearest class mean, where each class measures distances by its own covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.errors import EverlearnError
from everlearn.heads.gaussians import Gaussians
from everlearn.state import check_saved

AT_ONCE = 16  # classes whose correlations are factored together


class Mahalanobis(Gaussians):
    """Scores minus the squared distance to the mean of each class, in the metric of that class: its
    covariance, shrunk and scaled to a correlation matrix, so that the distances of different classes
    compare (FeCAM, Goswami et al., 2023, https://arxiv.org/abs/2309.14062). A class without examples
    scores least.

    Size: 12 `width`² bytes per class.

    Args:
        width: length of a feature vector.
        power: λ of Tukey's transform, sign(x) |x|^λ, of features of length one.
        gamma1: how much of the mean variance is added to every variance.
        gamma2: how much of the mean covariance is added to every covariance; at most gamma1.

    Raises:
        EverlearnError: power or gamma1 is not above 0, or gamma2 is not between 0 and gamma1.

    >>> head = Mahalanobis(2)
    >>> head.grow(["cat", "dog"])
    >>> head.add(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]), torch.tensor([0, 0, 1, 1]))
    >>> _ = head.solve()
    >>> head(torch.tensor([[3.0, 0.0], [0.0, 3.0]])).argmax(1).tolist()
    [0, 1]
    """

    factors: Tensor

    def __init__(self, width: int, power: float = 1.0, gamma1: float = 1.0, gamma2: float = 0.0) -> None:
        super().__init__(width)
        if not (0 < power < math.inf and 0 < gamma1 < math.inf and 0 <= gamma2 <= gamma1):
            raise EverlearnError("fecam: power and gamma1 are above 0 and finite, and gamma2 is from 0 to gamma1, but "
                                 f"they are {power}, {gamma1} and {gamma2}")  # fmt: skip
        self.power, self.gamma1, self.gamma2 = power, gamma1, gamma2
        self.register_buffer("checksum", torch.tensor([width, power]))  # heads of other sums do not merge
        self.register_buffer("factors", torch.zeros(0, width, width))

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """As every head, and the factors are those of all classes, or of none before the first `solve`."""
        super().check_saved(saved)
        if (factors := saved.get("factors")) is not None:
            check_saved("factors", factors, factors, (self.classes if len(factors) else 0, *self.factors.shape[1:]))

    def expand(self, features: Tensor) -> Tensor:
        """Tukey's ladder of powers, odd in the features' direction: (n, width) to (n, width)."""
        unit = normalize(features, dim=1)
        return unit.sign() * unit.abs() ** self.power

    def correlations(self, classes: Tensor | slice = slice(None)) -> Tensor:
        """(classes, width, width): the covariance of each of these classes, shrunk and scaled to a diagonal of ones."""
        covariance = self.covariances(classes)
        width = covariance.shape[1]
        variance = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]  # V1 of the paper
        shared = (covariance.mean((1, 2), keepdim=True) * width - variance) / max(1, width - 1)  # V2
        # A class of one example has no variance at all; with 1 it gets the identity.
        variance = variance.masked_fill(variance == 0, 1.0)
        eye = torch.eye(width).to(covariance)
        shrunk = covariance + self.gamma1 * variance * eye + self.gamma2 * shared * (1 - eye)
        deviation = shrunk.diagonal(dim1=1, dim2=2).sqrt()
        return shrunk / (deviation[:, :, None] * deviation[:, None])

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Factor the correlations of all classes, (classes, width, width); of a few at once, because it needs several
        times their size.

        Raises:
            EverlearnError: a correlation matrix is singular, as with gamma2 = gamma1 and few examples.
        """
        factors = self.factors.new_empty(self.moments.shape)
        for start in range(0, self.classes, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            found, failed = torch.linalg.cholesky_ex(self.correlations(some))
            if failed.any():
                which = start + int(failed.nonzero()[0])
                raise EverlearnError(f"fecam: the covariance of class {which} cannot be inverted: give a larger "
                                     "gamma1, or a gamma2 that is further below it")  # fmt: skip
            factors[some] = found.float()
        self.factors = factors
        return factors

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) scores."""
        rows, means = self.expand(features), self.means.to(features)
        least = torch.finfo(features.dtype).min
        scores = features.new_full((len(features), self.classes), least)
        # Class by class: one batched solve needs classes × n × width numbers at once, and is slower on a CPU.
        for k, factor in enumerate(self.factors.to(features)):
            white = torch.linalg.solve_triangular(factor, (rows - means[k]).T, upper=False)
            scores[:, k] = -white.square().sum(0)
        return scores.masked_fill(self.counts == 0, least)
