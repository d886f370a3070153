"""One plug-in per task: nothing old is ever touched, and a router finds the plug-in (Rusu et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.backbone import Backbone
from everlearn.heads.linear import Linear
from everlearn.heads.prototype import Prototype
from everlearn.method import Method, Tags
from everlearn.peft.unified import DeltaSet, insert
from everlearn.streams.stream import Examples, Input, Task


class TaskAdapters(Method):
    """Parameter isolation: every task gets an insertion and a head of its own, trained alone, as in
    Progressive Neural Networks (Rusu et al., 2016, https://arxiv.org/abs/1606.04671) with adapters for
    columns (Houlsby et al., 2019, https://arxiv.org/abs/1902.00751).

    At test nobody names the task: the class prototype nearest to the frozen feature does. So no task
    forgets, and what is lost is lost by the router; its accuracy and that of the heads, had it been
    right, are reported apart.

    Args:
        backbone: a pre-trained encoder, frozen.
        kind: what is inserted for a task, one of `everlearn.peft.unified.KINDS`.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate of the inserted parameters (AdamW).
        head_lr: learning rate of the heads.
        seed: of the insertions, the heads and the order of examples.

    Relations: `sequential` shares one insertion among all tasks, and forgets; `simplecil` is the
    router alone.

    >>> from everlearn import backbones
    >>> TaskAdapters(backbones.load("tiny"), kind="lora").kind
    'lora'
    """

    tags = Tags(family="peft", trains="peft", needs_boundaries=True)

    def __init__(
        self, backbone: Backbone, *, kind: str = "houlsby", epochs: int = 5, batch_size: int = 32,
        lr: float = 1e-3, head_lr: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.kind, self.head_lr = kind, head_lr
        self.head = Prototype(backbone.width)  # the router: one prototype a class and task
        self.plugins, self.heads = nn.ModuleList(), nn.ModuleList()
        self.classes: list[tuple[int, ...]] = []

    def begin_task(self, task: Task) -> None:
        self.task = task
        self.requires_grad_(False)
        self._switch(None)
        self.plugins.append(insert(self.backbone, self.kind))
        self.heads.append(Linear(self.backbone.width))
        cast(Linear, self.heads[-1]).grow(len(task.classes))
        self.classes.append(task.classes)
        self.head.grow(sum(map(len, self.classes)))

    def _switch(self, active: int | None) -> None:
        for index, plugin in enumerate(self.plugins):
            cast(DeltaSet, plugin).switch(index == active)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.plugins[-1].parameters())},
                {"params": list(self.heads[-1].parameters()), "lr": self.head_lr}]  # fmt: skip

    def loss(self, batch: Examples) -> torch.Tensor:
        labels = torch.searchsorted(torch.tensor(sorted(self.task.classes)), batch.labels)
        return F.cross_entropy(self.heads[-1](self.backbone(batch.inputs)), labels.to(self.backbone.device))

    def end_task(self, task: Task) -> None:
        self.requires_grad_(False)
        offset = sum(map(len, self.classes[:-1]))
        own = torch.searchsorted(torch.tensor(sorted(task.classes)), task.train.labels)
        self.head.add(self.frozen(task.train.inputs), offset + own.to(self.backbone.device))

    def frozen(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width) of the pre-trained encoder alone: what the router sees."""
        with self.backbone.pretrained():
            return self.backbone.encode(inputs)

    def route(self, inputs: Sequence[Input]) -> torch.Tensor:
        """The task (n,) whose class prototype is nearest."""
        tasks = torch.cat([torch.full((len(held),), t) for t, held in enumerate(self.classes)])
        return tasks[self.head(self.frozen(inputs)).argmax(1).cpu()]

    def embed(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width), each example's through the plug-in that the router finds."""
        return self._each(inputs, self.route(inputs), self.backbone.width, lambda features, task: features)

    def predict(self, batch: Examples) -> torch.Tensor:
        return self._scores(batch.inputs, self.route(batch.inputs))

    def _scores(self, inputs: Sequence[Input], tasks: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (n, classes), -inf for the classes of other tasks than `tasks`."""
        seen = 1 + max(max(held) for held in self.classes)

        def score(features: torch.Tensor, task: int) -> torch.Tensor:
            scores = features.new_full((len(features), seen), float("-inf"))
            scores[:, sorted(self.classes[task])] = self.heads[task](features).log_softmax(1)
            return scores

        return self._each(inputs, tasks, seen, score)

    def _each(
        self, inputs: Sequence[Input], tasks: torch.Tensor, width: int, of: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> torch.Tensor:
        """`of` the features of each task's plug-in, for the rows sent to it."""
        out = torch.empty(len(inputs), width, device=self.backbone.device)
        was_active = next((t for t, p in enumerate(self.plugins) if cast(DeltaSet, p)[0].is_active), None)
        for task in tasks.unique().tolist():
            rows = (tasks == task).nonzero()[:, 0].tolist()
            self._switch(task)
            chosen = [inputs[row] for row in rows]
            features = self.backbone.encode(chosen) if self.backbone.is_frozen else self.backbone.infer(chosen)
            out[rows] = of(features, task)
        self._switch(was_active)
        return out

    def measures(self, task: Task) -> dict[str, float]:
        """How often the router is right, and how often the heads are when it is told."""
        inputs, own = task.test.inputs, torch.full((len(task.test),), task.index)
        right = self._scores(inputs, own).argmax(1).cpu() == task.test.labels
        routed = self.route(inputs) == task.index
        return {"router accuracy": routed.double().mean().item(), "head accuracy": right.double().mean().item()}
