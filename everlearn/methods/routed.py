"""The family of parameter isolation: each task has parameters and a head of its own, and a router finds the task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from everlearn.backbones.backbone import Backbone
from everlearn.heads.linear import Linear
from everlearn.heads.prototype import Prototype
from everlearn.method import Method, Role
from everlearn.settings import Rate
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class Routed(Method):
    """A frozen encoder that computes with parameters of one task at a time, and a linear head for each task.

    Where the stream does not tell the task at test, the class prototype nearest to the frozen feature chooses it. Where
    documents are ranked, a task is a domain: it has no head, the mean of its queries chooses it, and documents are read
    by the frozen encoder. Subclasses define `add_task` and `switch`.

    Args:
        backbone: a pre-trained encoder, frozen.
        head_lr: learning rate of the heads, for features of norm 1; it is divided by their norm.
    """

    def __init__(self, backbone: Backbone, *, head_lr: Rate = 0.1, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        backbone.block(0)  # refuses a backbone without sites now, not when the first task begins
        self.head_lr = head_lr
        self.head = Prototype(backbone.width)  # the router: a prototype per class of a task, or one per domain
        self.heads = nn.ModuleList()
        self.classes: list[tuple[int, ...]] = []
        self.active: int | None = None

    def add_task(self) -> None:
        """Make what the next task trains besides its head; only that may require grad afterwards."""
        raise NotImplementedError(f"{type(self).__name__} must define add_task()")

    def switch(self, active: int | None) -> None:
        """Have the encoder compute with the parameters of this task, or for None as it was pre-trained."""
        raise NotImplementedError(f"{type(self).__name__} must define switch(active)")

    def begin_task(self, task: Task) -> None:
        self.task = task
        self.requires_grad_(False)
        self.add_task()
        self.heads.append(Linear(self.backbone.width))
        cast(Linear, self.heads[-1]).grow(len(task.classes))
        self.classes.append(task.classes)
        self.head.grow(len(self._owners()))
        self._activate(len(self.heads) - 1)

    def _activate(self, active: int | None) -> None:
        self.active = active
        self.switch(active)

    def _owners(self) -> Tensor:
        """The task (n,) of each prototype of the router."""
        return torch.tensor([t for t, held in enumerate(self.classes) for _ in held or (t,)])

    def param_groups(self) -> list[dict[str, Any]]:
        heads = set(self.heads.parameters())
        own = [p for p in self.parameters() if p.requires_grad and p not in heads]
        head = [{"params": list(self.heads[-1].parameters()), "lr": self.head_rate}] if self.task.classes else []
        return [{"params": own}, *head]

    def losses(self, batch: Examples) -> Tensor:
        if batch.positives is not None:
            return super().losses(batch)
        own = self.heads[-1](self.backbone(batch.inputs))
        scores = own.new_full((len(batch), len(self.task.class_names)), -torch.inf)  # the classes of other tasks
        scores[:, sorted(self.task.classes)] = own
        return self.classification_losses(scores, batch)

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self.predict(inputs, self.task.index)

    def end_task(self, task: Task) -> None:
        self.requires_grad_(False)
        own = torch.zeros(len(task.train), dtype=torch.long)
        if task.classes:
            own = torch.searchsorted(torch.tensor(sorted(task.classes)), task.train.labels)
        first = int((self._owners() < task.index).sum())
        self.head.add(self.frozen(task.train.inputs, self._asked()), first + own.to(self.backbone.device))

    def _asked(self) -> Role | None:
        """What the inputs are that choose a task."""
        return "query" if self.task.goal == "ranking" else None

    def frozen(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        """Features (n, width) of the pre-trained encoder alone: what the router sees, and those of documents."""
        with self.backbone.pretrained(), self.backbone.reading(role):
            return self.backbone.encode(inputs)

    def route(self, inputs: Sequence[Input]) -> Tensor:
        """The task (n,) whose prototype is nearest."""
        return self._owners()[self.head(self.frozen(inputs, self._asked())).argmax(1).cpu()]

    def features(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        return self.frozen(inputs, role) if role == "document" else super().features(inputs, role)

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        """Features (n, width), each example's by the task that the router finds; of documents, and before anything is
        learned, those of the pre-trained encoder."""
        if role == "document" or not self.heads:
            return self.frozen(inputs, role)
        embedded = torch.empty(len(inputs), self.backbone.width, device=self.backbone.device)
        with self.backbone.reading(role):
            for rows, _, features in self._each(inputs, self.route(inputs)):
                embedded[rows] = features
        return embedded

    def document_space(self) -> str:
        with self.backbone.pretrained():
            return super().document_space()

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        """Log-probabilities (n, classes), -inf for the classes of other tasks than the one told or found."""
        tasks = self.route(inputs) if task is None else torch.full((len(inputs),), task)
        scores = torch.full((len(inputs), len(self.task.class_names)), float("-inf"), device=self.backbone.device)
        for rows, found, features in self._each(inputs, tasks):
            scores[rows[:, None], sorted(self.classes[found])] = self.heads[found](features).log_softmax(1)
        return scores

    def _each(self, inputs: Sequence[Input], tasks: Tensor) -> Iterator[tuple[Tensor, int, Tensor]]:
        """For each of the tasks (n,): the rows that belong to it, and their features with its parameters."""
        was_active = self.active
        try:
            for task in tasks.unique().tolist():
                rows = (tasks == task).nonzero()[:, 0]
                self._activate(task)
                chosen = [inputs[row] for row in rows.tolist()]
                encode = self.backbone.encode if self.backbone.is_frozen else self.backbone.infer
                yield rows, task, encode(chosen)
        finally:
            self._activate(was_active)

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        """How often the router is right."""
        return {"router accuracy": (self.route(inputs) == task).double().mean().item()}
