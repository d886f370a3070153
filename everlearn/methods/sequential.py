"""Sequential lightweight fine-tuning: one shared block of new parameters, trained on and on."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.method import Method, Tags, seeded
from everlearn.peft.unified import insert


class Sequential(Method):
    """One insertion of any kind, shared by all tasks, beside a linear head: the negative control of
    `task_adapters`. He, Zhou, Ma, Berg-Kirkpatrick & Neubig, ICLR 2022, https://arxiv.org/abs/2110.04366,
    name the kinds. The backbone is frozen, and what the model could do is forgotten all the same.

    Args:
        backbone: a pre-trained encoder, frozen.
        kind: what is inserted, one of `everlearn.peft.unified.KINDS`.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate of the inserted parameters (AdamW).
        head_lr: learning rate of the head.
        seed: of the insertion, the head and the order of examples.

    Relations: `task_adapters` has one insertion a task; `vpt` is this with prompts, `lora` with LoRA.

    >>> from everlearn import backbones
    >>> len(Sequential(backbones.load("tiny"), kind="houlsby").deltas)
    4
    """

    tags = Tags(family="peft", trains="peft", modalities=("text", "image", "pairs"))

    def __init__(
        self, backbone: Backbone, *, kind: str = "houlsby", epochs: int = 5, batch_size: int = 32,
        lr: float = 1e-3, head_lr: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.head_lr = head_lr
        with seeded(seed):
            self.deltas = insert(backbone, kind)
