"""APER (ADAM): adapt on the first task, then prototypes of old and adapted features (Zhou et al., 2024)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.backbone import Backbone
from everlearn.heads.cosine import Cosine
from everlearn.heads.prototype import Prototype
from everlearn.method import Method, Tags, seeded
from everlearn.peft.unified import insert
from everlearn.streams.stream import Examples, Input, Task

INSERTED = {"adapter": "adaptformer", "ssf": "ssf", "vpt_shallow": "prompt", "vpt_deep": "deep_prompt"}


class APER(Method):
    """Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity
    are All You Need. Zhou, Cai, Ye, Zhan & Liu, IJCV 2024, https://arxiv.org/abs/2303.07338

    On the first task the model is adapted in one of five forms, with a cosine head; then all is
    frozen. A class is the mean of its features, pre-trained and adapted side by side, and the nearest
    by cosine wins. Adapters read what the feed-forward layer reads, behind the layer norm, without
    dropout; the released code's read what comes before the norm.

    Args:
        backbone: a pre-trained encoder; the form "finetune" trains a copy of it.
        form: adapter, ssf, vpt_shallow, vpt_deep or finetune.
        length: tokens of a prompt, for the two VPT forms.
        epochs: passes over the first task.
        batch_size: examples a step.
        lr: learning rate of the first task (SGD, momentum 0.9, cosine schedule).
        weight_decay: of the first task.
        seed: of what is inserted, the cosine head and the order of examples.

    Relations: `simplecil` has the pre-trained half alone; `ranpac` puts ridge regression behind.

    >>> from everlearn import backbones
    >>> APER(backbones.load("tiny"), form="ssf").head.sums.shape[1]
    64
    """

    tags = Tags(family="representation", trains="peft")
    Optimizer = torch.optim.SGD
    schedule = "cosine"

    def __init__(
        self, backbone: Backbone, *,
        form: Literal["adapter", "ssf", "vpt_shallow", "vpt_deep", "finetune"] = "adapter", length: int = 5,
        epochs: int = 20, batch_size: int = 48, lr: float = 0.01, weight_decay: float = 5e-4, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.form, self.weight_decay = form, weight_decay
        self.head = Prototype(2 * backbone.width)
        self.first_head = Cosine(backbone.width)
        with seeded(seed):
            self.adapted: nn.Module = (
                copy.deepcopy(backbone) if form == "finetune" else insert(backbone, INSERTED[form], length=length)
            )

    @property
    def learner(self) -> Backbone:
        """What is adapted on the first task: the backbone with what was inserted, or the copy."""
        return cast(Backbone, self.adapted) if self.form == "finetune" else self.backbone

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.index == 0:
            self.first_head.grow(len(task.class_names))
        self.adapted.requires_grad_(task.index == 0)

    def param_groups(self) -> list[dict[str, Any]]:
        if self.task.index > 0:
            return []
        trained = [*self.adapted.parameters(), *self.first_head.parameters()]
        return [{"params": trained, "momentum": 0.9, "weight_decay": self.weight_decay}]

    def loss(self, batch: Examples) -> torch.Tensor:
        return F.cross_entropy(self.first_head(self.learner(batch.inputs)), self.labels(batch))

    def end_task(self, task: Task) -> None:
        self.adapted.requires_grad_(False)
        self.head.add(self.embed(task.train.inputs), self.labels(task.train))

    def embed(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Pre-trained and adapted features side by side, (n, 2 width)."""
        with self.backbone.pretrained():
            before = self.backbone.encode(inputs)
        after = self.learner.encode(inputs) if self.learner.is_frozen else self.learner.infer(inputs)
        return torch.cat([before, after], dim=1)
