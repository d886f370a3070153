"""Learning without Forgetting: the old model's answers on the new data (Li & Hoiem, 2016)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.backbones.backbone import Backbone
from everlearn.losses import distillation
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.settings import Factor, Strength
from everlearn.streams.stream import Examples, Task


class LwF(Finetune):
    """Learning without Forgetting. Li & Hoiem, ECCV 2016 / TPAMI 2018, https://arxiv.org/abs/1606.09282

    Cross-entropy over the task's classes plus distillation (temperature 2) from the model as it was
    before the task, on the new inputs, over the old classes: the new labels do not push the old scores
    down, for which there are no examples now. No old data is kept, only the old model; its answers are
    computed once per example and come from the feature store afterwards.

    Args:
        backbone: a pre-trained encoder.
        strength: weight of the distillation, lambda of the paper.
        temperature: T of the paper. The other settings are those of `finetune`.

    Relations: `ewc` holds the weights instead of the answers.

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
        self.teacher: Any = None

    def begin_task(self, task: Task) -> None:
        if task.index > 0:
            now = nn.ModuleDict({"backbone": self.backbone, "deltas": self.deltas, "head": self.head})
            self.teacher = copy.deepcopy(now).requires_grad_(False).eval()
        super().begin_task(task)

    def losses(self, batch: Examples) -> Tensor:
        scores = self.scores(batch.inputs)
        losses = self.classification_losses(scores, batch)
        if self.teacher is None:
            return losses
        with torch.no_grad():
            teacher = self.teacher["backbone"]
            seen = teacher.infer(batch.inputs) if self.task.augment else teacher.encode(batch.inputs)
            before = self.teacher["head"](seen)
        return losses + self.strength * distillation(scores, before, temperature=self.temperature)
