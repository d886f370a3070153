"""PackNet: each task keeps the largest of the free weights and leaves the others free (Mallya & Lazebnik, 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.method import Tags
from everlearn.methods.routed import Routed
from everlearn.optimizer_step import OptimizerStep
from everlearn.peft.owned import FREE, own_weights, owned_weights
from everlearn.peft.unified import DeltaSet, insert, rate_for
from everlearn.peft.weight import Weight, linear_sites
from everlearn.seeds import seeded
from everlearn.settings import Count, HeldOut, Rate, Seed
from everlearn.streams.stream import Examples, Task


class PackNet(Routed):
    """PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning. Mallya & Lazebnik, CVPR 2018,
    https://arxiv.org/abs/1711.05769

    A task trains all weights that are still free. Then a share of them, those of the smallest magnitude in each layer,
    is set to zero and is free again, and the rest is trained further. After the task it never changes. A task
    computes with its own weights and those of earlier tasks, so no task forgets. The first task starts from the
    pre-trained weights. A later one starts from the network that the tasks before it have left, with its free weights
    at zero, as in the paper. Biases are trained with the first task and then fixed; normalisation and embeddings stay
    pre-trained.

    Departures: the paper prunes the pre-trained network on its own data first; these are not here, so the first
    task of the stream does it. AdamW without weight decay takes the place of SGD. The paper is told the task. Here,
    where the stream does not tell it, the class prototype nearest to the frozen feature chooses it.

    Args:
        backbone: a pre-trained encoder, whose own weights stay as they are: the router reads its features.
        train: what is shared out: "full" (the weights of all linear layers) or the weights of an insertion.
        pruned: share of a task's weights that is freed in each layer.
        retraining: share of a task's steps that come after pruning; in the paper, 10 of 30 epochs.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the weights (AdamW); by default 5e-5 for those of the encoder and 1e-3 for an insertion.
        head_lr: learning rate of the heads, for features of norm 1; it is divided by their norm.
        seed: of the insertion, the heads and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: the insertion has no weights but vectors, as ssf, or there are more than 255 tasks.

    Relations: `hat` shares out units instead of weights; `piggyback` learns which weights to use and changes none;
    `task_adapters` gives each task new weights.

    >>> from everlearn import backbones
    >>> from everlearn.engine import learn
    >>> from everlearn.testing import toy_stream
    >>> method = PackNet(backbones.load("tiny"), epochs=1, pruned=0.75)
    >>> _ = learn(method, toy_stream()[0])
    >>> method.owned_shares()
    [0.25]
    """

    tags = Tags(family="isolation", trains="backbone", own_weights=True, task_at_test="used")

    def __init__(
        self, backbone: Backbone, *, train: str = "full", pruned: HeldOut = 0.75, retraining: HeldOut = 1 / 3,
        epochs: Count = 30, batch_size: Count = 32, lr: Rate | None = None, head_lr: Rate = 0.1, seed: Seed = 0,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, head_lr=head_lr, epochs=epochs, batch_size=batch_size, lr=rate_for(train, lr),
                         seed=seed, **settings)  # fmt: skip
        self.pruned, self.retraining, self.prune_at = pruned, retraining, 0
        with seeded(seed):
            self.deltas = own_parts(backbone, train)
        own_weights(self.deltas)
        if next(owned_weights(self.deltas), None) is None:
            raise EverlearnError(f"method.train: packnet shares out weights, and {train} has none, but vectors alone: "
                                 "give full, lora or an adapter such as houlsby")  # fmt: skip

    def add_task(self) -> None:
        task = len(self.heads)
        if task >= FREE:
            raise EverlearnError(f"packnet keeps the task of a weight in one byte, and so learns {FREE} tasks at most")
        self.deltas.requires_grad_(task == 0)  # biases with the first task alone
        for weight, owned in owned_weights(self.deltas):
            weight.requires_grad_(True)
            owned.claim(task)

    def switch(self, active: int | None) -> None:
        self.deltas.switch(active is not None)
        if active is not None:
            for _, owned in owned_weights(self.deltas):
                owned.task = active

    def param_groups(self) -> list[dict[str, Any]]:
        # Without weight decay, a weight that gets no gradient stays as it is.
        return [{**group, "weight_decay": 0.0} for group in super().param_groups()]

    def batches(self, task: Task) -> Sequence[Examples]:
        batches = super().batches(task)
        self.prune_at = max(1, round((1 - self.retraining) * len(batches)))
        return batches

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        loss = super().step(batch, optimizer_step)
        if optimizer_step.number + 1 == self.prune_at:
            for weight, owned in owned_weights(self.deltas):
                owned.release(weight, self.pruned)
        return loss

    def end_task(self, task: Task) -> None:
        for weight, owned in owned_weights(self.deltas):
            with torch.no_grad():
                weight.masked_fill_(owned.owner == FREE, 0.0)
        super().end_task(task)

    def owned_shares(self) -> list[float]:
        """The share of all weights that each task owns; what is missing from 1 is free."""
        owners = torch.cat([owned.owner.flatten() for _, owned in owned_weights(self.deltas)]).cpu()
        return (owners.bincount(minlength=FREE)[: len(self.heads)] / len(owners)).tolist()

    def diagnostics(self) -> dict[str, Any]:
        return {"share of the weights that each task owns": self.owned_shares()}


def own_parts(backbone: Backbone, train: str) -> DeltaSet:
    """What is shared out: for "full" a weight and a bias for each linear layer of the encoder, or an insertion."""
    if train != "full":
        return insert(backbone, train)
    return DeltaSet([backbone.attach(Weight(site), site) for site in linear_sites(backbone)])
