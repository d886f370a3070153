"""GEM: no step may raise the loss of any earlier task (Lopez-Paz & Ranzato, 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.a_gem import AGEM
from everlearn.settings import Count, Strength
from everlearn.streams.stream import Examples, Task


class GEM(AGEM):
    """Gradient Episodic Memory for Continual Learning. Lopez-Paz & Ranzato, NeurIPS 2017,
    https://arxiv.org/abs/1706.08840

    Old examples are not trained on. In every step g_k is the gradient of the loss on examples of the earlier task k
    that the memory holds, for every k. The gradient g of the new batch is replaced by the nearest one whose product
    with no g_k is negative: g + sum v_k g_k, where v solves a quadratic program with one unknown for each task
    (`everlearn.projection`). Then, for a small step along it, the loss of no earlier task grows.

    The cost of a step grows with the number of tasks: each takes a forward and a backward pass, and during the step a
    gradient is held for each, of 4 bytes for each trained weight, besides that of the new batch; of the embeddings of
    words only those that occur. The gradient is changed before it is clipped. Examples of a set that
    `everlearn distill` made count as one more task.

    Departures: some examples of each task are drawn in every step; the paper takes all that are kept, which a large
    `replay_batch_size` does. The memory keeps examples by the policies of `er`, so a task that it holds no example of
    is not protected; the paper keeps the last ones of each task, equally many. The margin is the least v_k, as in the
    released code; the paper adds it to v, after which a product could be negative. The step is that of AdamW, which
    scales the changed gradient weight by weight, where the paper has plain gradient descent.

    Args:
        backbone: a pre-trained encoder.
        margin: gamma, the memory strength of the paper: where a product is negative, every v_k is at least this, which
            moves the weights further towards what the earlier tasks ask for.
        replay_batch_size: examples drawn from each earlier task per step.
        settings: memory_size, policy and distilled, as of `er`, and those of `finetune`.

    Relations: `a_gem` has one inequality for all earlier tasks together, and its cost does not grow.

    >>> from everlearn import backbones
    >>> GEM(backbones.load("tiny"), memory_size=10).margin
    0.5
    """

    tags = Tags(family="replay", trains="backbone", goals=("classes", "ranking"), retrains=True)

    def __init__(
        self, backbone: Backbone, *, margin: Strength = 0.5, replay_batch_size: Count = 32, **settings: Any
    ) -> None:
        super().__init__(backbone, replay_batch_size=replay_batch_size, **settings)
        self.margin = margin

    def old_losses(self, batch: Examples) -> Iterator[Tensor]:
        if len(self.memory):
            origin = self.memory.examples().columns["origin"]
            for task in origin.unique():
                among = (origin == task).nonzero()[:, 0].tolist()
                old = self.memory.sample(self.replay_batch_size, alike=True, among=among)
                yield self.losses(self.viewed(old)).mean()
        distilled = self._of_distilled()
        if isinstance(distilled, Tensor):
            yield distilled

    def end_task(self, task: Task) -> None:
        self.keep(task, origin=torch.full((len(task.train),), task.index))
