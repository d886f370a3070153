"""Sequential LoRA: one low-rank update, trained on and on (Hu et al., 2022)."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.method import Method, Tags, seeded
from everlearn.peft.unified import Point, insert


class SequentialLoRA(Method):
    """LoRA: Low-Rank Adaptation of Large Language Models. Hu, Shen, Wallis et al., ICLR 2022,
    https://arxiv.org/abs/2106.09685

    One LoRA on the query and value projections of every block, shared by all tasks and trained on
    each as it comes, beside a linear head. The backbone is frozen and the model forgets all the same.

    Args:
        backbone: a pre-trained encoder, frozen.
        rank: r of the paper.
        alpha: the update is scaled by alpha / rank.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate of the LoRA (AdamW).
        head_lr: learning rate of the head.
        seed: of the initial values and the order of examples.

    Relations: `finetune` trains every weight instead.

    >>> from everlearn import backbones
    >>> method = SequentialLoRA(backbones.load("tiny"), rank=2)
    >>> sum(p.numel() for p in method.deltas.parameters())
    512
    """

    tags = Tags(family="peft", trains="peft", modalities=("text", "image", "pairs"))

    def __init__(
        self, backbone: Backbone, *, rank: int = 8, alpha: float = 16.0, epochs: int = 5,
        batch_size: int = 32, lr: float = 1e-3, head_lr: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.head_lr = head_lr
        with seeded(seed):
            self.deltas = insert(backbone, Point("linear", ("query", "value"), size=rank, scale=alpha / rank))
