"""DAP: prompts generated for each instance by a small network per block (Jung et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from everlearn.backbones.backbone import Backbone
from everlearn.heads.linear import append_rows
from everlearn.memory.moments import Moments
from everlearn.method import Tags
from everlearn.methods.prompted import Prompted, voted
from everlearn.optimizer_step import OptimizerStep
from everlearn.peft.generator import Generator, given
from everlearn.seeds import seeded
from everlearn.settings import Count, LargeSize, Rate, Seed, Size, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task

EMBEDDING = 16  # length of a task's embedding, as published
KEY = 0.0625  # first values of a key lie within ± this: Xavier's bound for ViT-B's patches, as published


class DAP(Prompted):
    """Generating Instance-level Prompts for Rehearsal-free Continual Learning. Jung, Han, Bang & Song,
    ICCV 2023, https://openaccess.thecvf.com/content/ICCV2023/html/Jung_Generating_Instance-level_Prompts_for_Rehearsal-free_Continual_Learning_ICCV_2023_paper.html

    Before every block a linear map over positions, zero at first and trained on the first task only, condenses the
    normalised tokens to `length` vectors. An embedding of the task scales and shifts them, and the result replaces the
    prompts of the block before. Each task has a key, which is pulled towards its queries; the nearest key decides whose
    embedding an example gets.

    Departures from the released code that `paper_compat` takes back: there the examples of a batch get the embedding
    that most of them chose, also when predicting, which leaks; here each example gets its own. There every embedding
    starts at random; here that of a new task starts as a copy of the last one, which was much better on images
    and a little worse on texts. There one optimizer learns all tasks: what it knows of
    earlier gradients makes its later steps small, and for some steps it still moves the keys and embeddings of old
    tasks; here each task has its own.

    Departures that stay: there the first weights of the head depend on the number of all classes, and the keys of all
    tasks exist from the start; here neither number is known, so new classes start small and each task brings its key.
    There every input has 197 tokens; here texts differ in length, so padding is masked and the map has `positions`
    columns.

    Args:
        backbone: a pre-trained encoder, frozen.
        length: prompts per block.
        positions: the longest sequence, in tokens, that the map over positions can read.
        pull: weight of the keys' cosine to the query.
        paper_compat: choose by a vote of each batch, start every embedding at random, and keep the state of the
            optimizer between tasks, as released. The vote leaks.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the generators, task embeddings and keys (Adam, betas 0.9 and 0.9, amsgrad).
        head_lr: learning rate of the head, for features of norm 1; it is divided by their norm. With None it is `lr`.
        seed: of the task embeddings, keys, head and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Relations: `vpt` with deep prompts, made for each example.

    >>> from everlearn import backbones
    >>> len(DAP(backbones.load("tiny")).generators)
    2
    """

    tags = Tags(family="prompt", trains="peft", needs=("last layer",))
    Optimizer = torch.optim.Adam
    clip = 1.0
    reported = "task embedding selection"

    def __init__(
        self, backbone: Backbone, *, length: Size = 10, positions: LargeSize = 512, pull: Strength = 0.1,
        paper_compat: bool = False, epochs: Count = 5, batch_size: Count = 128, lr: Rate = 0.01,
        head_lr: Rate | None = 0.5, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.strength, self.paper_compat, self.head_lr = pull, paper_compat, head_lr
        self.moments = Moments() if paper_compat else None
        self.tasks = nn.Parameter(torch.empty(0, EMBEDDING))
        self.keys = nn.Parameter(torch.empty(0, backbone.width))
        self.generators = nn.ModuleList()
        with seeded(seed):
            for index in range(backbone.depth):
                site = backbone.block(index - 1).output if index else backbone.tokens
                generator = Generator(backbone.hidden_width, length, positions, EMBEDDING, replaces=index > 0)
                self.generators.append(backbone.attach(generator, site))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        copied = len(self.tasks) > 0 and not self.paper_compat
        self.tasks = append_rows(self.tasks, self.tasks.detach()[-1:] if copied else torch.randn(1, EMBEDDING))
        self.keys = append_rows(self.keys, torch.empty(1, self.backbone.width).uniform_(-KEY, KEY))
        for generator in self.generators:
            cast(Generator, generator).condense.requires_grad_(task.index == 0)
        if self.moments is not None:
            self.moments.grow(self.trained())

    def param_groups(self) -> list[dict[str, Any]]:
        return [{**group, "betas": (0.9, 0.9), "amsgrad": True} for group in super().param_groups()]

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        if self.moments is None:
            return super().step(batch, optimizer_step)
        with self.moments.carried(optimizer_step.optimizer, self.trained()):
            return super().step(batch, optimizer_step)

    def choose(self, queries: Tensor, learning: bool = False) -> Tensor:
        chosen = super().choose(queries, learning)
        return voted(chosen[:, None], len(self.keys), self.batch_size)[:, 0] if self.paper_compat else chosen

    def prompted(self, inputs: Sequence[Input], choice: Tensor) -> Tensor:
        """Features (n, width), each example with the embedding of the task that was chosen for it."""
        prepared = self.backbone.prepare(inputs)
        with given(self.generators, self.tasks[choice], self.backbone.mask(prepared)):
            return self.backbone.pool(self.backbone.hidden(prepared))

    def pull(self, queries: Tensor, choice: Tensor) -> Tensor:
        return -self.strength * cosine_similarity(queries, self.keys[choice])
