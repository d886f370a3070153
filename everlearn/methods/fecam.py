"""FeCAM: nearest class mean, each class with a covariance of its own (Goswami et al., 2023)."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.heads.mahalanobis import Mahalanobis
from everlearn.methods.simplecil import SimpleCIL
from everlearn.settings import Factor, Power, Seed, Strength


class FeCAM(SimpleCIL):
    """FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual Learning.
    Goswami, Liu, Twardowski & van de Weijer, NeurIPS 2023, https://arxiv.org/abs/2309.14062

    Freeze the encoder; predict the class whose mean is nearest by the Mahalanobis distance of the
    class's own covariance, shrunk and scaled to a correlation matrix, so that the distances of
    different classes compare. The statistics are sums, so the result does not depend on the order
    or the number of tasks. It keeps 12 `width`² bytes per class.

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

    def __init__(
        self, backbone: Backbone, *, power: Power = 1.0, gamma1: Factor = 1.0, gamma2: Strength = 0.0, seed: Seed = 0
    ) -> None:
        super().__init__(backbone, seed=seed)
        self.head = Mahalanobis(backbone.width, power, gamma1, gamma2)
