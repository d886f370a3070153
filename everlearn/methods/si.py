"""Synaptic Intelligence: weights that have lowered the loss stay near their old values (Zenke et al., 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.memory.per_parameter import PerParameter
from everlearn.methods.anchored import Anchored
from everlearn.optimizer_step import OptimizerStep
from everlearn.settings import Factor, Strength
from everlearn.streams.stream import Examples, Task


class SI(Anchored):
    """Continual Learning Through Synaptic Intelligence. Zenke, Poole & Ganguli, ICML 2017,
    https://arxiv.org/abs/1703.04200

    Every step adds to the path integral of a weight: minus its gradient times its change. Summed over all weights this
    is by how much the loss has decreased. At the end of a task the importance Omega of a weight grows by its path
    integral, divided by (its change in the whole task)² + xi. The loss of the next tasks gains
    strength · sum Omega_i (w_i - w*_i)², with w* the weights at the beginning of the task.

    The gradient in the path integral is that of the loss of the task, without the penalty; its change is that of the
    whole step. Three tensors are kept for each trained weight (Omega, path integral and w*), whatever the number of
    tasks; a step needs one more of the same size.

    Departures: as in the released code, and not in the paper, an Omega below zero is set to zero, because it would
    reward a weight for moving away without bound. The step is that of AdamW, with its weight decay, instead of Adam.

    Args:
        backbone: a pre-trained encoder.
        strength: c of the paper.
        xi: keeps Omega bounded where a weight has hardly moved. The other settings are those of `finetune`.

    Relations: `ewc` and `mas` measure importance at the end of a task, by further backward passes.

    >>> from everlearn import backbones
    >>> SI(backbones.load("tiny"), strength=10.0).xi
    0.001
    """

    def __init__(self, backbone: Backbone, *, strength: Strength = 1.0, xi: Factor = 1e-3, **settings: Any) -> None:
        super().__init__(backbone, strength=strength, **settings)
        self.xi, self.path = xi, PerParameter()

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.path.grow(self.named_parameters())
        self.anchor.update(self.trained())

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        loss = self.loss(batch)
        optimizer_step.backward(loss)
        gradients = {name: p.grad.clone() for name, p in self.trained().items() if p.grad is not None}
        self._integrate(gradients, 1)
        loss = loss.detach() + self.hold(optimizer_step)
        optimizer_step.apply()
        self._integrate(gradients, -1)
        return loss

    @torch.no_grad()
    def _integrate(self, gradients: dict[str, Tensor], sign: int) -> None:
        """Add the gradients times the weights, with a sign: before a step and, with the other sign, after it, which
        needs no copy of the weights. They are taken from w*, so that the difference loses no digits."""
        for name, parameter in self.trained().items():
            if name in gradients:
                self.path[name].addcmul_(gradients[name], parameter - self.anchor[name], value=sign)

    def end_task(self, task: Task) -> None:
        with torch.no_grad():
            for name, parameter in self.trained().items():
                change = parameter - self.anchor[name]
                self.importance[name].add_(self.path[name] / (change.square_() + self.xi)).clamp_(min=0)
                self.path[name].zero_()
