"""APER (ADAM): adapt on the first task, then prototypes of old and adapted features (Zhou et al., 2024)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.backbones.backbone import Backbone
from everlearn.heads.cosine import Cosine
from everlearn.heads.prototype import Prototype
from everlearn.method import Method, Role, Tags
from everlearn.peft.unified import train_part
from everlearn.schedules import cosine
from everlearn.settings import Count, Rate, Seed, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class APER(Method):
    """Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity
    are All You Need. Zhou, Cai, Ye, Zhan & Liu, IJCV 2024, https://arxiv.org/abs/2303.07338

    On the first task the model is adapted, with a cosine head; then all is frozen. A class is the mean of
    its features, pre-trained and adapted side by side, and the nearest by cosine wins. Adapters read what
    the feed-forward layer reads, after the layer norm, without dropout; those of the released code read
    what comes before the norm.

    Args:
        backbone: a pre-trained encoder; "full" trains a copy of it.
        train: what is adapted. The paper's five forms are "adaptformer", "ssf", "prompt" (VPT-shallow),
            "deep_prompt" (VPT-deep) and "full".
        epochs: passes over the first task.
        batch_size: examples per step.
        lr: learning rate of the first task (SGD, momentum 0.9, cosine schedule).
        weight_decay: of the first task.
        seed: of what is inserted, the cosine head and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Relations: `simplecil` has the pre-trained half alone; `ranpac` has ridge regression for the means.

    >>> from everlearn import backbones
    >>> APER(backbones.load("tiny"), train="ssf").head.sums.shape[1]
    64
    """

    tags = Tags(family="representation", trains="peft")
    Optimizer = torch.optim.SGD
    schedule = staticmethod(cosine)

    def __init__(
        self, backbone: Backbone, *, train: str = "adaptformer", epochs: Count = 20, batch_size: Count = 48,
        lr: Rate = 0.01, weight_decay: Strength = 5e-4, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.weight_decay = weight_decay
        self.head = Prototype(2 * backbone.width)
        self.first_head = Cosine(backbone.width)
        self.adapted: nn.Module = copy.deepcopy(backbone) if train == "full" else train_part(backbone, train, seed=seed)

    @property
    def learner(self) -> Backbone:
        """What is adapted on the first task: the backbone with its insertion, or the copy."""
        return self.adapted if isinstance(self.adapted, Backbone) else self.backbone

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.index == 0:
            self.first_head.grow(task.class_names)
        self._adapting(task.index == 0)

    def train(self, mode: bool = True) -> APER:
        """As of every method; and the copy that is trained in full has no dropout either."""
        super().train(mode)
        self.learner.eval()
        return self

    def _adapting(self, is_on: bool) -> None:
        """Whether what is adapted receives gradient: of a pair, nothing but the encoder that examples go to."""
        adapted = self.adapted.first if isinstance(self.adapted, Backbone) else self.adapted
        adapted.requires_grad_(is_on)

    def param_groups(self) -> list[dict[str, Any]]:
        if self.task.index > 0:
            return []
        trained = [p for p in [*self.adapted.parameters(), *self.first_head.parameters()] if p.requires_grad]
        return [{"params": trained, "momentum": 0.9, "weight_decay": self.weight_decay}]

    def losses(self, batch: Examples) -> Tensor:
        return self.classification_losses(self.first_head(self.learner(batch.inputs)), batch)

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self.first_head(self.learner.infer(inputs))

    def end_task(self, task: Task) -> None:
        self._adapting(False)
        self.head.add(self.embed(task.train.inputs), self.labels(task.train))

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        """Pre-trained and adapted features side by side, (n, 2 width)."""
        with self.backbone.pretrained():
            before = self.backbone.encode(inputs)
        after = self.learner.encode(inputs) if self.learner.is_frozen else self.learner.infer(inputs)
        return torch.cat([before, after], dim=1)
