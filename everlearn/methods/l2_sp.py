"""L2-SP: the weights are pulled towards the pre-trained ones (Li et al., 2018)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.memory.per_parameter import PerParameter
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.optimizer_step import OptimizerStep
from everlearn.settings import Strength
from everlearn.streams.stream import Examples


class L2SP(Finetune):
    """Explicit Inductive Bias for Transfer Learning with Convolutional Networks. Li, Grandvalet & Davoine, ICML 2018,
    https://arxiv.org/abs/1802.01483

    The loss gains strength/2 · sum (w_i - w0_i)², with w0 the pre-trained weights, in every task; and head_strength/2
    times the squared norm of the new head, which has no pre-trained value: the rows of the classes of the task. Where
    an insertion is trained, w0 are its first values, with which the encoder is the pre-trained one. One w0 is kept for
    each trained weight of the encoder.

    Departures: the paper learns one task. In later ones the rows of old classes are not pulled to zero, because Adam
    makes a step of full size of the smallest gradient, and they would soon be there. The penalty of the paper takes the
    place of weight decay; here that of AdamW stays, so that strength and head_strength 0 give `finetune`.

    Args:
        backbone: a pre-trained encoder.
        strength: alpha of the paper.
        head_strength: beta of the paper. The other settings are those of `finetune`.

    Relations: `ewc`, `si` and `mas` hold important weights only, and where the last task left them.

    >>> from everlearn import backbones
    >>> L2SP(backbones.load("tiny")).strength
    0.1
    """

    tags = Tags(family="regularisation", trains="backbone")

    def __init__(
        self, backbone: Backbone, *, strength: Strength = 0.1, head_strength: Strength = 0.01, **settings: Any
    ) -> None:
        super().__init__(backbone, **settings)
        self.strength, self.head_strength = strength, head_strength
        self.anchor = PerParameter()
        self.anchor.update({name: p for name, p in self.trained().items() if not name.startswith("head.")})

    def loss(self, batch: Examples) -> Tensor:
        new = list(self.task.classes)
        squared_norm = sum(p[new].square().sum() for p in self.head.parameters())
        return super().loss(batch) + 0.5 * self.head_strength * squared_norm

    def hold(self, optimizer_step: OptimizerStep) -> Tensor | float:
        return optimizer_step.add_penalty(0.5 * self.strength, self.trained(), self.anchor)
