"""How good the embeddings of an encoder still are on data that it was never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from everlearn.method import Method
from everlearn.streams.stream import Examples, Stream, Task

MOST = 1000
"""Test examples of the last task that are asked; of more, some that are evenly spaced."""


class GeneralAbility:
    """The last task of a stream stands for all that is never trained on, until it is learned itself. Its test examples
    are embedded by the pre-trained encoder, and by the method after each earlier task. The score is the share of them
    whose nearest class mean is that of their own class, where the mean of a class leaves the example out. No head takes
    part, so this is what training has done to the encoder in general: it shows in a frozen encoder with an insertion
    too.

    Args:
        stream: of classes, with two tasks or more; others are not asked.
        method: it answers by `Method.embed`.

    >>> from everlearn import backbones, methods, streams
    >>> stream = streams.load("digits", tasks=2, max_train_per_class=2, max_test_per_class=5)
    >>> asked = GeneralAbility(stream, methods.get("frozen")(backbones.load("tiny")))
    >>> asked.untouched() == asked.after(stream[0]), asked.after(stream[1])
    (True, None)
    """

    def __init__(self, stream: Stream, method: Method) -> None:
        self.method = method
        self.last = stream[-1].index
        self.is_asked = stream.goal == "classes" and len(stream) > 1
        every = stream[-1].test
        rows = torch.linspace(0, len(every) - 1, min(MOST, len(every))).round().long()
        self.examples: Examples = every[rows]

    def untouched(self) -> float | None:
        """The score of the pre-trained encoder; None where it is not asked, or no class has two examples."""
        if not self.is_asked:
            return None
        with self.method.backbone.pretrained():
            return leave_one_out(self.method.backbone.encode(self.examples.bare()), self.examples.labels)

    def after(self, task: Task) -> float | None:
        """The score of the method's encoder now; None after the last task, where the examples are no longer new."""
        if not self.is_asked or task.index == self.last:
            return None
        with torch.no_grad():
            return leave_one_out(self.method.embed(self.examples.bare()), self.examples.labels)


def leave_one_out(features: Tensor, labels: Tensor) -> float | None:
    """The share of examples whose nearest class mean, by the cosine, is that of their own class without them; among the
    classes with two examples or more. None where there is no such class.

    Args:
        features: (n, width).
        labels: (n,)

    >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.0]])
    >>> leave_one_out(points, torch.tensor([0, 0, 1, 1, 1]))
    0.8
    """
    _, places, counts = labels.unique(return_inverse=True, return_counts=True)
    several = counts[places] > 1
    if not several.any():
        return None
    units = normalize(features.detach().float().cpu(), dim=1)[several]
    own = one_hot(labels[several].unique(return_inverse=True)[1]).to(units)
    sums = own.T @ units
    scores = units @ normalize(sums, dim=1).T
    without = normalize(own @ sums - units, dim=1)  # the mean of its own class, without itself
    scores = torch.where(own.bool(), (units * without).sum(1, keepdim=True), scores)
    return int((scores.argmax(1) == own.argmax(1)).sum()) / len(own)


def summary(untouched: float | None, now: Sequence[float | None]) -> dict[str, Any] | None:
    """The entry `general` of results.json: both scores, and which share of the first the last one is, just before the
    last task is learned; None where nothing was asked.

    >>> summary(0.8, [0.6, 0.4, None])["kept"]
    0.5
    """
    known = [score for score in now if score is not None]
    if untouched is None or not known:
        return None
    return {"untouched": untouched, "now": list(now), "kept": known[-1] / untouched if untouched else None}
