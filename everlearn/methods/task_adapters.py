"""One insertion per task: nothing old is ever touched, and a router finds the insertion (Rusu et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from everlearn.backbones.backbone import Backbone
from everlearn.heads.linear import Linear
from everlearn.heads.prototype import Prototype
from everlearn.method import Method, Role, Tags
from everlearn.peft.unified import DeltaSet, insert, points_of
from everlearn.settings import Count, Rate, Seed
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class TaskAdapters(Method):
    """Parameter isolation: every task gets an insertion and a head of its own, trained alone, as in
    Progressive Neural Networks (Rusu et al., 2016, https://arxiv.org/abs/1606.04671) with adapters for
    columns (Houlsby et al., 2019, https://arxiv.org/abs/1902.00751).

    Where the stream does not tell the task at test, the class prototype nearest to the frozen feature
    chooses it. So no task forgets, and what is lost is lost by the router; its accuracy, and that of the
    heads when the task is told, are reported apart.

    Where documents are ranked, every domain gets an insertion for its queries and no head, and the domain whose mean
    query is nearest chooses it. Documents are read by the encoder without insertions, so their index never changes.

    Args:
        backbone: a pre-trained encoder, frozen.
        train: the insertion that each task gets.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the insertion (AdamW).
        head_lr: learning rate of the heads, for features of norm 1; it is divided by their norm.
        seed: of the insertions, the heads and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Relations: `sequential` shares one insertion among all tasks, and forgets; `simplecil` is the
    router alone; `lora` with `side="query"` has one insertion for the queries of all domains.

    >>> from everlearn import backbones
    >>> TaskAdapters(backbones.load("tiny"), train="lora").insertion
    'lora'
    """

    tags = Tags(family="peft", trains="peft", task_at_test="used", goals=("classes", "ranking"))

    def __init__(
        self, backbone: Backbone, *, train: str = "houlsby", epochs: Count = 5, batch_size: Count = 32,
        lr: Rate = 1e-3, head_lr: Rate = 0.1, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        points_of(train)  # refuses a wrong insertion now, not when the first task begins,
        backbone.block(0)  # and a backbone without sites
        self.insertion, self.head_lr = train, head_lr
        self.head = Prototype(backbone.width)  # the router: a prototype per class of a task, or one per domain
        self.insertions, self.heads = nn.ModuleList(), nn.ModuleList()
        self.classes: list[tuple[int, ...]] = []

    def begin_task(self, task: Task) -> None:
        self.task = task
        self.requires_grad_(False)
        self._switch(None)
        self.insertions.append(insert(self.backbone, self.insertion))
        self.heads.append(Linear(self.backbone.width))
        cast(Linear, self.heads[-1]).grow(len(task.classes))
        self.classes.append(task.classes)
        self.head.grow(len(self._owners()))

    def _owners(self) -> Tensor:
        """The task (n,) of each prototype of the router."""
        return torch.tensor([t for t, held in enumerate(self.classes) for _ in held or (t,)])

    def _switch(self, active: int | None) -> None:
        for index, deltas in enumerate(self.insertions):
            cast(DeltaSet, deltas).switch(index == active)

    def param_groups(self) -> list[dict[str, Any]]:
        head = [{"params": list(self.heads[-1].parameters()), "lr": self.head_rate}] if self.task.classes else []
        return [{"params": list(self.insertions[-1].parameters())}, *head]

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
        """What the inputs are that choose an insertion."""
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
        """Features (n, width), each example's through the insertion that the router finds; of documents, and before
        anything is learned, those without insertions."""
        if role == "document" or not self.insertions:
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
        """For each of the tasks (n,): the rows that belong to it, and their features from its insertion."""
        was_active = next((t for t, deltas in enumerate(self.insertions) if cast(DeltaSet, deltas)[0].is_active), None)
        for task in tasks.unique().tolist():
            rows = (tasks == task).nonzero()[:, 0]
            self._switch(task)
            chosen = [inputs[row] for row in rows.tolist()]
            yield rows, task, self.backbone.encode(chosen) if self.backbone.is_frozen else self.backbone.infer(chosen)
        self._switch(was_active)

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        """How often the router is right."""
        return {"router accuracy": (self.route(inputs) == task).double().mean().item()}
