"""ER-ACE: replay that compares new examples with the classes of their own batch alone (Caccia et al., 2022)."""

from __future__ import annotations

from torch import Tensor

from everlearn.losses import cross_entropy
from everlearn.method import Tags
from everlearn.methods.er import ER
from everlearn.streams.stream import Examples


class ERACE(ER):
    """New Insights on Reducing Abrupt Representation Change in Online Continual Learning. Caccia, Aljundi, Asadi,
    Tuytelaars, Pineau & Belilovsky, ICLR 2022, https://arxiv.org/abs/2104.05025

    The loss is asymmetric. Of a new example it is the cross-entropy over the classes that occur in its batch: new
    classes, whose features still lie among those of old ones, therefore do not push the old classes away. Of a replayed
    example it is the cross-entropy over all classes, which tells old and new classes apart. A batch of a single class
    teaches nothing of its own then.

    As in `er`, a task's examples enter the memory when the task ends, so that in the first task no example is compared
    with a class outside of its batch.

    Args:
        backbone: a pre-trained encoder.
        settings: those of `er`.

    Relations: `er` compares new examples with all classes; `lwf`, which keeps none, with those of the task.

    >>> from everlearn import backbones
    >>> ERACE(backbones.load("tiny"), memory_size=10).memory.limits
    (10, None)
    """

    tags = Tags(family="replay", trains="backbone")

    def new_loss(self, batch: Examples) -> Tensor:
        scores, labels = self.scores(batch.inputs), self.labels(batch)
        self._answered(batch, scores, labels)
        return cross_entropy(scores, labels, labels.unique().tolist()).mean()
