"""Sequential LoRA: one low-rank update for all tasks, trained on each as it comes (Hu et al., 2022)."""

from __future__ import annotations

from typing import Any

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune


class SequentialLoRA(Finetune):
    """LoRA: Low-Rank Adaptation of Large Language Models. Hu, Shen, Wallis et al., ICLR 2022,
    https://arxiv.org/abs/2106.09685

    One LoRA on the query and value projections of every block, shared by all tasks and trained on
    each as it comes, beside a linear head. The backbone is frozen, and the model forgets all the same.

    Args:
        backbone: a pre-trained encoder, frozen.
        train: the insertion: "lora" has rank 8 and alpha 16; "lora(size=4, scale=2.0)" has rank 4, and scale
            is alpha / rank. The other settings are those of `finetune`.

    Relations: `finetune` with another default.

    >>> from everlearn import backbones
    >>> method = SequentialLoRA(backbones.load("tiny"), train="lora(size=2)")
    >>> sum(p.numel() for p in method.deltas.parameters())
    512
    """

    tags = Tags(family="peft", trains="peft", goals=("classes", "ranking"))

    def __init__(self, backbone: Backbone, *, train: str = "lora", **settings: Any) -> None:
        super().__init__(backbone, train=train, **settings)
