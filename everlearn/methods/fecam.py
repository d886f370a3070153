"""FeCAM: nearest class mean, each class with a covariance of its own (Goswami et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.memory.gaussians import Gaussians
from everlearn.method import Method, Tags
from everlearn.state import Stateful
from everlearn.streams.stream import Task


class FeCAM(Method):
    """FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual Learning.
    Goswami, Liu, Twardowski & van de Weijer, NeurIPS 2023, https://arxiv.org/abs/2309.14062

    Freeze the encoder; predict the class whose mean is nearest by the Mahalanobis distance of the
    class's own covariance, shrunk and scaled to a correlation matrix, so that the distances of
    different classes compare. The statistics are sums, so the result does not depend on the order
    or the number of tasks. It keeps 12 `width`² bytes a class.

    The defaults are the authors' for pre-trained encoders: no power transform, γ1 = 1, γ2 = 0. For
    a ResNet trained on the first task they take `power` = 0.5, γ1 = γ2 = 1.

    Args:
        backbone: a pre-trained encoder, frozen.
        power: λ of Tukey's transform, which makes skewed features more Gaussian; 1 leaves them as they
            are. The paper has x^λ for features after a ReLU; encoders give negative ones too, so here
            it is sign(x) |x|^λ, the same where x ≥ 0. Features are scaled to length one before it.
        gamma1: how much of the mean variance is added to every variance.
        gamma2: how much of the mean covariance is added to every covariance; at most gamma1.
        seed: unused; nothing is random.

    Relations: `lda` has one covariance for all classes, `simplecil` none.

    >>> from everlearn import backbones
    >>> FeCAM(backbones.load("tiny")).param_groups()
    []
    """

    tags = Tags(family="representation", trains="nothing")

    def __init__(
        self, backbone: Backbone, *, power: float = 1.0, gamma1: float = 1.0, gamma2: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(backbone, seed=seed)
        self.head = Mahalanobis(backbone.width, power, gamma1, gamma2)

    def end_task(self, task: Task) -> None:
        self.head.add(self.embed(task.train.inputs), self.labels(task.train))
        self.head.solve()


class Mahalanobis(Stateful):
    """Scores minus the squared distance to each class's mean, in the class's own metric. A class
    without examples scores least."""

    factors: Tensor

    def __init__(self, width: int, power: float, gamma1: float, gamma2: float) -> None:
        super().__init__()
        if not gamma1 >= gamma2 >= 0 or gamma1 == 0 or power <= 0:
            raise EverlearnError("fecam: power and gamma1 are above 0, and gamma2 is from 0 to gamma1")
        self.power, self.gamma1, self.gamma2 = power, gamma1, gamma2
        self.statistics = Gaussians(width)
        self.register_buffer("factors", torch.zeros(0, width, width))

    def grow(self, classes: int) -> None:
        """Have `classes` classes in all; a class counts once examples of it are added and solved for."""
        new = max(0, classes - len(self.factors))
        self.statistics.grow(classes)
        self.factors = torch.cat([self.factors, torch.eye(self.factors.shape[1]).to(self.factors).repeat(new, 1, 1)])

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count (n, width) features with their (n,) labels; `solve` makes them felt."""
        self.statistics.add(self.transform(features.double()), labels)

    def transform(self, features: Tensor) -> Tensor:
        """Tukey's ladder of powers, odd in the features' direction."""
        unit = normalize(features, dim=1)
        return unit.sign() * unit.abs() ** self.power

    def correlations(self) -> Tensor:
        """(classes, width, width): each class's covariance, shrunk and scaled to a diagonal of ones."""
        covariance = self.statistics.covariances()
        width = covariance.shape[1]
        variance = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]  # V1 of the paper
        shared = (covariance.mean((1, 2), keepdim=True) * width - variance) / max(1, width - 1)  # V2
        # A class of one example has no variance at all; with 1 it gets the identity.
        variance = variance.masked_fill(variance == 0, 1.0)
        eye = torch.eye(width).to(covariance)
        shrunk = covariance + self.gamma1 * variance * eye + self.gamma2 * shared * (1 - eye)
        deviation = shrunk.diagonal(dim1=1, dim2=2).sqrt()
        return shrunk / (deviation[:, :, None] * deviation[:, None])

    def solve(self) -> None:
        """Factor the correlations of all classes in one batch."""
        self.factors = torch.linalg.cholesky(self.correlations()).float()

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) scores."""
        rows, means = self.transform(features), self.statistics.means.to(features)
        # Class by class: one batched solve needs classes × n × width numbers at once, and is slower on a CPU.
        white = (
            torch.linalg.solve_triangular(factor, (rows - mean).T, upper=False)
            for factor, mean in zip(self.factors.to(features), means, strict=True)
        )
        scores = torch.stack([-distances.square().sum(0) for distances in white], dim=1)
        return scores.masked_fill(self.statistics.counts == 0, torch.finfo(scores.dtype).min)
