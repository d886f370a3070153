"""Logistic: logistic regression on stored features, solved anew after every task (Cox, 1958)."""

from __future__ import annotations

from typing import Literal

from everlearn.backbones.backbone import Backbone
from everlearn.distillation.replay import Replay, features_for
from everlearn.errors import EverlearnError
from everlearn.heads.logistic import STRENGTH
from everlearn.heads.logistic import Logistic as Head
from everlearn.method import Method, Tags
from everlearn.methods.simplecil import SimpleCIL
from everlearn.settings import Factor, LargeCount, Seed
from everlearn.streams.stream import Task


class Logistic(SimpleCIL):
    """The Regression Analysis of Binary Sequences. Cox, Journal of the Royal Statistical Society B, 1958,
    https://doi.org/10.1111/j.2517-6161.1958.tb00292.x

    Freeze the encoder, keep the feature of every example, and fit multinomial logistic regression to all of
    them after every task. Most people try it first by hand. It does not depend on the order or the number of
    tasks. It costs memory, 2 `width` bytes for each example, and the time of a fit, which grows with what was
    seen. Features are no texts or images, but part of what an example said can be told from its feature.

    `rows` bounds both: where more were seen, a sample of them is kept, which does not depend on the order either.

    Args:
        backbone: a pre-trained encoder, frozen.
        rows: most examples whose features are kept.
        strength: C, the weight of the data against the penalty; "auto" chooses it on held-out features, which
            takes about as long as the fit.
        seed: of the choice of rows, where there are more.
        distilled: a file that `everlearn distill` wrote, whose examples stand beside the new
            ones. It must be there while tasks are learned. Weights of texts are not used.

    Raises:
        EverlearnError: the file is no such set, or of another encoder; or two models that have one are merged.

    Relations: `lda` and `ranpac` keep sums instead of features; `finetune` with `train="head"` fits the same
    head to the new task alone, and forgets; `er` with `train="head"` adds a sample of old examples.

    >>> from everlearn import backbones
    >>> Logistic(backbones.load("tiny")).param_groups()
    []
    """

    tags = Tags(family="representation", trains="nothing", retrains=True, exact=True)

    def __init__(
        self, backbone: Backbone, *, rows: LargeCount = 100_000, strength: Factor | Literal["auto"] = STRENGTH,
        seed: Seed = 0, distilled: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(backbone, seed=seed)
        self.head = Head(backbone.width, rows=rows, strength=strength, seed=seed, rounding=backbone.rounding)
        self.file = distilled
        self.distilled = Replay(seed=seed) if distilled else None

    def end_task(self, task: Task) -> None:
        if self.distilled is not None and self.file is not None:
            old = self.distilled.take(self.file, task, self.backbone, self.backbone.identity())
            if len(old):
                features = old.columns.get("feature")
                if features is None:
                    sequences = features_for(self.backbone, old)
                    features = self.embed(old.inputs) if sequences is None else sequences
                self.head.add(features.detach().to(self.backbone.device), self.labels(old))
        super().end_task(task)

    def merge(self, other: Method) -> None:
        if self.file is not None:
            raise EverlearnError("merge: both models hold the examples of the distilled set, which would count twice: "
                                 "learn both without method.distilled")  # fmt: skip
        super().merge(other)
