"""Elastic Weight Consolidation: important weights stay near their old values (Kirkpatrick et al., 2017)."""

from __future__ import annotations

from typing import Any

from everlearn.backbones.backbone import Backbone
from everlearn.fisher import FisherLabels, diagonal_fisher
from everlearn.methods.anchored import Anchored
from everlearn.settings import Count, Share, Strength
from everlearn.streams.stream import Task


class EWC(Anchored):
    """Overcoming catastrophic forgetting in neural networks. Kirkpatrick, Pascanu, Rabinowitz et al.,
    PNAS 2017, https://arxiv.org/abs/1612.00796, in the online form of Schwarz et al., ICML 2018,
    https://arxiv.org/abs/1805.06370: one Fisher and one anchor, whatever the number of tasks.

    The loss gains strength/2 · sum F_i (w_i - w*_i)², with w* the weights at the end of the last task. F is the
    diagonal Fisher information: at the end of a task it becomes decay · F + that of the task, one example at a time.
    With decay 1 it is the sum over all tasks. Only weights that are trained have an F and a w*.

    Departures: the first paper keeps an F and a w* for each task. In the second one the penalty has decay · F where it
    has F here. The step is that of AdamW, with its weight decay.

    Args:
        backbone: a pre-trained encoder.
        strength: lambda of the paper.
        decay: share of the old Fisher that the new one is added to (gamma of the online form): with 1 the Fishers of
            all tasks are summed, with less those of older tasks count less.
        fisher: the labels whose log-probability is differentiated: one for each example, drawn from the model
            ("sampled"); every class, weighted by its probability ("exact": one backward pass for every class, so it
            suits few classes); or the label of the data ("empirical", which is not the Fisher information but common).
        fisher_examples: examples of each task that the Fisher is estimated on. The other settings are those
            of `finetune`.

    Relations: `si` and `mas` measure the importance of a weight in other ways; `lwf` holds the answers instead of the
    weights.

    >>> from everlearn import backbones
    >>> EWC(backbones.load("tiny"), strength=10.0).strength
    10.0
    """

    factor = 0.5

    def __init__(
        self, backbone: Backbone, *, strength: Strength = 1000.0, decay: Share = 1.0,
        fisher: FisherLabels = "sampled", fisher_examples: Count = 200, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, strength=strength, **settings)
        self.decay, self.fisher_labels, self.fisher_examples = decay, fisher, fisher_examples

    def end_task(self, task: Task) -> None:
        fisher = diagonal_fisher(self, task.train, self.fisher_examples, labels=self.fisher_labels)
        for name in fisher:
            self.importance[name].mul_(self.decay).add_(fisher[name])
        self.anchor.update(self.trained())
