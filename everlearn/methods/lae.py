"""LAE: a block that learns and its slow average answer together (Gao et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.merge import ema_step
from everlearn.method import Method, Tags
from everlearn.optimizer_step import OptimizerStep
from everlearn.peft.unified import DeltaSet, Point, insert, points_of
from everlearn.seeds import seeded
from everlearn.settings import Count, Rate, Seed, Share
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class LAE(Method):
    """A Unified Continual Learning Framework with General Parameter-Efficient Tuning. Gao, Zhao, Sun, Xi, Zhang, Ghanem
    & Zhang, ICCV 2023, https://arxiv.org/abs/2303.10070

    An online insertion learns each task with cross-entropy over the task's own classes. In the first steps of every
    later task the head learns alone, so that its new rows do not drag the insertion along. An offline insertion, a copy
    of the online one when the second task begins, follows it: after each step it becomes decay · offline +
    (1 - decay) · online. Both share one head, and a class gets the larger of its two probabilities. The two insertions
    are all that is kept, whatever the number of tasks.

    After n steps the start still weighs decay**n in the offline insertion: with the published 0.9999, 99 % after 100
    steps and 37 % after 10,000. Where tasks have few steps it hardly moves, and stays the model of the first task; a
    decay of about 1 - 1/steps lets it follow within a task.

    Args:
        backbone: a pre-trained encoder, frozen.
        train: the insertion: an adapter, LoRA or prefix, as "lora(size=5, sites=('key', 'value'))" or, whose
            attention counts in full as published, "prefix(compensated=True)". By default the published adapter.
        blocks: how many blocks, from the first, get it, unless `train` names blocks itself.
        decay: of the offline insertion, for each step.
        frozen: share of the steps of each later task in which the head learns alone.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the insertion (Adam).
        head_lr: learning rate of the head, for features of norm 1; it is divided by their norm. With None it is `lr`.
        seed: of the insertion, the order of examples and the new rows of the head.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: `train` is no insertion into blocks.

    Relations: `sequential` is the online insertion alone; `cofima` averages once a task, and all weights.

    >>> from everlearn import backbones
    >>> [delta.site_name for delta in LAE(backbones.load("tiny"), blocks=1).deltas]
    ['block 0 attention']
    """

    tags = Tags(family="mixture", trains="peft")
    Optimizer = torch.optim.Adam
    masked = True

    def __init__(
        self, backbone: Backbone, *, train: str = "gelu(sites=('attention',), size=5)", blocks: Count = 5,
        decay: Share = 0.9999, frozen: Share = 0.6, epochs: Count = 5, batch_size: Count = 24, lr: Rate = 0.0028125,
        head_lr: Rate | None = 0.15, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.decay, self.frozen, self.alone, self.head_lr = decay, frozen, 0, head_lr
        self.points = first_blocks(train, min(blocks, backbone.depth))
        with seeded(seed):
            self.deltas = insert(backbone, self.points)
        self.offline = DeltaSet()

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.deltas.requires_grad_(True)
        if task.index > 0 and not len(self.offline):
            self.offline = insert(self.backbone, self.points).to(self.backbone.device).requires_grad_(False)
            self.offline.load_state_dict(self.deltas.state_dict())
            self.offline.switch(False)

    def batches(self, task: Task) -> Sequence[Examples]:
        batches = super().batches(task)
        self.alone = int(self.frozen * len(batches)) if task.index > 0 else 0
        return batches

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        self.deltas.requires_grad_(optimizer_step.number >= self.alone)
        loss = super().step(batch, optimizer_step)
        ema_step(dict(self.offline.named_parameters()), dict(self.deltas.named_parameters()), self.decay)
        return loss

    def end_task(self, task: Task) -> None:
        self.deltas.requires_grad_(True)

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        """Log-probabilities (n, classes): the larger of the two of each class."""
        online = super().predict(inputs).log_softmax(1)
        if not len(self.offline):
            return online
        with self.deltas.only(False), self.offline.only():
            return torch.maximum(online, super().predict(inputs).log_softmax(1))


def first_blocks(train: str, blocks: int) -> tuple[Point, ...]:
    """The points of an insertion, in the first blocks unless it names its own.

    Raises:
        EverlearnError: it is none, or not one into blocks.

    >>> [point.blocks for point in first_blocks("lora", 2)], first_blocks("lora(blocks=(1,))", 2)[0].blocks
    ([(0, 1)], (1,))
    """
    name, points, _ = points_of(train)
    if not points:
        raise EverlearnError(f"method.train: lae takes adapters, LoRA or prefixes, not {name}: give one of them, such "
                             "as prefix(compensated=True)")  # fmt: skip
    return tuple(point if point.blocks else replace(point, blocks=tuple(range(blocks))) for point in points)
