"""Joint training: keep all data and retrain on everything at every task (the upper reference)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.memory.memory import Memory
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.schedules import cosine
from everlearn.streams.stream import Examples, Task


class Joint(Finetune):
    """What continual learning tries to reach without paying for it: each task starts again from the
    first weights and trains on every example so far (Caruana, 1997,
    https://doi.org/10.1023/A:1007379606734). It keeps all data, and its cost grows with every task.

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
        return self.shuffled(Examples.concatenate([self.memory.examples(), task.train]), task)

    def end_task(self, task: Task) -> None:
        self.memory.add(task.train)
