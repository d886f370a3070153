"""DAP: prompts generated for each instance by a small network per block (Jung et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from everlearn.backbones.backbone import Backbone
from everlearn.heads.linear import append_rows
from everlearn.losses import cross_entropy
from everlearn.memory.selection import Selection
from everlearn.method import Method, Tags, seeded
from everlearn.peft.delta import Delta
from everlearn.streams.stream import Examples, Input, Task

EMBEDDING = 16  # length of a task's embedding, as published
KEY = 0.0625  # within which a key starts: Xavier's bound for ViT-B's patches, as published


class DAP(Method):
    """Generating Instance-level Prompts for Rehearsal-free Continual Learning. Jung, Han, Bang & Song,
    ICCV 2023, https://openaccess.thecvf.com/content/ICCV2023/html/Jung_Generating_Instance-level_Prompts_for_Rehearsal-free_Continual_Learning_ICCV_2023_paper.html

    Before every block a linear map over positions, zero at first and trained on the first task only,
    condenses the normalised tokens to `length` vectors; an embedding of the task scales and shifts
    them; the result takes the place of the last block's prompts. A key a task, pulled to its queries,
    says whose embedding an example gets.

    Departs from the released code, which lets a batch vote for one task: here each example has its
    own. A new task's embedding starts as the last one: at random its prompts may take all attention. On
    texts, whose lengths differ, padding is masked and the map has `positions` columns.

    Args:
        backbone: a pre-trained encoder, frozen.
        length: prompts a block.
        positions: the longest sequence, in tokens, that the map over positions can read.
        pull: weight of the keys' cosine to the query.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate (Adam, betas 0.9 and 0.9, amsgrad).
        seed: of the task embeddings, keys, head and the order of examples.

    Relations: `vpt` with deep prompts, made for each example.

    >>> from everlearn import backbones
    >>> len(DAP(backbones.load("tiny")).generators)
    2
    """

    tags = Tags(family="prompt", trains="peft", needs_boundaries=True)
    Optimizer = torch.optim.Adam
    clip = 1.0

    def __init__(
        self, backbone: Backbone, *, length: int = 10, positions: int = 512, pull: float = 0.1,
        epochs: int = 5, batch_size: int = 16, lr: float = 0.01, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.pull = pull
        self.tasks = nn.Parameter(torch.empty(0, EMBEDDING))
        self.keys = nn.Parameter(torch.empty(0, backbone.width))
        self.chosen = Selection()
        self.generators = nn.ModuleList()
        with seeded(seed):
            for index in range(backbone.depth):
                site = backbone.block(index - 1).output if index else backbone.tokens
                generator = Generator(backbone.width, length, positions, replaces=index > 0)
                self.generators.append(backbone.attach(generator, site))

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.tasks = append_rows(self.tasks, self.tasks.detach()[-1:] if len(self.tasks) else torch.randn(1, EMBEDDING))
        self.keys = append_rows(self.keys, torch.empty(1, self.backbone.width).uniform_(-KEY, KEY))
        for generator in self.generators:
            cast(Generator, generator).condense.requires_grad_(task.index == 0)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{**group, "betas": (0.9, 0.9), "amsgrad": True} for group in super().param_groups()]

    def select(self, inputs: Sequence[Input]) -> torch.Tensor:
        """The task (n,) whose key is nearest to each query."""
        return (normalize(self.backbone.encode(inputs)) @ normalize(self.keys).T).argmax(1)

    def prompted(self, inputs: Sequence[Input], tasks: torch.Tensor) -> torch.Tensor:
        """Features (n, width), each example with the embedding of one of `tasks` (n,)."""
        prepared = self.backbone.prepare(inputs)
        with given(self.generators, self.tasks[tasks], self.backbone.mask(prepared)):
            return self.backbone.pool(self.backbone.hidden(prepared))

    def loss(self, batch: Examples) -> torch.Tensor:
        tasks = torch.full((len(batch),), self.task.index, device=self.backbone.device)
        scores = self.head(self.prompted(batch.inputs, tasks))
        nearness = cosine_similarity(self.backbone.encode(batch.inputs), self.keys[tasks])
        return cross_entropy(scores, self.labels(batch), classes=self.task.classes) - self.pull * nearness.mean()

    def end_task(self, task: Task) -> None:
        self.chosen.record(self.select(task.train.inputs)[:, None], self.keys)

    def embed(self, inputs: Sequence[Input]) -> torch.Tensor:
        tasks = self.select(inputs)
        return self.backbone.infer(inputs, lambda batch, rows: self.prompted(batch, tasks[rows]))

    def measures(self, task: Task) -> dict[str, float]:
        own = self.select(task.test.inputs) == task.index
        return {"own prompts": own.double().mean().item()}

    def diagnostics(self) -> dict[str, Any]:
        return {"task embedding selection": self.chosen.diagnostics()}


class Generator(Delta):
    """Prompts of one block, from its input and each example's task embedding."""

    def __init__(self, width: int, length: int, positions: int, *, replaces: bool) -> None:
        super().__init__()
        self.length, self.replaces, self.is_active = length, replaces, False
        self.norm = nn.LayerNorm(width)
        self.condense = nn.Parameter(torch.zeros(length, positions))
        self.film = nn.Linear(EMBEDDING, 2 * width)
        self.task: torch.Tensor | None = None
        self.mask: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert self.mask is not None
        tokens = y[:, : self.mask.shape[1]]
        seen = self.norm(tokens) * self.mask[..., None]
        condensed = self.condense[:, : tokens.shape[1]] @ seen
        gamma, beta = self.film(self.task).chunk(2, dim=-1)
        gamma, beta = (part / part.detach().norm(dim=-1, keepdim=True) for part in (gamma, beta))
        prompts = gamma[:, None] * condensed + beta[:, None]
        return torch.cat([tokens, prompts.to(y.dtype)], dim=1)


@contextmanager
def given(generators: nn.ModuleList, tasks: torch.Tensor, mask: torch.Tensor) -> Iterator[None]:
    """Inside the block every pass gets the task embeddings (n, 16) and the mask (n, tokens)."""
    held = [cast(Generator, generator) for generator in generators]
    for generator in held:
        generator.task, generator.mask, generator.is_active = tasks, mask, True
        generator.added_tokens = 0 if generator.replaces else generator.length
    try:
        yield
    finally:
        for generator in held:
            generator.task, generator.mask, generator.is_active, generator.added_tokens = None, None, False, 0
