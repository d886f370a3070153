"""Anchored: what methods have in common that hold important weights near their old values."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.memory.per_parameter import PerParameter
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.optimizer_step import OptimizerStep
from everlearn.settings import Strength
from everlearn.streams.stream import Task


class Anchored(Finetune):
    """From the second task on the loss gains factor · strength · sum importance_i (w_i - w*_i)², with w* the anchor. A
    subclass sets the importance of each trained weight and its anchor, which are kept, where a task ends or begins.

    Args:
        strength: the factor of the penalty. The other settings are those of `finetune`.

    >>> from everlearn import backbones
    >>> Anchored(backbones.load("tiny"), strength=10.0).strength
    10.0
    """

    tags = Tags(family="regularisation", trains="backbone")
    factor: ClassVar[float] = 1.0

    def __init__(self, backbone: Backbone, *, strength: Strength = 1.0, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.strength = strength
        self.importance, self.anchor = PerParameter(), PerParameter()

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        # New rows of the head get importance zero: nothing holds them yet.
        for kept in (self.importance, self.anchor):
            kept.grow(self.named_parameters())

    def hold(self, optimizer_step: OptimizerStep) -> Tensor | float:
        """Add the penalty to the gradients, and return it: a scalar. In the first task no weight is important yet, and
        the pass over all weights takes about as long as a step."""
        if self.task.index == 0:
            return 0.0
        strength = self.factor * self.strength
        return optimizer_step.add_penalty(strength, self.trained(), self.anchor, self.importance)
