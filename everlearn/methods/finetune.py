"""Sequential fine-tuning: every weight follows the newest task (the negative control)."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.method import Method, Tags


class Finetune(Method):
    """Train the whole model on each task as it comes, with nothing against forgetting.

    McCloskey & Cohen (1989), https://doi.org/10.1016/S0079-7421(08)60536-8, called what follows
    catastrophic interference. Every method has to beat it.

    Args:
        backbone: a pre-trained encoder; all of it is trained.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate of the backbone (AdamW).
        head_lr: learning rate of the head, which starts from nothing.
        seed: of the order of examples and the new rows of the head.

    Relations: `er`, `ewc` and `lwf` are this method with one defence each; `joint` is its bound.

    >>> from everlearn import backbones
    >>> Finetune(backbones.load("tiny"), epochs=1).backbone.is_frozen
    False
    """

    tags = Tags(family="baseline", trains="backbone", modalities=("text", "image", "pairs"))

    def __init__(
        self, backbone: Backbone, *, epochs: int = 5, batch_size: int = 32,
        lr: float = 5e-5, head_lr: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.head_lr = head_lr
        backbone.requires_grad_(True)
