"""L2P: a pool of prompts, chosen for each example by its frozen feature (Wang et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.heads.linear import append_rows
from everlearn.method import Tags
from everlearn.methods.prompted import Prompted, voted
from everlearn.peft.prompt import PromptTokens
from everlearn.seeds import seeded
from everlearn.settings import Count, Rate, Seed, Size, SizeOrZero, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Task


class L2P(Prompted):
    """Learning to Prompt for Continual Learning. Wang, Zhang, Lee et al., CVPR 2022,
    https://arxiv.org/abs/2112.08654

    The feature of the un-prompted frozen encoder is the query. The `selected` nearest keys by cosine
    bring their prompts, which join the embedded sequence; the mean of their outputs is classified.
    The loss is cross-entropy over the task's classes plus a pull of the chosen keys to the query.
    Queries come from the feature store, so each example is encoded without prompts once in a run.

    Departures from the released code: prompts are chosen for each example, and not by a vote of the batch,
    which leaks (`paper_compat` asks for the vote). Prompts and keys start within (-1, 1), as in the ports
    to PyTorch; those that start within (0, 0.01), as in the authors' code, need more steps than small tasks have.

    Args:
        backbone: a pre-trained encoder, frozen.
        pool_size: prompts in the pool, M of the paper.
        length: tokens per prompt.
        selected: prompts per example, N of the paper; at most pool_size.
        pull: weight of the keys' distance to the query, lambda of the paper.
        diversify: how training makes tasks use different prompts. "frequency" weighs distances by how often
            a prompt was chosen in earlier tasks (the paper); "mask" gives task t the prompts
            t·N … (t+1)·N - 1, and once the pool is used up the keys choose (the released code); "none" does
            neither.
        readout: what is classified: the mean output of the "prompts" (the paper), or "pooled", the encoder's
            own feature (an option of the released code).
        grow: prompts added to the pool with every task after the first.
        paper_compat: choose by a vote of each batch, also when predicting, as released. It leaks.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate (Adam) of prompts and keys.
        head_lr: learning rate of the head, for features of norm 1; it is divided by their norm. With None it is `lr`.
        seed: of the pool, the head and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: more prompts selected than there are.

    Relations: `simplecil` uses the query alone; `dual_prompt` and `coda_prompt` put prompts into
    attention; `vpt` has one prompt for all.

    >>> from everlearn import backbones
    >>> tuple(L2P(backbones.load("tiny"), pool_size=6, length=3).prompts.shape)
    (6, 3, 32)
    """

    tags = Tags(family="prompt", trains="peft", needs=("last layer",))
    Optimizer = torch.optim.Adam
    clip = 1.0

    def __init__(
        self, backbone: Backbone, *, pool_size: Size = 10, length: Size = 5, selected: Size = 5, pull: Strength = 0.5,
        diversify: Literal["none", "frequency", "mask"] = "none", readout: Literal["prompts", "pooled"] = "prompts",
        grow: SizeOrZero = 0, paper_compat: bool = False, epochs: Count = 5, batch_size: Count = 16,
        lr: Rate = 0.001875, head_lr: Rate | None = 0.1, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        if selected > pool_size:
            raise EverlearnError(f"method.selected: {selected} prompts cannot be chosen from a pool of {pool_size}: "
                                 "give at most pool_size")  # fmt: skip
        if readout == "prompts" and backbone.width != backbone.hidden_width:
            raise EverlearnError(f"method.readout: the outputs of prompts have {backbone.hidden_width} numbers and the "
                                 f"features of {backbone.name} {backbone.width}: use pooled")  # fmt: skip
        self.selected, self.strength, self.head_lr = selected, pull, head_lr
        self.diversify, self.readout, self.grow, self.paper_compat = diversify, readout, grow, paper_compat
        self.prompts = nn.Parameter(torch.empty(0, length, backbone.hidden_width))
        self.keys = nn.Parameter(torch.empty(0, backbone.width))
        with seeded(seed):
            self._add_prompts(pool_size)
        self.inserted = PromptTokens()
        backbone.attach(self.inserted, backbone.tokens)

    def _add_prompts(self, count: int) -> None:
        self.prompts = append_rows(self.prompts, torch.empty(count, *self.prompts.shape[1:]).uniform_(-1, 1))
        self.keys = append_rows(self.keys, torch.empty(count, *self.keys.shape[1:]).uniform_(-1, 1))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.index > 0:
            self._add_prompts(self.grow)

    def choose(self, queries: Tensor, learning: bool = False) -> Tensor:
        """The chosen prompts (n, selected)."""
        far = 1 - self.cosines(queries).detach()
        if learning and self.diversify == "frequency" and self.task.index > 0:
            frequencies = self.chosen.frequencies().to(far)
            far = far * nn.functional.pad(frequencies, (0, len(self.keys) - len(frequencies)))
        if learning and self.diversify == "mask":
            own = torch.arange(self.task.index * self.selected, (self.task.index + 1) * self.selected)
            if own[-1] < len(self.keys):
                return own.to(far.device).expand(len(far), -1)
        chosen = far.topk(self.selected, dim=1, largest=False).indices
        return voted(chosen, len(self.keys), self.batch_size) if self.paper_compat else chosen

    def pull(self, queries: Tensor, choice: Tensor) -> Tensor:
        return self.strength * (1 - self.cosines(queries).gather(1, choice)).sum(1)

    def prompted(self, inputs: Sequence[Input], choice: Tensor) -> Tensor:
        """What is classified, (n, width): the mean output of the prompt tokens, or the encoder's feature."""
        tokens = self.prompts[choice].flatten(1, 2)
        with self.inserted.given(tokens):
            hidden = self.backbone.hidden(self.backbone.prepare(inputs))
        return hidden.states[:, -hidden.prompts :].mean(1) if self.readout == "prompts" else self.backbone.pool(hidden)

    def end_task(self, task: Task) -> None:
        self.chosen.record(self.choose(self.backbone.encode(task.train.inputs), learning=True), self.keys)

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        return {"own prompts": self.chosen.own(self.choose(self.backbone.encode(inputs)), task)}
