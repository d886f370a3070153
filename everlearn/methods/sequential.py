"""Sequential lightweight fine-tuning: one insertion for all tasks, trained on each as it comes."""

from __future__ import annotations

from typing import Any

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune


class Sequential(Finetune):
    """One insertion of any kind, shared by all tasks, beside a linear head: the negative control of
    `task_adapters`. He, Zhou, Ma, Berg-Kirkpatrick & Neubig, ICLR 2022, https://arxiv.org/abs/2110.04366,
    name the kinds. The backbone is frozen, and the model forgets all the same.

    Args:
        backbone: a pre-trained encoder, frozen.
        train: the insertion; the other settings are those of `finetune`.

    Relations: `finetune` with another default; `task_adapters` has one insertion per task.

    >>> from everlearn import backbones
    >>> len(Sequential(backbones.load("tiny"), train="houlsby").deltas)
    4
    """

    tags = Tags(family="peft", trains="peft", goals=("classes", "ranking"))

    def __init__(self, backbone: Backbone, *, train: str = "houlsby", **settings: Any) -> None:
        super().__init__(backbone, train=train, **settings)
