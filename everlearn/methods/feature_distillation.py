"""Feature distillation: on new inputs the features stay near those of the old model (Jung et al., 2016)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.settings import Strength
from everlearn.streams.stream import Examples, Task
from everlearn.teacher import Teacher


class FeatureDistillation(Finetune):
    """Less-forgetting Learning in Deep Neural Networks. Jung, Ju, Jung & Kim, 2016, https://arxiv.org/abs/1607.00122

    Cross-entropy over the task's classes plus strength/2 · ||f(x) - f_old(x)||² / ||f_old(x)||² for every new input x,
    where f are the features that the head reads and f_old those of the model as it was before the task. No old data is
    kept, only the old model; its features are computed once per example and come from the feature store afterwards.

    Departures: the paper does not divide by ||f_old(x)||²; so a strength that was chosen for one encoder serves others,
    whose features may be fifty times as long. The paper freezes the classifier, because its tasks have the same
    classes. Here the head learns new classes; since the cross-entropy compares the task's classes only, it gives the
    rows of other classes no gradient.

    Args:
        backbone: a pre-trained encoder.
        strength: weight of the distillation. The other settings are those of `finetune`.

    Relations: `lwf` distils the scores instead of the features. Where only the head is trained, the features cannot
    move, and `lwf` is the one to take.

    >>> from everlearn import backbones
    >>> FeatureDistillation(backbones.load("tiny")).teacher is None
    True
    """

    tags = Tags(family="regularisation", trains="backbone")
    masked = True

    def __init__(self, backbone: Backbone, *, strength: Strength = 1.0, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.strength = strength
        self.teacher: Teacher | None = None

    def begin_task(self, task: Task) -> None:
        if task.index > 0:
            self.teacher = Teacher(self)
        super().begin_task(task)

    def losses(self, batch: Examples) -> Tensor:
        features = self.features(batch.inputs)
        losses = self.classification_losses(self.head(features), batch)
        if self.teacher is None:
            return losses
        before = self.teacher.features(batch.inputs, augmented=self.task.augment)
        moved = (features - before).square().sum(1) / before.square().sum(1).clamp(min=1e-12)
        return losses + 0.5 * self.strength * moved
