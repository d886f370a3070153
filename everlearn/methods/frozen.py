"""No learning at all: what the pre-trained model can do by itself (the lower reference)."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.heads.zero_shot import ZeroShot
from everlearn.method import Method, Tags
from everlearn.settings import Seed
from everlearn.streams.stream import Task


class Frozen(Method):
    """The untouched model: the lower reference for every gain, and the yardstick for every loss.

    Retrieval ranks with the pre-trained embeddings. Text classification is zero-shot: the class
    whose *name* is nearest (Yin et al., 2019, https://arxiv.org/abs/1909.00161). An encoder that reads
    images alone cannot read a name, so it is refused there.

    Args:
        backbone: a pre-trained encoder.
        seed: unused; nothing is random.

    Relations: `simplecil` is the next step up: one mean per class, and still no training.

    >>> from everlearn import backbones
    >>> from everlearn.streams import Task
    >>> method = Frozen(backbones.load("tiny"))
    >>> method.begin_task(Task(0, "task 1", (0, 1), ("cat", "dog")))
    >>> method.predict(["dog"]).argmax().item()
    1
    """

    tags = Tags(family="baseline", trains="nothing", goals=("classes", "ranking"), needs=("class names",))

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.head = ZeroShot(backbone.width)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.goal == "classes":
            self.head.set(self.backbone.class_features(task.class_names))
