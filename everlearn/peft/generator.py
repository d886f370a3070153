"""Generator: prompts made for each example by a small network, before every block (Jung et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from everlearn.errors import EverlearnError
from everlearn.peft.delta import Delta


class Generator(Delta):
    """Prompts of one block, made from its input and an embedding of each example's task: a linear map over
    positions with a bias, both zero at first, condenses the normalised tokens to `length` vectors, and the embedding
    scales and shifts them (DAP, Jung et al., 2023,
    https://openaccess.thecvf.com/content/ICCV2023/html/Jung_Generating_Instance-level_Prompts_for_Rehearsal-free_Continual_Learning_ICCV_2023_paper.html).

    Args:
        width: size of a token.
        length: prompts per block.
        positions: the longest sequence, in tokens, that the map over positions can read.
        embedding: size of a task's embedding.
        replaces: whether the prompts take the place of the block before's, or join the sequence.

    Raises:
        EverlearnError: in a pass, a sequence is longer than `positions`.
    """

    def __init__(self, width: int, length: int, positions: int, embedding: int, *, replaces: bool) -> None:
        super().__init__()
        self.length, self.replaces, self.is_active = length, replaces, False
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.condense = nn.Linear(positions, length)
        nn.init.zeros_(self.condense.weight)
        nn.init.zeros_(self.condense.bias)
        self.film = nn.Linear(embedding, 2 * width)
        self.task: torch.Tensor | None = None
        self.mask: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert self.mask is not None
        tokens = y[:, : self.mask.shape[1]]
        if tokens.shape[1] > self.condense.in_features:
            raise EverlearnError(f"method.positions: an input has {tokens.shape[1]} tokens, but the map over positions "
                                 f"reads {self.condense.in_features}: give at least {tokens.shape[1]}")  # fmt: skip
        seen = self.norm(tokens) * self.mask[..., None]
        condensed = self.condense.weight[:, : tokens.shape[1]] @ seen + self.condense.bias[:, None]
        gamma, beta = self.film(self.task).chunk(2, dim=-1)
        gamma, beta = (part / part.detach().norm(dim=-1, keepdim=True) for part in (gamma, beta))
        prompts = gamma[:, None] * condensed + beta[:, None]
        return torch.cat([tokens, prompts.to(y.dtype)], dim=1)


@contextmanager
def given(generators: nn.ModuleList, tasks: torch.Tensor, mask: torch.Tensor) -> Iterator[None]:
    """Inside the block every pass gets the task embeddings (n, size) and the mask (n, tokens)."""
    held = [cast(Generator, generator) for generator in generators]
    for generator in held:
        generator.task, generator.mask, generator.is_active = tasks, mask, True
        generator.added_tokens = 0 if generator.replaces else generator.length
    try:
        yield
    finally:
        for generator in held:
            generator.task, generator.mask, generator.is_active, generator.added_tokens = None, None, False, 0
