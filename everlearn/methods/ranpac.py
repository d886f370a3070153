"""RanPAC: ridge regression on randomly projected features (McDonnell et al., 2023)."""

from __future__ import annotations

from typing import Any, Literal

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.heads.cosine import Cosine
from everlearn.heads.ridge import Ridge
from everlearn.method import Method, Tags, seeded
from everlearn.peft.unified import DeltaSet, Point, insert
from everlearn.streams.stream import Task


class RanPAC(Method):
    """RanPAC: Random Projections and Pre-trained Models for Continual Learning. McDonnell, Gong,
    Parvaneh, Abbasnejad & van den Hengel, NeurIPS 2023, https://arxiv.org/abs/2307.02251

    Phase 1, on the first task only: parallel adapters are trained beside every feed-forward layer
    with a cosine head, then frozen. Phase 2, on every task: features are projected at random to
    `width` dimensions and rectified, their second moments accumulated in float64, and the head is
    the ridge solution. Without phase 1 the result does not depend on the order or number of tasks.

    Args:
        backbone: a pre-trained encoder.
        width: size of the random projection, M of the paper; 0 for none.
        first_session: whether phase 1 is run.
        bottleneck: hidden size of the adapters.
        epochs: passes over the first task in phase 1.
        batch_size: examples a step in phase 1.
        lr: learning rate of phase 1 (SGD, momentum 0.9, weight decay 5e-4, cosine schedule).
        select: how the ridge penalty is chosen: "sample" on a content-hashed sample of everything
            seen, "current" on the last task only, as published.
        seed: of the projection, the adapters and the order of examples.

    Relations: `simplecil` is the same without projection and ridge.

    >>> from everlearn import backbones
    >>> RanPAC(backbones.load("tiny"), width=64, first_session=False).param_groups()
    []
    """

    tags = Tags(family="representation", trains="peft")
    Optimizer = torch.optim.SGD
    schedule = "cosine"

    def __init__(
        self, backbone: Backbone, *, width: int = 10000, first_session: bool = True, bottleneck: int = 64,
        epochs: int = 20, batch_size: int = 48, lr: float = 0.01,
        select: Literal["sample", "current"] = "sample", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.head = Ridge(backbone.width, projection=width, seed=seed, select=select)
        self.first_head = Cosine(backbone.width)
        self.adapters = DeltaSet()
        if first_session:
            with seeded(seed):
                self.adapters = insert(backbone, Point("relu", ("mlp",), size=bottleneck, scale=0.1))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.index == 0:
            self.first_head.grow(len(task.class_names))
        self.adapters.requires_grad_(task.index == 0)

    def param_groups(self) -> list[dict[str, Any]]:
        if len(self.adapters) == 0 or self.task.index > 0:
            return []
        trained = [*self.adapters.parameters(), *self.first_head.parameters()]
        return [{"params": trained, "momentum": 0.9, "weight_decay": 5e-4}]

    def loss(self, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.first_head(self.backbone(batch.inputs)), self.labels(batch))

    def end_task(self, task: Task) -> None:
        self.adapters.requires_grad_(False)
        features, labels = self.embed(task.train.inputs), self.labels(task.train)
        self.head.add(features, labels)
        self.head.choose_lambda(features, labels)
        self.head.solve()
