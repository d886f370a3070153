"""The family of prompt methods: the frozen feature of an example decides which prompts it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from everlearn.backbones.backbone import Backbone
from everlearn.memory.selection import Selection
from everlearn.method import Method, Role
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class Prompted(Method):
    """A frozen encoder that is given prompts of each example's own. The query is the feature of the encoder
    without prompts; it comes from the feature store, so each example is encoded without prompts once in a run.

    Here each task has one key, and an example gets what belongs to the nearest key; in training, to its own
    task's. Subclasses define `prompted`, and whatever they do otherwise.
    """

    masked = True
    reported: ClassVar[str] = "prompt selection"
    keys: nn.Parameter

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.chosen = Selection()

    def prompted(self, inputs: Sequence[Input], choice: Tensor) -> Tensor:
        """Features (n, width) with what was chosen for each input."""
        raise NotImplementedError(f"{type(self).__name__} must define prompted(inputs, choice)")

    def choose(self, queries: Tensor, learning: bool = False) -> Tensor:
        """What each of (n, width) queries is given, (n, …): here the index of a task."""
        nearest = self.cosines(queries).argmax(1)
        return nearest.fill_(self.task.index) if learning else nearest

    def cosines(self, queries: Tensor) -> Tensor:
        """(n, keys) of queries and keys."""
        return normalize(queries) @ normalize(self.keys).T

    def pull(self, queries: Tensor, choice: Tensor) -> Tensor | float:
        """(n,): what the loss gains so that the chosen keys move towards the queries."""
        return 0.0

    def features(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        return self.prompted(inputs, self.choose(self.backbone.encode(inputs), self.training))

    def losses(self, batch: Examples) -> Tensor:
        queries = self.backbone.encode(batch.inputs)
        choice = self.choose(queries, learning=True)
        scores = self.head(self.prompted(batch.inputs, choice))
        return self.classification_losses(scores, batch) + self.pull(queries, choice)

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        return self._embedded(inputs, learning=False)

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self.head(self._embedded(inputs, learning=True))

    def _embedded(self, inputs: Sequence[Input], learning: bool) -> Tensor:
        """Features (n, width) without gradient, with what each input is given when it is asked or learned."""
        choice = self.choose(self.backbone.encode(inputs), learning)
        return self.backbone.infer(inputs, lambda batch, rows: self.prompted(batch, choice[rows]))

    def head_inputs(self, inputs: Sequence[Input]) -> Tensor:
        return self.embed(inputs)

    def end_task(self, task: Task) -> None:
        self.chosen.record(self.choose(self.backbone.encode(task.train.inputs))[:, None], self.keys)

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        own = self.choose(self.backbone.encode(inputs)) == task
        return {"own prompts": own.double().mean().item()}

    def diagnostics(self) -> dict[str, Any]:
        return {self.reported: self.chosen.diagnostics()}


def voted(chosen: Tensor, keys: int, batch_size: int) -> Tensor:
    """(n, selected) choices among so many keys, where every batch of rows gets what most of its rows chose. It leaks,
    as a prediction then depends on the other examples of its batch: for `paper_compat` only."""
    votes = []
    for rows in chosen.split(batch_size):
        counts = torch.bincount(rows.flatten(), minlength=keys)
        votes.append(counts.topk(chosen.shape[1]).indices.expand(len(rows), -1))
    return torch.cat(votes)
