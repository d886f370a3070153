"""Piggyback: a binary mask per task on the weights of a frozen encoder (Mallya, Davis & Lazebnik, 2018)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.method import Tags
from everlearn.methods.routed import Routed
from everlearn.peft.mask import Mask
from everlearn.peft.unified import DeltaSet
from everlearn.peft.weight import linear_sites
from everlearn.settings import Count, Factor, Rate, Seed
from everlearn.streams.stream import Task


def second_half(optimizer: torch.optim.Optimizer, steps: int) -> MultiStepLR:
    """The learning rate is divided by ten for the second half of the steps."""
    return MultiStepLR(optimizer, [max(1, steps // 2)], gamma=0.1)


class Piggyback(Routed):
    """Piggyback: Adapting a Single Network to Multiple Tasks by Learning to Mask Weights. Mallya, Davis & Lazebnik,
    ECCV 2018, https://arxiv.org/abs/1801.06519

    The encoder is never trained. Each task learns which weights of its linear layers to use: a mask of zeros and ones
    on each of them, learned through real scores with a threshold, whose gradient is passed straight through. A finished
    task keeps one bit a weight, and a head. Biases, normalisation and embeddings are the pre-trained ones. At first
    every mask is all ones, which is the pre-trained encoder to the bit.

    Departures: AdamW, with its weight decay, takes the place of Adam. The paper is told the task. Here, where the
    stream does not tell it, the class prototype nearest to the frozen feature chooses it.

    Args:
        backbone: a pre-trained encoder, frozen.
        score: the first value of the scores.
        threshold: scores above it keep their weight.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the scores (AdamW), divided by ten after half of the steps.
        head_lr: learning rate of the heads, for features of norm 1; it is divided by their norm.
        seed: of the heads and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: the first score is not above the threshold, so that nothing of the encoder would be used.

    Relations: `packnet` changes the weights too, and later tasks use those of earlier ones; `task_adapters` adds
    weights instead of leaving some out, with the same router.

    >>> from everlearn import backbones
    >>> from everlearn.engine import learn
    >>> from everlearn.testing import toy_stream
    >>> method = Piggyback(backbones.load("tiny"), epochs=1)
    >>> _ = learn(method, toy_stream()[0])
    >>> sum(mask.stored_bytes() for mask in method.masks[0])  # 16,384 weights
    2048
    """

    tags = Tags(family="isolation", trains="peft", task_at_test="used")
    schedule = staticmethod(second_half)

    def __init__(
        self, backbone: Backbone, *, score: Factor = 1e-2, threshold: Factor = 5e-3, epochs: Count = 30,
        batch_size: Count = 32, lr: Rate = 1e-4, head_lr: Rate = 0.1, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, head_lr=head_lr, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        if score <= threshold:
            raise EverlearnError(f"method.score: {score} is not above the threshold {threshold}, so that no weight "
                                 "would be used: give a larger one")  # fmt: skip
        self.score, self.threshold = score, threshold
        self.masks = nn.ModuleList()

    def add_task(self) -> None:
        self._settle()  # as a task that is replayed for a checkpoint has not been ended
        made = ((Mask(site.weight.shape, score=self.score, threshold=self.threshold), site)
                for site in linear_sites(self.backbone) if site.weight is not None)  # fmt: skip
        self.masks.append(DeltaSet([self.backbone.attach(mask, site) for mask, site in made]))

    def switch(self, active: int | None) -> None:
        for index, masks in enumerate(self.masks):
            cast(DeltaSet, masks).switch(index == active)

    def end_task(self, task: Task) -> None:
        self._settle()
        super().end_task(task)

    def _settle(self) -> None:
        for mask in self.masks[-1:].modules():
            if isinstance(mask, Mask):
                mask.settle()
