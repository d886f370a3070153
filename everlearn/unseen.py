"""What a pair of image and text encoders knows of the classes that it has not learned yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from everlearn.method import Method
from everlearn.metrics.accuracy_matrix import mean
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Stream, Task

CHUNK = 1024


class Unseen:
    """Zero-shot accuracy: an image gets the class, among those that are not learned yet, whose name is nearest.

    "Transfer" of Zheng et al., ICCV 2023, https://arxiv.org/abs/2303.06628, for classes instead of data sets. An update
    of the encoders that hurts what they know in general shows here, long before the classes are learned.

    Args:
        stream: its later tasks are what is unseen.
        method: it answers by `Method.zero_shot`.

    >>> from everlearn import backbones, methods, streams
    >>> from everlearn.backbones.image_text import ImageText
    >>> pair = ImageText(backbones.load("tiny"), backbones.load("tiny"), name="pair", scale=20.0)
    >>> stream = streams.load("digits", tasks=5, max_train_per_class=2, max_test_per_class=2)
    >>> [score is None for score in Unseen(stream, methods.get("frozen")(pair)).untouched()]
    [False, False, False, False, True]
    """

    def __init__(self, stream: Stream, method: Method) -> None:
        self.stream, self.method = stream, method
        self.is_asked = stream.goal == "classes" and stream.input == "image" and method.backbone.is_image_text

    def untouched(self) -> list[float | None]:
        """After each task the accuracy that the untouched pair has on the classes unseen then; empty where it is not
        asked. To be called before anything is learned."""
        if not self.is_asked:
            return []
        backbone = self.method.backbone

        def plain(inputs: Sequence[Input], names: Sequence[str]) -> torch.Tensor:
            return normalize(backbone.encode(inputs)) @ normalize(backbone.class_features(names)).T

        with backbone.pretrained():
            return [self._accuracy(task, plain) for task in self.stream]

    def after(self, task: Task) -> float | None:
        """The accuracy of the present pair on the test examples of classes that come after `task`; None where there
        are none, or it is not asked."""
        return self._accuracy(task, self.method.zero_shot) if self.is_asked else None

    def _accuracy(
        self, task: Task, answer: Callable[[Sequence[Input], Sequence[str]], torch.Tensor]
    ) -> float | None:  # fmt: skip
        seen, names = len(task.class_names), self.stream.class_names
        later = Examples.concatenate([one.test for one in self.stream.tasks[task.index + 1 :]])
        later = later[(later.labels >= seen).nonzero().flatten()]
        if not len(later):
            return None
        inputs = later.bare()
        with torch.no_grad():
            found = torch.cat([answer(inputs[start : start + CHUNK], names[seen:]).argmax(1).cpu()
                               for start in range(0, len(inputs), CHUNK)])  # fmt: skip
        return int((found + seen == later.labels).sum()) / len(later)


def summary(untouched: Sequence[float | None], now: Sequence[float | None]) -> dict[str, Any] | None:
    """The entry `zero_shot` of results.json, from the accuracies after each task; None where none was asked.

    >>> summary([0.8, 0.6, None], [0.4, 0.3, None])["retention"]
    0.5
    """
    known = [(before, after) for before, after in zip(untouched, now, strict=False) if before is not None]
    if not known:
        return None
    before, after = (mean(column) for column in zip(*known, strict=True))
    return {"untouched": list(untouched), "now": list(now), "retention": after / before if before and after is not None
            else None}  # fmt: skip
