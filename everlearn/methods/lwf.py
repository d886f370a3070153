"""Learning without Forgetting: the old model's answers on the new data (Li & Hoiem, 2016)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.losses import distillation
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.settings import Factor, Strength
from everlearn.streams.stream import Examples, Task
from everlearn.teacher import Teacher


class LwF(Finetune):
    """Learning without Forgetting. Li & Hoiem, ECCV 2016 / TPAMI 2018, https://arxiv.org/abs/1606.09282

    Cross-entropy over the task's classes plus distillation (temperature 2) from the model as it was
    before the task, on the new inputs, over the old classes: the new labels do not push the old scores
    down, for which there are no examples now. No old data is kept, only the old model; its answers are
    computed once per example and come from the feature store afterwards.

    Departures: the paper is told the task, and distils the head of each old task by itself; here one softmax compares
    all old classes. The distillation is multiplied by the squared temperature (Hinton et al., 2015), which the paper
    does not do: with temperature 2 a strength of 0.25 has the gradient of the paper's lambda of 1. The paper first
    trains the new head alone, which is left out. The step is that of AdamW.

    Args:
        backbone: a pre-trained encoder.
        strength: weight of the distillation: lambda of the paper, divided by the squared temperature.
        temperature: T of the paper. The other settings are those of `finetune`.

    Relations: `feature_distillation` holds the features instead of the answers, `ewc` the weights.

    >>> from everlearn import backbones
    >>> LwF(backbones.load("tiny")).teacher is None
    True
    """

    tags = Tags(family="regularisation", trains="backbone")
    masked = True

    def __init__(
        self, backbone: Backbone, *, strength: Strength = 1.0, temperature: Factor = 2.0, **settings: Any
    ) -> None:
        super().__init__(backbone, **settings)
        self.strength, self.temperature = strength, temperature
        self.teacher: Teacher | None = None

    def begin_task(self, task: Task) -> None:
        if task.index > 0:
            self.teacher = Teacher(self)
        super().begin_task(task)

    def losses(self, batch: Examples) -> Tensor:
        scores = self.scores(batch.inputs)
        losses = self.classification_losses(scores, batch)
        if self.teacher is None:
            return losses
        before = self.teacher.scores(batch.inputs, augmented=self.task.augment)
        return losses + self.strength * distillation(scores, before, temperature=self.temperature)
