"""KLDA: linear discriminant analysis of random Fourier features (Momeni, Mazumder & Liu, 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partialmethod
from typing import Any, Literal

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.heads.gaussian import Gaussian
from everlearn.methods.simplecil import SimpleCIL
from everlearn.seeds import derived_seed
from everlearn.settings import Factor, LargeSize, Seed, Shrinkage, Size


class KLDA(SimpleCIL):
    """Continual Learning Using a Kernel-Based Method Over Foundation Models. Momeni, Mazumder & Liu,
    AAAI 2025, https://arxiv.org/abs/2412.15571

    Freeze the encoder and map its features at random so that inner products approximate a Gaussian
    kernel; a class is the mean of its mapped features, and all classes share one covariance. With more than
    one member (the paper's KLDA-E) the probabilities of several maps are averaged. The statistics
    are sums, so the result does not depend on the order or the number of tasks.

    Departures: features are scaled to length one before the map, so that one `gamma` serves every
    encoder (the paper tunes it for each); the covariance is shrunk, so that it can be inverted.

    Args:
        backbone: a pre-trained encoder, frozen.
        rff: number of random Fourier features, D of the paper (there 5,000). A member keeps 8 `rff`² bytes.
        gamma: γ of the kernel exp(-γ |x - y|²) between features of length one.
        members: number of random maps; 1 is KLDA, more is KLDA-E.
        shrinkage: weight of the spherical part of the covariance, at most 1; "oas" takes it
            from the statistics.
        seed: of the random maps.

    Relations: `lda` is the same without the map; `ranpac` has another random map and ridge regression.

    >>> from everlearn import backbones
    >>> len(KLDA(backbones.load("tiny"), rff=64, members=3).head)
    3
    """

    def __init__(
        self, backbone: Backbone, *, rff: LargeSize = 2000, gamma: Factor = 0.1, members: Size = 1,
        shrinkage: Shrinkage | Literal["oas"] = "oas", seed: Seed = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, seed=seed)
        self.head = Ensemble(
            Gaussian(backbone.width, rff=rff, gamma=gamma, shrinkage=shrinkage, seed=derived_seed(seed, member))
            for member in range(members)
        )


class Ensemble(torch.nn.ModuleList):
    """Heads that see the same examples, and whose probabilities are averaged."""

    def __iter__(self) -> Iterator[Gaussian]:  # type: ignore[override]
        return super().__iter__()  # type: ignore[return-value]

    @property
    def class_names(self) -> tuple[str, ...]:
        return next(iter(self)).class_names

    def _each(self, verb: str, *arguments: Any) -> None:
        for head in self:
            getattr(head, verb)(*arguments)

    grow = partialmethod(_each, "grow")
    add = partialmethod(_each, "add")
    remove = partialmethod(_each, "remove")
    solve = partialmethod(_each, "solve")

    def merge(self, other: Ensemble) -> None:
        for mine, theirs in zip(self, other, strict=True):
            mine.merge(theirs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, width) features -> (n, classes) logarithms of the mean probabilities, whose softmax gives these."""
        each = torch.stack([head(features).double().log_softmax(1) for head in self])
        return (each.logsumexp(0) - math.log(len(self))).float()
