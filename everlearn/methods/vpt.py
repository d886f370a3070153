"""VPT: trained prompt tokens before a frozen encoder, at its input or at every block (Jia et al., 2022)."""

from __future__ import annotations

from everlearn.backbones.backbone import Backbone
from everlearn.method import Method, Tags, seeded
from everlearn.peft.unified import insert


class VPT(Method):
    """Visual Prompt Tuning. Jia, Tang, Chen et al., ECCV 2022, https://arxiv.org/abs/2203.12119

    Shallow: `length` tokens join the embedded sequence once. Deep: every block gets tokens of its own
    in their place. One set for all tasks, trained on each as it comes, so it forgets: the negative
    control of the prompt family.

    Args:
        backbone: a pre-trained encoder, frozen.
        deep: whether every block gets tokens, or the input alone.
        length: tokens.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate of prompts and head (AdamW).
        seed: of the prompts, the head and the order of examples.

    Relations: `l2p` chooses among many prompts; `aper` trains this on the first task only.

    >>> from everlearn import backbones
    >>> len(VPT(backbones.load("tiny")).prompts), len(VPT(backbones.load("tiny"), deep=False).prompts)
    (2, 1)
    """

    tags = Tags(family="prompt", trains="peft")

    def __init__(
        self, backbone: Backbone, *, deep: bool = True, length: int = 5,
        epochs: int = 5, batch_size: int = 32, lr: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        with seeded(seed):
            self.prompts = insert(backbone, "deep_prompt" if deep else "prompt", length=length)
