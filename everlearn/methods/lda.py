"""LDA: shrinkage linear discriminant analysis of frozen features (Hayes & Kanan, 2020)."""

from __future__ import annotations

from typing import Literal

from everlearn.backbones.backbone import Backbone
from everlearn.heads.gaussian import Gaussian
from everlearn.methods.simplecil import SimpleCIL
from everlearn.settings import Seed, Shrinkage


class LDA(SimpleCIL):
    """Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis. Hayes & Kanan,
    CVPR Workshops 2020, https://arxiv.org/abs/1909.01520

    Freeze the encoder; a class is a Gaussian around the mean of its features, with one covariance
    for all classes. The statistics are sums, so the result does not depend on the order or the
    number of tasks. The paper updates after every example and shrinks by 1e-4; here the head is
    solved once a task, and by default shrinks as far as the number of examples asks.

    Args:
        backbone: a pre-trained encoder, frozen.
        shrinkage: weight of the spherical part of the covariance, at most 1; "oas" takes it
            from the statistics (oracle approximating shrinkage, Chen et al., 2010).
        seed: unused; nothing is random.

    Relations: `simplecil` is the same with a spherical covariance and cosines, `klda` the same on
    kernel features, `fecam` has one covariance per class.

    >>> from everlearn import backbones
    >>> LDA(backbones.load("tiny")).param_groups()
    []
    """

    def __init__(self, backbone: Backbone, *, shrinkage: Shrinkage | Literal["oas"] = "oas", seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.head = Gaussian(backbone.width, shrinkage=shrinkage)
