"""CoFiMA: after each task, the average of the weights before and after it (Marouf et al., 2024)."""

from __future__ import annotations

from typing import Any

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.fisher import diagonal_fisher
from everlearn.memory.before import Before
from everlearn.memory.per_parameter import PerParameter
from everlearn.merge import Weights, average, fisher_average
from everlearn.method import Tags
from everlearn.methods.slca import SLCA
from everlearn.settings import Count, Share
from everlearn.streams.stream import Task


class CoFiMA(SLCA):
    """Weighted Ensemble Models Are Strong Continual Learners. Marouf, Roy, Tartaglione & Lathuilière, ECCV 2024,
    https://arxiv.org/abs/2312.08977

    Train on each task as `slca` does. When training ends, every trained weight becomes

    ((1 - weight) F_old w_old + weight F_new w_new) / ((1 - weight) F_old + weight F_new)

    where w_old is its value before the task, w_new that after it, and F_old and F_new are the Fisher information at the
    end of the last task and of this one, so that a weight which mattered to old classes alone stays. Only then are the
    Gaussians of the new classes taken and the head is aligned: both see the averaged encoder. Rows of new classes have
    no old value and stay as they were trained. One Fisher is kept, however many tasks come, and while a task is learned
    the weights before it.

    Departures: F is the mean of the squared gradients of single examples, with labels drawn from the model, and is not
    clipped. The published code squares the gradient of the mean of a batch, in which examples cancel each other, and
    cuts it at 1e-4. Like the training, p(y|x) is over the task's own classes.

    Args:
        backbone: a pre-trained encoder.
        weight: of the new weights, the published lambda.
        fisher: whether F decides in each place; without it the average is plain (the published CoMA).
        fisher_examples: examples of each task that F is estimated on. The other settings are those of `slca`.

    Relations: with weight 1 and without Fisher it is `slca`; `interpolate` is the plain average for rankings.

    >>> from everlearn import backbones
    >>> CoFiMA(backbones.load("tiny"), fisher=False, epochs=1).weight
    0.4
    """

    tags = Tags(family="mixture", trains="backbone")

    def __init__(
        self, backbone: Backbone, *, weight: Share = 0.4, fisher: bool = True, fisher_examples: Count = 200,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, **settings)
        self.weight, self.fisher_examples = weight, fisher_examples
        self.before = Before()
        self.fisher = PerParameter() if fisher else None

    def begin_task(self, task: Task) -> None:
        if task.index > 0:  # before the head grows: new rows have no old value
            self.before.keep(self.trained())
        super().begin_task(task)
        if self.fisher is not None:
            self.fisher.grow(self.named_parameters())

    def end_task(self, task: Task) -> None:
        self.average(task)
        super().end_task(task)

    def average(self, task: Task) -> None:
        """Replace the trained weights by their average with those before the task, and keep the new Fisher."""
        now = self.trained()
        models: list[Weights] = [self.before.weights(), now]
        fishers: list[Weights] = []
        if self.fisher is not None:
            new = diagonal_fisher(self, task.train, self.fisher_examples, task.classes)
            fishers = [dict(self.fisher.items()), new]
            self.fisher.update(new)
        if task.index > 0:
            weights = [1 - self.weight, self.weight]
            merged = fisher_average(models, fishers, weights) if fishers else average(models, weights)
            with torch.no_grad():
                for name, parameter in now.items():
                    parameter.copy_(merged[name])
        self.before.clear()
