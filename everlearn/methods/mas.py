"""Memory Aware Synapses: weights that the answers are sensitive to stay (Aljundi et al., 2018)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.fisher import example_gradients
from everlearn.methods.anchored import Anchored
from everlearn.settings import Count, Strength
from everlearn.streams.stream import Task


class MAS(Anchored):
    """Memory Aware Synapses: Learning what (not) to forget. Aljundi, Babiloni, Elhoseiny, Rohrbach & Tuytelaars,
    ECCV 2018, https://arxiv.org/abs/1711.09601

    The loss gains strength · sum Omega_i (w_i - w*_i)², with w* the weights at the end of the last task. Omega_i is the
    mean of |d ||f(x)||² / dw_i| over examples x, one at a time, where f(x) are the scores of all classes seen so far.
    No label is used. The Omegas of all tasks are summed.

    One Omega and one w* are kept for each trained weight, whatever the number of tasks.

    Departures: the paper is told the task, and has a head for each. The step is that of AdamW, with its weight decay.

    Args:
        backbone: a pre-trained encoder.
        strength: lambda of the paper.
        examples: examples of each task that Omega is estimated on. The other settings are those of `finetune`.

    Relations: `ewc` asks how sensitive the log-probability of a label is, `si` how much a weight has lowered the loss.

    >>> from everlearn import backbones
    >>> MAS(backbones.load("tiny"), examples=20).strength
    1.0
    """

    def __init__(self, backbone: Backbone, *, strength: Strength = 1.0, examples: Count = 200, **settings: Any) -> None:
        super().__init__(backbone, strength=strength, **settings)
        self.examples = examples

    def end_task(self, task: Task) -> None:
        def squared_norm(scores: Tensor, row: int) -> list[tuple[float, Tensor]]:
            return [(1.0, scores.square().sum())]

        for weight, gradients in example_gradients(self, task.train, self.examples, squared_norm):
            for name, gradient in gradients.items():
                self.importance[name].add_(gradient.abs_(), alpha=weight)
        self.anchor.update(self.trained())
