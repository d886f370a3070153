"""Joint training: keep all data and retrain on everything at every task (the upper reference)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.batches import Interleaved
from everlearn.memory.memory import Memory
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.schedules import cosine
from everlearn.seeds import derived_seed
from everlearn.streams.stream import Examples, Task


class Joint(Finetune):
    """What continual learning tries to reach without paying for it: each task starts again from the
    first weights and trains on every example so far (Caruana, 1997,
    https://doi.org/10.1023/A:1007379606734). It keeps all data, and its cost grows with every task.

    Where documents are ranked, a batch holds pairs of one domain: the other documents of the batch are what a query
    must not find, and documents of other domains are too easy to tell from its own.

    Args:
        backbone: a pre-trained encoder. All settings are those of `finetune`.

    Relations: `finetune` is the same without the old data; `er` keeps a sample of it.

    >>> from everlearn import backbones
    >>> len(Joint(backbones.load("tiny")).memory)
    0
    """

    tags = Tags(family="baseline", trains="backbone", goals=("classes", "ranking"), retrains=True)
    schedule = staticmethod(cosine)

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.memory = Memory(seed=self.seed)
        # Weights that nothing trains are not kept twice; the head is still empty.
        self._first = {name: parameter.detach().clone() for name, parameter in self.trained().items()}

    def begin_task(self, task: Task) -> None:
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(self._first[name]) if not name.startswith("head.") else parameter.zero_()
        super().begin_task(task)

    def batches(self, task: Task) -> Sequence[Examples]:
        old, new = self.memory.examples(), task.train
        every = Examples.concatenate([old, new])
        if task.goal == "classes" or self.curriculum is not None or not len(old):
            return self.shuffled(every, task)
        domain = torch.cat([old.columns["domain"], torch.full((len(new),), task.index)])
        parts = [self.shuffled(every[(domain == number).nonzero()[:, 0]], task) for number in domain.unique()]
        return Interleaved(parts, derived_seed(self.seed, task.index))

    def end_task(self, task: Task) -> None:
        columns = {"domain": torch.full((len(task.train),), task.index)} if task.goal == "ranking" else {}
        self.memory.add(task.train, **columns)
