"""One insertion per task: nothing old is ever touched, and a router finds the insertion (Rusu et al., 2016)."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.routed import Routed
from everlearn.peft.unified import DeltaSet, insert, points_of
from everlearn.settings import Count, Rate, Seed


class TaskAdapters(Routed):
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
        super().__init__(backbone, head_lr=head_lr, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        points_of(train)  # refuses a wrong insertion now, not when the first task begins
        self.insertion, self.insertions = train, nn.ModuleList()

    def add_task(self) -> None:
        self.insertions.append(insert(self.backbone, self.insertion))

    def switch(self, active: int | None) -> None:
        for index, deltas in enumerate(self.insertions):
            cast(DeltaSet, deltas).switch(index == active)
