"""Experience replay: new examples together with a sample of old ones (Chaudhry et al., 2019)."""

from __future__ import annotations

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.memory.reservoir import Reservoir
from everlearn.method import Tags, augmented
from everlearn.methods.finetune import Finetune
from everlearn.streams.stream import Examples, Task


class ER(Finetune):
    """On Tiny Episodic Memories in Continual Learning. Chaudhry, Rohrbach, Elhoseiny, Ajanthan,
    Dokania, Torr & Ranzato, 2019, https://arxiv.org/abs/1902.10486

    Every step minimises the loss on the new batch plus the loss on as many examples drawn from a
    reservoir. A task's examples enter the reservoir when the task ends, each once, so several epochs
    do not fill it with repetitions.

    Args:
        backbone: a pre-trained encoder; all of it is trained.
        memory_size: examples kept.
        replay_batch_size: examples drawn a step.
        epochs: passes over each task.
        batch_size: new examples a step.
        lr: learning rate of the backbone (AdamW).
        head_lr: learning rate of the head.
        seed: of the reservoir, the order of examples and the head.

    Relations: `finetune` without memory; `joint` with all of it.

    >>> from everlearn import backbones
    >>> ER(backbones.load("tiny"), memory_size=10).memory.capacity
    10
    """

    tags = Tags(family="replay", trains="backbone", modalities=("text", "image", "pairs"))

    def __init__(
        self, backbone: Backbone, *, memory_size: int = 500, replay_batch_size: int = 32, epochs: int = 5,
        batch_size: int = 32, lr: float = 5e-5, head_lr: float = 1e-2, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, head_lr=head_lr, seed=seed)
        self.replay_batch_size = replay_batch_size
        self.memory = Reservoir(memory_size, seed=seed)

    def loss(self, batch: Examples) -> torch.Tensor:
        loss = super().loss(batch)
        if len(self.memory):
            old = self.memory.sample(self.replay_batch_size)
            loss = loss + super().loss(augmented(old, self.seed, int(self.memory.draws)) if self.task.augment else old)
        return loss

    def end_task(self, task: Task) -> None:
        self.memory.add(task.train)
