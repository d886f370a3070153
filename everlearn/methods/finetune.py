"""Sequential fine-tuning: every weight follows the newest task (the negative control)."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.method import Method, Tags
from everlearn.peft.unified import train_part
from everlearn.settings import Count, Rate, Seed


class Finetune(Method):
    """Train the model on each task as it comes, with nothing against forgetting.

    McCloskey & Cohen (1989), https://doi.org/10.1016/S0079-7421(08)60536-8, called what follows
    catastrophic interference. Every method has to beat it.

    Args:
        backbone: a pre-trained encoder.
        train: what is trained besides the head: "full" (every weight), "head" (nothing else), or an
            insertion into the frozen encoder, such as "lora", "houlsby" or "lora(size=4)".
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of what is trained besides the head (AdamW); by default 5e-5 for every weight of
            the encoder and 1e-3 for an insertion.
        head_lr: learning rate of the head, which starts from nothing.
        seed: of the insertion, the order of examples and the new rows of the head.

    Relations: `er`, `ewc` and `lwf` are this method with one defence each; `joint` is its bound; `lora`,
    `vpt` and `sequential` are its settings with an insertion.

    >>> from everlearn import backbones
    >>> Finetune(backbones.load("tiny"), epochs=1).backbone.is_frozen
    False
    """

    tags = Tags(family="baseline", trains="backbone", goals=("classes", "ranking"))

    def __init__(
        self, backbone: Backbone, *, train: str = "full", epochs: Count = 5, batch_size: Count = 32,
        lr: Rate | None = None, head_lr: Rate = 1e-2, seed: Seed = 0,
    ) -> None:  # fmt: skip
        rate = lr if lr is not None else 5e-5 if train == "full" else 1e-3
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=rate, seed=seed)
        self.head_lr = head_lr
        self.deltas = train_part(backbone, train, seed=seed)
