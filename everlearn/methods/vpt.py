"""VPT: trained prompt tokens before a frozen encoder, at its input or at every block (Jia et al., 2022)."""

from __future__ import annotations

from typing import Any

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.settings import Rate


class VPT(Finetune):
    """Visual Prompt Tuning. Jia, Tang, Chen et al., ECCV 2022, https://arxiv.org/abs/2203.12119

    Shallow: tokens join the embedded sequence once. Deep: every block gets tokens of its own in their
    place. One set for all tasks, trained on each as it comes, so it forgets: the negative control of the
    prompt family.

    Args:
        backbone: a pre-trained encoder, frozen.
        train: the insertion: "deep_prompt", or "prompt" for the shallow form; "prompt(length=10)" has ten tokens
            instead of five. The other settings are those of `finetune`.
        lr: learning rate of the prompts (AdamW).

    Relations: `finetune` with other defaults; `l2p` chooses among many prompts; `aper` trains this on the
    first task only.

    >>> from everlearn import backbones
    >>> len(VPT(backbones.load("tiny")).deltas), len(VPT(backbones.load("tiny"), train="prompt").deltas)
    (2, 1)
    """

    tags = Tags(family="prompt", trains="peft", needs=("last layer",), goals=("classes", "ranking"))

    def __init__(
        self, backbone: Backbone, *, train: str = "deep_prompt", lr: Rate | None = 1e-2, **settings: Any
    ) -> None:
        super().__init__(backbone, train=train, lr=lr, **settings)
