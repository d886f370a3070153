"""GDumb: a balanced memory, and a model that is trained on it alone from the beginning (Prabhu et al., 2020)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.first_weights import FirstWeights
from everlearn.memory.memory import Memory
from everlearn.memory.policies import Balanced
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.schedules import cosine
from everlearn.settings import Count
from everlearn.streams.stream import Examples, Task


class GDumb(Finetune):
    """GDumb: A Simple Approach that Questions Our Progress in Continual Learning. Prabhu, Torr & Dokania, ECCV 2020,
    https://www.robots.ox.ac.uk/~tvg/publications/2020/gdumb.pdf

    The memory keeps equally many examples of each class, whatever comes. With every task the model starts again from
    its first weights and is trained on the memory alone. Nothing is carried over but the memory, so this is a test of
    all other methods with a memory: what they learn from the stream must be worth more than that. The learning rate
    falls to zero along a cosine. The memory is read in as many epochs as are asked for, on an online stream too, whose
    examples are only stored.

    Departures: the first weights are those of the pre-trained encoder, the optimizer is that of `finetune`, the cosine
    has no restarts, and images are not mixed (CutMix). In a class that has its share, each example is equally likely to
    be kept, whereas the paper keeps the first ones.

    Args:
        backbone: a pre-trained encoder.
        memory_size: most examples kept, of all classes together; None for no such limit.
        memory_bytes: most bytes of examples kept; None for no such limit.
        epochs: passes over the memory, with each task.
        settings: the others of `finetune`.

    Raises:
        EverlearnError: no example is within the bytes.

    Relations: `joint` keeps all examples; `er` goes on from the weights of the task before, and sees all of the task.

    >>> from everlearn import backbones, engine
    >>> from everlearn.testing import toy_stream
    >>> method = GDumb(backbones.load("tiny"), memory_size=12, epochs=1)
    >>> for task in toy_stream():
    ...     _ = engine.learn(method, task)
    >>> method.memory.examples().labels.bincount().tolist()
    [2, 2, 2, 2, 2, 2]
    """

    tags = Tags(family="replay", trains="backbone")
    schedule = staticmethod(cosine)

    def __init__(
        self, backbone: Backbone, *, memory_size: Count | None = 500, memory_bytes: Count | None = None,
        epochs: Count = 30, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, **settings)
        self.memory = Memory(memory_size, bytes=memory_bytes, policy=Balanced(), seed=self.seed)
        self._first = FirstWeights(self.trained())

    def begin_task(self, task: Task) -> None:
        self._first.restore(self.trained())
        super().begin_task(task)

    def batches(self, task: Task) -> Sequence[Examples]:
        # The memory as it will be: it changes in `end_task` alone, so that a resumed task finds the same batches.
        memory = copy.deepcopy(self.memory)
        memory.add(task.train)
        if len(task.train) and not len(memory):
            raise EverlearnError(f"method.memory_bytes: {memory.limits[1]} bytes hold no example, and nothing else is "
                                 "learned from: give more")  # fmt: skip
        return self.shuffled(memory.examples(), replace(task, batch_size=None))

    def end_task(self, task: Task) -> None:
        self.memory.add(task.train)
