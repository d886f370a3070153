"""Gaussian: linear discriminant analysis in closed form, on features or on a random kernel map of them."""

from __future__ import annotations

import math
import zlib
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.errors import EverlearnError
from everlearn.heads.gaussians import ROWS, SharedGaussians

LEAST = torch.finfo(torch.float32).min  # the score of a class without examples; finite, for softmax


class Gaussian(SharedGaussians):
    """Scores hᵀ S⁻¹ μ - ½ μᵀ S⁻¹ μ: class means μ, one covariance S for all, equal priors. No training.

    h = f, or where `rff` is above 0 a random Fourier map of the feature's direction f̂ = f / |f|:
    h = √(2 / rff) cos(f̂ Ω + φ) with Ω ~ N(0, 2γ) and φ ~ U(0, 2π), so that h(x)·h(y) is about
    exp(-γ |x̂ - ŷ|²) (Rahimi & Recht, 2007,
    https://papers.nips.cc/paper/3182-random-features-for-large-scale-kernel-machines).

    S is the pooled covariance within classes C, shrunk: (1 - s) C + s (tr C / length of h) I.

    Precision: statistics, the solve and the weight are float64; features are mapped in float32. The map
    is not saved but drawn again from `seed`; its checksum is saved, and loading fails where it differs.

    Size: 8 M² bytes + 16 M per class, M the length of h. Solving needs 16 M² bytes for a moment.

    Args:
        width: length of a feature vector.
        rff: number of random Fourier features; 0 for none.
        gamma: γ of the kernel. Directions are at most 2 apart, whatever the encoder, so that a fixed
            value serves; a value taken from the first task would make the head depend on that task.
        shrinkage: s, or "oas": the value of least expected error for a Gaussian with as many
            examples (Chen, Wiesel, Eldar & Hero, 2010, https://arxiv.org/abs/0907.4698).
        seed: of the random map.

    >>> head = Gaussian(2, shrinkage=0.5)
    >>> head.grow(2)
    >>> head.add(torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]]), torch.tensor([0, 0, 1, 1]))
    >>> _ = head.solve()
    >>> head(torch.tensor([[0.0, 0.0], [3.0, 9.0]])).tolist()
    [[0.0, -16.0], [0.0, 8.0]]
    """

    solved = {"weight": (1, 0.0), "offset": (0, LEAST)}  # noqa: RUF012
    frequencies: Tensor
    phases: Tensor
    weight: Tensor
    offset: Tensor

    def __init__(
        self, width: int, *, rff: int = 0, gamma: float = 0.1,
        shrinkage: float | Literal["oas"] = "oas", seed: int = 0,
    ):  # fmt: skip
        super().__init__(rff or width)
        if shrinkage != "oas" and (isinstance(shrinkage, str) or not 0 < shrinkage <= 1):
            raise EverlearnError(f"gaussian: shrinkage is 'oas' or above 0 and at most 1, but it is {shrinkage!r}")
        if not 0 < gamma < math.inf:
            raise EverlearnError(f"gaussian: gamma is above 0 and finite, but it is {gamma}")
        self.rff, self.shrinkage = rff, shrinkage
        draw = torch.Generator().manual_seed(seed)
        frequencies = math.sqrt(2 * gamma) * torch.randn(width, rff, generator=draw)
        phases = 2 * math.pi * torch.rand(rff, generator=draw)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("phases", phases, persistent=False)
        drawn = frequencies.numpy().tobytes() + phases.numpy().tobytes()
        self.register_buffer("checksum", torch.tensor([width, rff, zlib.crc32(drawn)]))
        self.register_buffer("weight", torch.zeros(rff or width, 0, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(0, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) float32 scores, with the weight of the last `solve`."""
        parts = [self.expand(rows.float()).double() @ self.weight + self.offset for rows in features.split(ROWS)]
        return torch.cat(parts).float()

    def expand(self, features: Tensor) -> Tensor:
        """h in the precision of the features, (n, M)."""
        if not self.rff:
            return features
        angles = torch.addmm(self.phases.to(features), normalize(features, dim=1), self.frequencies.to(features))
        return angles.cos_().mul_(math.sqrt(2 / self.rff))

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Set the weight S⁻¹ μ from the statistics by one Cholesky factorisation, and return it, (M, classes)."""
        means = self.means.T
        covariance = shrink(self.covariances()[0], int(self.freedom), self.shrinkage)
        self.weight = torch.cholesky_solve(means, torch.linalg.cholesky(covariance)).contiguous()  # for safetensors
        self.offset = (means * self.weight).sum(0).mul(-0.5).masked_fill(self.counts == 0, LEAST)
        return self.weight


def shrink(covariance: Tensor, freedom: int, shrinkage: float | Literal["oas"]) -> Tensor:
    """(1 - s) C + s (tr C / p) I; the identity where C is zero.

    Args:
        covariance: C, (p, p). freedom: examples that it was estimated from, less the means.
        shrinkage: s, or "oas".

    >>> shrink(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), 9, 0.5).tolist()
    [[2.5, 0.0], [0.0, 3.5]]
    """
    p, scale = len(covariance), covariance.diagonal().mean()
    if scale == 0:  # no class has two different examples: distances are all there is
        return torch.eye(p).to(covariance)
    if shrinkage == "oas":
        spread = covariance.square().mean()
        excess = (freedom + 1) * (spread - scale**2 / p)
        shrinkage = float(((spread + scale**2) / excess).clamp(0, 1)) if excess > 0 else 1.0
    shrunk = (1 - shrinkage) * covariance
    shrunk.diagonal().add_(shrinkage * scale)
    return shrunk
