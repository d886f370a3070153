"""Joint training: keep all data and retrain on everything at every task (the upper reference)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.memory.reservoir import Reservoir
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.streams.stream import Examples, Task


class Joint(Finetune):
    """What continual learning tries to reach without paying for it: each task starts again from the
    pre-trained weights and trains on every example so far (Caruana, 1997,
    https://doi.org/10.1023/A:1007379606734). It keeps all data, and its cost grows with every task.

    Args:
        backbone: a pre-trained encoder; all of it is trained.
        epochs: passes over all data so far, in every task.
        batch_size: examples a step.
        lr: learning rate of the backbone (AdamW).
        head_lr: learning rate of the head.
        seed: of the order of examples and of the head.

    Relations: `finetune` is the same without the old data; `er` keeps a sample of it.

    >>> from everlearn import backbones
    >>> len(Joint(backbones.load("tiny")).memory)
    0
    """

    tags = Tags(family="baseline", trains="backbone", modalities=("text", "image", "pairs"), retrains=True)
    schedule = "cosine"

    def __init__(
        self, backbone: Backbone, *, epochs: int = 5, batch_size: int = 32,
        lr: float = 5e-5, head_lr: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, head_lr=head_lr, seed=seed)
        self.memory = Reservoir(None, seed=seed)
        self._pretrained = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}

    def begin_task(self, task: Task) -> None:
        self.backbone.load_state_dict(self._pretrained)
        for parameter in self.head.parameters():
            torch.nn.init.zeros_(parameter)
        super().begin_task(task)

    def batches(self, task: Task) -> Sequence[Examples]:
        return self.shuffled(Examples.concatenate([self.memory.examples(), task.train]), task)

    def end_task(self, task: Task) -> None:
        self.memory.add(task.train)
