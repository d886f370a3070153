"""SimpleCIL: class means of frozen features, and nothing else (Zhou et al., 2024)."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.heads.prototype import Prototype
from everlearn.method import Method, Tags
from everlearn.settings import Seed
from everlearn.streams.stream import Task


class SimpleCIL(Method):
    """Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity
    are All You Need. Zhou, Cai, Ye, Zhan & Liu, IJCV 2024, https://arxiv.org/abs/2303.07338

    Freeze the encoder; a class is the mean of its features; predict the class of the nearest mean by
    cosine. It has no hyper-parameter and does not depend on the order or the number of tasks.

    Args:
        backbone: a pre-trained encoder, frozen.
        seed: unused; nothing is random.

    Relations: `lda`, `klda` and `fecam` keep covariances too; `ranpac` replaces the mean by ridge regression
    on random features.

    >>> from everlearn import backbones
    >>> SimpleCIL(backbones.load("tiny")).param_groups()
    []
    """

    tags = Tags(family="representation", trains="nothing", exact=True)

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.head = Prototype(backbone.width)

    def end_task(self, task: Task) -> None:
        self.head.add(self.embed(task.train.inputs), self.labels(task.train))
        self.head.solve()
