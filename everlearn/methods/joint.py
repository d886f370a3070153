"""Joint training: keep all data and retrain on everything at every task (the upper reference)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from everlearn.backbones.backbone import Backbone
from everlearn.batches import Interleaved
from everlearn.errors import EverlearnError
from everlearn.first_weights import FirstWeights
from everlearn.heads.gaussian import Gaussian
from everlearn.heads.logistic import STRENGTH, Logistic, fit
from everlearn.heads.ridge import Ridge
from everlearn.memory.memory import Memory
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.schedules import cosine
from everlearn.seeds import derived_seed
from everlearn.settings import Natural
from everlearn.streams.stream import Examples, Task
from everlearn.teacher import FrozenEncoder

FITTED: dict[str, Callable[[int, int], nn.Module]] = {
    "lp": lambda width, seed: Logistic(width, seed=seed),
    "ridge": lambda width, seed: Ridge(width, projection=10000, seed=seed),
    "lda": lambda width, seed: Gaussian(width),
}
"""Solutions that train no encoder: the head that is fitted to the features of all data."""


class Joint(Finetune):
    """What continual learning tries to reach without paying for it: each task starts again from the
    first weights and trains on every example so far (Caruana, 1997,
    https://doi.org/10.1023/A:1007379606734). It keeps all data, and its cost grows with every task.

    A reference must be the best that all data allow, and which way is best depends on the data. There are five:
    "ft" trains everything and a new head; "lp-ft" fits logistic regression to the pre-trained features and trains
    everything from there, so that a new head spoils no features (Kumar et al., 2022, https://arxiv.org/abs/2202.10054);
    "lp" stops at the logistic regression; "ridge" (the head of `ranpac`) and "lda" are closed forms. `everlearn tune
    joint` chooses on validation examples. The learning rate falls to zero along a cosine.

    Where documents are ranked, a batch holds pairs of one domain: the other documents of the batch are what a query
    must not find, and documents of other domains are too easy to tell from its own. There is no head then, and
    "lp-ft" is "ft".

    Args:
        backbone: a pre-trained encoder.
        solution: how all data are learned; "lp", "ridge" and "lda" train no encoder, whatever `train` says.
        negatives: where documents are ranked, hard negatives a pair, mined once by the pre-trained model among the
            documents of the pair's domain (`everlearn.retrieval.negatives`).
        settings: those of `finetune`.

    Raises:
        EverlearnError: documents are ranked, and the solution trains no encoder.

    Relations: `finetune` is "ft" without the old data; `er` keeps a sample of it.

    >>> from everlearn import backbones
    >>> Joint(backbones.load("tiny"), solution="lda").param_groups()
    []
    """

    tags = Tags(family="baseline", trains="backbone", goals=("classes", "ranking"), retrains=True)
    schedule = staticmethod(cosine)

    def __init__(
        self, backbone: Backbone, *, solution: Literal["ft", "lp-ft", "lp", "ridge", "lda"] = "ft",
        negatives: Natural = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, **({**settings, "train": "head"} if solution in FITTED else settings))
        self.solution, self.negatives = solution, negatives
        if solution in FITTED:
            self.head = FITTED[solution](backbone.width, self.seed)
        self.memory = Memory(seed=self.seed)
        self._first = FirstWeights(self.trained())

    def begin_task(self, task: Task) -> None:
        if self.solution in FITTED and task.goal == "ranking":
            raise EverlearnError(f"method.solution: {self.solution} fits a head to classes, and this stream ranks "
                                 "documents: give ft")  # fmt: skip
        self._first.restore(self.trained())
        super().begin_task(task)
        if self.solution == "lp-ft":  # `batches` fits a head that is zero; that of a task which goes on is not
            with torch.no_grad():
                self.head.weight.zero_()

    def param_groups(self) -> list[dict[str, Any]]:
        return [] if self.solution in FITTED else super().param_groups()

    def batches(self, task: Task) -> Sequence[Examples]:
        old, new = self.memory.examples(), self._pairs(task)
        every = Examples.concatenate([old, new])
        if task.goal == "classes" and self.solution == "lp-ft" and not self.head.weight.any():
            self._probe(every)
        if task.goal == "classes" or self.curriculum is not None or not len(old):
            return self.shuffled(every, task)
        domain = torch.cat([old.columns["domain"], torch.full((len(new),), task.index)])
        parts = [self.shuffled(every[(domain == number).nonzero()[:, 0]], task) for number in domain.unique()]
        return Interleaved(parts, derived_seed(self.seed, task.index))

    def _pairs(self, task: Task) -> Examples:
        """The training examples of the task, with the negatives that the pre-trained model finds for them."""
        if task.goal == "classes" or not self.negatives:
            return task.train
        from everlearn.retrieval.negatives import mined

        first = FrozenEncoder(self)
        self._first.restore(dict(first.named_parameters()))
        return mined(first, task.train, most=self.negatives)

    @torch.no_grad()
    def _probe(self, examples: Examples) -> None:
        """Have the head begin as logistic regression on the pre-trained features."""
        with self.backbone.pretrained():
            features = self.backbone.encode(examples.inputs).float().cpu()
        weight, offset, present = fit(features / self.feature_norm, examples.labels, STRENGTH)
        self.head.weight[present] = (weight.T / self.feature_norm).to(self.head.weight)
        self.head.bias[present] = offset.to(self.head.bias)

    def end_task(self, task: Task) -> None:
        if self.solution in FITTED:  # the head keeps what it needs of the data
            self.head.add(self.embed(task.train.inputs), self.labels(task.train))
            self.head.solve()
            return
        columns = {"domain": torch.full((len(task.train),), task.index)} if task.goal == "ranking" else {}
        self.memory.add(self._pairs(task), **columns)
