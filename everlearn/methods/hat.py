"""HAT: hard attention on hidden units says which of them belong to each task (Serrà et al., 2018)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnWarning
from everlearn.method import Tags
from everlearn.methods.routed import Routed
from everlearn.optimizer_step import OptimizerStep
from everlearn.peft.gate import gated, gated_parts, gates
from everlearn.peft.unified import rate_for
from everlearn.seeds import seeded
from everlearn.settings import Count, Factor, Rate, Seed, Strength
from everlearn.streams.stream import Examples, Task


class HAT(Routed):
    """Overcoming Catastrophic Forgetting with Hard Attention to the Task. Serrà, Surís, Miron & Karatzoglou, ICML 2018,
    https://arxiv.org/abs/1801.01423

    Each task has an attention sigmoid(s · e) on every hidden unit. Within each epoch s rises from 1 / `sharpest` to
    `sharpest`, so that the gates close or open. A term of the loss asks for few units that no earlier task uses. The
    weights into and out of a unit that an earlier task uses get no gradient.

    Departures, so that old answers stay the same to the bit: units are the hidden units of the feed-forward layers, or
    the ranks or bottlenecks of an insertion, since a unit of the residual stream cannot be gated alone; all other
    weights stay pre-trained. After a task each gate is rounded to 0 or 1. Gates start open (e between 0 and 2, as the
    paper draws it for compression), or the pre-trained layers would lose half of their units. The compensation of the
    gradient of e is computed in closed form. Where an epoch is a single batch, s is `sharpest`: the released code has 1
    / `sharpest` then, with which all units are trained half open, although they answer open or closed. AdamW without
    weight decay takes the place of SGD, which would not close a gate within the few steps of a task here; AdamW moves e
    by the same distance in every step, so its rate is `gate_travel` divided by the steps of the task. The paper is told
    the task. Here, where the stream does not tell it, the class prototype nearest to the frozen feature finds it.

    Args:
        backbone: a pre-trained encoder, whose own weights stay as they are: the router reads its features.
        train: what has units: "full" (the feed-forward layers), or an insertion of LoRA or adapters.
        sharpest: the largest s, s_max of the paper.
        sparsity: weight of the term that asks for few units, c of the paper.
        gate_travel: how far e can move within a task. It starts between 0 and 2, and a gate is closed below 0; so with
            1.8 at least about a tenth of the units stays open.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the weights (AdamW); by default 5e-5 for those of the encoder and 1e-3 for an insertion.
        head_lr: learning rate of the heads, for features of norm 1; it is divided by their norm.
        seed: of the insertion, the gates, the heads and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: the insertion has no hidden units, or the feed-forward layers have another form than two linear
            layers with a function between them.

    Relations: `packnet` shares out single weights, in fixed shares; `piggyback` gates weights and trains none;
    `task_adapters` gives each task new weights.

    >>> from everlearn import backbones
    >>> from everlearn.engine import learn
    >>> from everlearn.testing import toy_stream
    >>> method = HAT(backbones.load("tiny"), epochs=1)
    >>> _ = learn(method, toy_stream()[0])
    >>> [len(share) for share in method.used_shares()]  # of each of 2 blocks
    [2]
    """

    tags = Tags(family="isolation", trains="backbone", own_weights=True, task_at_test="used")

    def __init__(
        self, backbone: Backbone, *, train: str = "full", sharpest: Factor = 400.0, sparsity: Strength = 0.75,
        gate_travel: Rate = 1.8, epochs: Count = 5, batch_size: Count = 32, lr: Rate | None = None, head_lr: Rate = 0.1,
        seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        lr = rate_for(train, lr)
        super().__init__(backbone, head_lr=head_lr, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.sharpest, self.sparsity, self.gate_travel, self.per_epoch = sharpest, sparsity, gate_travel, 0
        with seeded(seed):
            self.deltas = gated_parts(backbone, train, sharpest)
        self.gates = tuple(gates(self.deltas))

    def add_task(self) -> None:
        for weight in gated(self.deltas):
            weight.requires_grad_(True)
        for gate in self.gates:
            gate.e.requires_grad_(True)
            gate.renew()

    def switch(self, active: int | None) -> None:
        self.deltas.switch(active is not None)
        if active is not None:
            for gate in self.gates:
                gate.task = active

    def param_groups(self) -> list[dict[str, Any]]:
        attention = [gate.e for gate in self.gates]
        apart = set(attention)
        weights, *head = super().param_groups()
        groups: list[dict[str, Any]] = [{"params": [p for p in weights["params"] if p not in apart]},
                                        {"params": attention, "lr": self.gate_travel}, *head]  # fmt: skip
        # Without weight decay, a weight that gets no gradient stays as it is.
        return [{**group, "weight_decay": 0.0} for group in groups]

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:  # type: ignore[override]
        """The rate of e is such that all steps of the task together move it by `gate_travel`."""
        whole, shared = (lambda _: 1.0), (lambda _: 1 / max(1, steps))
        return LambdaLR(optimizer, [whole, shared, *[whole] * (len(optimizer.param_groups) - 2)])

    def batches(self, task: Task) -> Sequence[Examples]:
        batches = super().batches(task)
        self.per_epoch = len(batches) if task.batch_size else len(batches) // self.epochs  # an online stream has one
        return batches

    def loss(self, batch: Examples) -> Tensor:
        return super().loss(batch) + self.sparsity * self.usage()

    def usage(self) -> Tensor:
        """The share, a scalar, of the units that no earlier task uses that this one uses."""
        free = torch.cat([~gate.taken for gate in self.gates])
        return (torch.cat([gate() for gate in self.gates]) * free).sum() / free.sum().clamp(min=1)

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        last = self.per_epoch - 1
        position = optimizer_step.number % self.per_epoch / last if last else 1.0
        self._sharpen(1 / self.sharpest + (self.sharpest - 1 / self.sharpest) * position)
        try:
            loss = super().step(batch, optimizer_step)
        finally:
            self._sharpen(0.0)
        for gate in self.gates:
            gate.bound()
        return loss

    def _sharpen(self, sharpness: float) -> None:
        for gate in self.gates:
            gate.sharpness = sharpness

    def end_task(self, task: Task) -> None:
        for gate in self.gates:
            gate.finish()
        super().end_task(task)
        if unused := sum(share == 0 for share in self.used_shares()[-1]):
            warnings.warn(f"{task.name} uses no unit in {unused} of {len(self.gates)} layers: give a smaller "
                          "--method.sparsity or --method.gate_travel", EverlearnWarning, stacklevel=2)  # fmt: skip

    def used_shares(self) -> list[list[float]]:
        """For each finished task the share of the units of each layer that it uses."""
        shares = [gate.used.float().mean(1).tolist() for gate in self.gates]
        return [list(of_task) for of_task in zip(*shares, strict=True)]

    def diagnostics(self) -> dict[str, Any]:
        return {"share of the units of each layer that each task uses": self.used_shares()}
