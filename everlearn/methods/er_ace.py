"""ER-ACE: replay that compares new examples with the classes of their own batch alone (Caccia et al., 2022)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.batches import Batches
from everlearn.losses import cross_entropy
from everlearn.memory.memory import Memory
from everlearn.method import Tags
from everlearn.methods.er import ER, Replayed
from everlearn.optimizer_step import OptimizerStep
from everlearn.streams.stream import Examples, Task


class ERACE(ER):
    """New Insights on Reducing Abrupt Representation Change in Online Continual Learning. Caccia, Aljundi, Asadi,
    Tuytelaars, Pineau & Belilovsky, ICLR 2022, https://arxiv.org/abs/2104.05025

    The loss is asymmetric. Of a new example it is the cross-entropy over the classes that occur in its batch: new
    classes, whose features still lie among those of old ones, therefore do not push the old classes away. Of a replayed
    example it is the cross-entropy over all classes, which tells old and new classes apart. A batch of a single class
    teaches nothing of its own then.

    Examples of the task are therefore replayed as well as old ones, unlike in `er`: replayed old examples alone would
    push the new classes down, and nothing would raise them. What is replayed is the memory as the task will leave it
    (with the policy "most forgotten" chance still decides which of the task); on an online stream, what of it has come.

    Departures: the paper has no tasks, and fills a reservoir while it trains. Here, but for online streams, an example
    of the task may be replayed before its first turn. The head of the released code has all classes from the beginning,
    and compares new examples with those that no example has shown yet too.

    Args:
        backbone: a pre-trained encoder.
        settings: those of `er`.

    Relations: `er` compares new examples with all classes; `lwf`, which keeps none, with those of the task.

    >>> from everlearn import backbones
    >>> ERACE(backbones.load("tiny"), memory_size=10).memory.limits
    (10, None)
    """

    tags = Tags(family="replay", trains="backbone")

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.number = 0  # of the step
        self._coming: tuple[Memory, ...] = ()  # in a tuple: it is no state of its own

    def batches(self, task: Task) -> Sequence[Examples]:
        batches = super().batches(task)
        columns = {"came": torch.full((len(task.train),), -1)}  # the step that an example came with; -1 is before all
        if task.batch_size:
            assert isinstance(batches, Batches)
            for step in range(len(batches)):
                columns["came"][batches.rows(step)] = step
        if self.events is not None:
            columns["forgotten"] = torch.zeros(len(task.train), dtype=torch.long)
        # The memory itself changes in `end_task` alone, so that a resumed task finds the same examples.
        coming = copy.deepcopy(self.memory)
        coming.add(task.train, **columns)
        coming.draws = self.memory.draws  # counted in one place, which is saved
        self._coming = (coming,)
        return batches

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        self.number = optimizer_step.number
        return super().step(batch, optimizer_step)

    def new_loss(self, batch: Examples) -> Tensor:
        scores, labels = self.scores(batch.inputs), self.labels(batch)
        self._answered(batch, scores, labels)
        return cross_entropy(scores, labels, labels.unique().tolist()).mean()

    def replays(self, batch: Examples) -> Iterator[Replayed]:
        if len(drawn := self.replayed(batch)):
            old = self.viewed(drawn)
            yield old.inputs, lambda: self.losses(old).mean()

    def replayed(self, batch: Examples) -> Examples:
        if not self._coming:
            return super().replayed(batch)
        came = self._coming[0].examples().columns["came"]
        among = (came < self.number).nonzero()[:, 0].tolist()
        return self._coming[0].sample(self.replay_batch_size, alike=True, among=among)

    def end_task(self, task: Task) -> None:
        self._coming = ()
        super().end_task(task)
