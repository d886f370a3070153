"""GaussianReplay: features of old classes, drawn from one Gaussian per class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from everlearn.heads.gaussians import Gaussians
from everlearn.state import grown

BLOCK = 256  # columns of the features drawn together
JITTER = 1e-4  # added to every variance


class GaussianReplay(Gaussians):
    """One Gaussian per class, from which features are drawn.

    The Cholesky factors of the covariances stay in memory, 4 `width`² bytes per class, and are not saved. A factor
    is computed again only if its class has new examples.

    Args:
        width: length of a feature vector.

    >>> memory = GaussianReplay(2)
    >>> memory.grow(1)
    >>> memory.add(torch.randn(50, 2) + 9, torch.zeros(50, dtype=torch.long))
    >>> [(features.shape, labels.unique().tolist()) for features, labels in memory.drawn(4, times=1)]
    [(torch.Size([4, 2]), [0])]
    """

    factors: Tensor
    factored: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("factors", torch.zeros(0, width, width), persistent=False)
        self.register_buffer("factored", torch.zeros(0, dtype=torch.long), persistent=False)  # of how many examples

    @torch.no_grad()
    def factor(self) -> None:
        """Compute the Cholesky factors of the covariances that have changed."""
        self.factors, self.factored = grown(self.factors, self.classes), grown(self.factored, self.classes)
        changed = (self.factored != self.counts).nonzero()[:, 0]
        covariances = self.covariances(changed)
        covariances.diagonal(dim1=1, dim2=2).add_(JITTER)
        factors, failed = torch.linalg.cholesky_ex(covariances.float())
        if failed.any():  # nearly singular: float32 has lost what float64 still has
            factors[failed > 0] = torch.linalg.cholesky(covariances[failed > 0]).float()
        self.factors[changed] = factors
        self.factored = self.counts.clone()

    def drawn(self, samples: int, *, times: int, shrink: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw `samples` features of every class that has examples, with their labels, `times` times. Each draw
        overwrites the one before.

        Args:
            shrink: (classes,) factors of the means; 1 by default.
        """
        self.factor()
        present = self.counts.nonzero()[:, 0]
        means = (self.means if shrink is None else self.means * shrink[:, None]).float()[present]
        factors = self.factors if len(present) == len(self.factors) else self.factors[present]
        labels = present.repeat_interleave(samples)
        noise = means.new_empty(len(present), samples, means.shape[1])
        features = torch.empty_like(noise)
        for _ in range(times):
            noise.normal_()
            for start in range(0, means.shape[1], BLOCK):
                end = start + BLOCK  # beyond it these rows of the factors are zero: a third of the work is saved
                rows = factors[:, start:end, :end]
                torch.baddbmm(means[:, None, start:end], noise[:, :, :end], rows.mT, out=features[:, :, start:end])
            yield features.flatten(0, 1), labels
