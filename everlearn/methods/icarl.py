"""iCaRL: exemplars chosen by herding, old scores that are held, and the nearest mean (Rebuffi et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, one_hot

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.heads.prototype import Prototype
from everlearn.memory.memory import Memory
from everlearn.memory.policies import Herded
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.settings import Count, Natural
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task
from everlearn.teacher import Teacher


class ICaRL(Finetune):
    """iCaRL: Incremental Classifier and Representation Learning. Rebuffi, Kolesnikov, Sperl & Lampert, CVPR 2017,
    https://arxiv.org/abs/1611.07725

    A task is learned together with the examples that the memory holds of earlier ones (the exemplars), by binary
    cross-entropy, a decision for each class: for the classes of the task the target is the label, and for all others
    the answer of the model as it was before the task. Where each task has all classes no answer is held. Its answers
    are computed once per example and come from the feature store afterwards.

    Every class keeps equally many exemplars, chosen one after the other such that their mean is near the mean of the
    class (herding). When other classes need the room, the last ones leave. The linear head is only used to learn: the
    class of an input is that with the nearest mean of exemplars, in features of length 1. The means are computed
    after every task, with the present encoder; so with train="head" the answers are those of a frozen encoder, and
    training does not change them.

    Departures: the optimizer is that of `finetune`, on a pre-trained encoder. Where a class returns in a later task,
    its new exemplars are herded on their own, and both lists are kept in turn.

    Args:
        backbone: a pre-trained encoder.
        memory_size: exemplars kept, of all classes together, at least one for each class; None for no such limit. The
            paper has 2,000.
        memory_bytes: most bytes of exemplars kept; None for no such limit.
        settings: those of `finetune`.

    Raises:
        EverlearnError: there are more classes than exemplars, or a class has none within the bytes.

    Relations: `er` draws old examples at random and answers by the head; `lwf` holds old scores without a memory;
    `simplecil` is the nearest mean of all examples, with nothing trained.

    >>> from everlearn import backbones, engine
    >>> from everlearn.testing import toy_stream
    >>> method = ICaRL(backbones.load("tiny"), memory_size=12, epochs=1)
    >>> for task in toy_stream():
    ...     _ = engine.learn(method, task)
    >>> method.memory.examples().labels.bincount().tolist()
    [2, 2, 2, 2, 2, 2]
    """

    tags = Tags(family="replay", trains="backbone")

    def __init__(
        self, backbone: Backbone, *, memory_size: Count | None = 500, memory_bytes: Natural | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, **settings)
        self.memory = Memory(memory_size, bytes=memory_bytes, policy=Herded(), seed=self.seed)
        self.means = Prototype(backbone.width)
        self.before: Teacher | None = None

    def begin_task(self, task: Task) -> None:
        classes, most = len(task.class_names), self.memory.limits[0]
        if most is not None and classes > most:
            raise EverlearnError(f"method.memory_size: {most} exemplars for {classes} classes, and a class "
                                 f"without any can never be answered: give {classes} or more")  # fmt: skip
        if task.index > 0:
            self.before = Teacher(self)
        super().begin_task(task)
        self.means.grow(task.class_names)

    def batches(self, task: Task) -> Sequence[Examples]:
        return self.shuffled(Examples.concatenate([self.memory.examples(), task.train]), task)

    def losses(self, batch: Examples) -> Tensor:
        scores, labels = self.scores(batch.inputs), self.labels(batch)
        self._answered(batch, scores, labels)
        target = one_hot(labels, scores.shape[1]).to(scores)
        if self.before is not None:
            before = self.before.scores(batch.inputs, augmented=self.task.augment).sigmoid()
            held = [label for label in range(before.shape[1]) if label not in self.task.classes]
            target[:, held] = before[:, held]
        return binary_cross_entropy_with_logits(scores, target, reduction="none").sum(1)

    def end_task(self, task: Task) -> None:
        most = len(task.train) if self.memory.limits[0] is None else self.memory.limits[0]
        known = {*self.memory.examples().labels.tolist(), *task.train.labels.tolist()}
        self.memory.add(task.train, place=Herded.places(self._directions(task.train), task.train.labels, most))
        kept = self.memory.examples()
        if without := known - set(kept.labels.tolist()):
            raise EverlearnError(f"method.memory_bytes: {self.memory.limits[1]} bytes hold no exemplar of the class "
                                 f"'{task.class_names[min(without)]}', and without any it can never be answered: give "
                                 "more")  # fmt: skip
        for sums in self.means.buffers():
            sums.zero_()
        self.means.add(self._directions(kept), self.labels(kept))

    def _directions(self, examples: Examples) -> Tensor:
        """(n, width): features of length 1."""
        return normalize(self.embed(examples.inputs))

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        return self.means(self.embed(inputs))
