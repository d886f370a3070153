"""A-GEM: no step may raise the loss of a sample of old examples (Chaudhry et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from everlearn.method import Tags
from everlearn.methods.er import ER
from everlearn.optimizer_step import OptimizerStep
from everlearn.projection import compact, project
from everlearn.streams.stream import Examples


class AGEM(ER):
    """Efficient Lifelong Learning with A-GEM. Chaudhry, Ranzato, Rohrbach & Elhoseiny, ICLR 2019,
    https://arxiv.org/abs/1812.00420

    Old examples are not trained on. In every step some are drawn from the memory, and g_ref is the gradient of their
    loss. Where the gradient g of the new batch opposes it, the part that does so is taken out:
    g - (g·g_ref / g_ref·g_ref) g_ref. Then, for a small step along it, the loss of the old examples does not grow.

    During a step two gradients are held, of at most 4 bytes for each trained weight. The gradient is changed before it
    is clipped. Examples of a set that `everlearn distill` made count as old examples.

    Departures: the step is that of AdamW, which scales the changed gradient weight by weight; with the plain gradient
    descent of the paper the step keeps its direction. The memory keeps examples by the policies of `er`; the paper
    keeps equally many of each task. As in the paper, those of a task are drawn only when the task has ended.

    Args:
        backbone: a pre-trained encoder.
        settings: memory_size, replay_batch_size, policy and distilled, as of `er`, and those of `finetune`.

    Relations: `gem` has an inequality for every earlier task; `er` trains on the old examples, at the same cost.

    >>> from everlearn import backbones
    >>> AGEM(backbones.load("tiny"), memory_size=10).memory.limits
    (10, None)
    """

    tags = Tags(family="replay", trains="backbone", goals=("classes", "ranking"))
    margin = 0.0

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        loss = self.losses(batch).mean()
        optimizer_step.backward(loss)
        moved = {parameter: parameter.grad for parameter in self.trained().values() if parameter.grad is not None}
        others = []
        for old in self.old_losses(batch):
            optimizer_step.backward(old)
            others.append([compact(p.new_zeros(p.shape) if p.grad is None else p.grad) for p in moved])
        project(list(moved.values()), others, self.margin)
        for parameter, gradient in moved.items():
            parameter.grad = gradient
        optimizer_step.apply()
        return loss.detach()

    def old_losses(self, batch: Examples) -> Iterator[Tensor]:
        """The losses that the step may not raise, scalars, one after the other: each is done with when the next one is
        computed."""
        loss = self.old_loss(batch)
        if isinstance(loss, Tensor):
            yield loss
