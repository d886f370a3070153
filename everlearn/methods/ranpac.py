"""RanPAC: ridge regression on randomly projected features (McDonnell et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.curriculum import Order
from everlearn.heads.cosine import Cosine
from everlearn.heads.ridge import Ridge
from everlearn.method import Method, Tags
from everlearn.methods.simplecil import SimpleCIL
from everlearn.peft.unified import DeltaSet, train_part
from everlearn.schedules import cosine
from everlearn.settings import Count, LargeSizeOrZero, Rate, Seed
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class RanPAC(SimpleCIL):
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
        train: what phase 1 trains: the paper's adapters, another insertion, or "full".
        epochs: passes over the first task in phase 1.
        batch_size: examples per step in phase 1.
        lr: learning rate of phase 1 (SGD, momentum 0.9, weight decay 5e-4, cosine schedule).
        select: how the ridge penalty is chosen: on a "sample" of everything seen, which depends on the
            content of the examples alone, or on the "current" task only, as published.
        seed: of the projection, the adapters and the order of examples.
        order: of the examples in phase 1: "shuffled", "easy first", "hard first" or "mixed" (`Method`).
        rescore: steps after which easy and hard are told anew.

    Relations: `simplecil` is the same without projection and ridge.

    >>> from everlearn import backbones
    >>> RanPAC(backbones.load("tiny"), width=64, first_session=False).param_groups()
    []
    """

    tags = Tags(family="representation", trains="peft", exact=True)
    Optimizer = torch.optim.SGD
    schedule = staticmethod(cosine)

    def __init__(
        self, backbone: Backbone, *, width: LargeSizeOrZero = 10000, first_session: bool = True,
        train: str = "adaptformer", epochs: Count = 20, batch_size: Count = 48, lr: Rate = 0.01,
        select: Literal["sample", "current"] = "sample", seed: Seed = 0, order: Order = "shuffled",
        rescore: Count = 50,
    ) -> None:  # fmt: skip
        Method.__init__(self, backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, order=order,
                        rescore=rescore)  # fmt: skip
        self.head = Ridge(backbone.width, projection=width, seed=seed, select=select, rounding=backbone.rounding)
        self.first_head = Cosine(backbone.width)
        self.deltas = train_part(backbone, train, seed=seed) if first_session else DeltaSet()
        trained = (*backbone.parameters(), *self.deltas.parameters()) if first_session else ()
        self.adapted = [p for p in trained if p.requires_grad]

    @property
    def is_exact(self) -> bool:
        return not self.adapted and self.head.select == "sample"

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.index == 0:
            self.first_head.grow(task.class_names)
        for parameter in self.adapted:
            parameter.requires_grad_(task.index == 0)

    def param_groups(self) -> list[dict[str, Any]]:
        if not self.adapted or self.task.index > 0:
            return []
        return [{"params": [*self.adapted, *self.first_head.parameters()], "momentum": 0.9, "weight_decay": 5e-4}]

    def losses(self, batch: Examples) -> Tensor:
        return self.classification_losses(self.first_head(self.features(batch.inputs)), batch)

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self.first_head(self.embed(inputs))

    def end_task(self, task: Task) -> None:
        for parameter in self.adapted:
            parameter.requires_grad_(False)
        super().end_task(task)
