"""Prompt tokens: vectors that are added to the embedded sequence (Lester et al., 2021; Jia et al., 2022).

Prompts are appended at the end. In a backbone without relative positions, their place makes no difference, and
the position embeddings, the padding and the CLS token of the example do not move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from everlearn.peft.delta import Delta


class PromptTokens(Delta):
    """Appends given tokens, one set per example, to the sequence at the `tokens` site of a backbone.

    The tokens are not parameters of this delta: their owner (a pool, a task) passes them in for each pass.
    With `replaces`, on a later block, they replace the last tokens instead.

    >>> import torch
    >>> delta, y = PromptTokens(), torch.zeros(1, 3, 8)
    >>> with delta.given(torch.ones(1, 2, 8)):
    ...     tuple(delta(y, y).shape)
    (1, 5, 8)
    """

    def __init__(self, *, replaces: bool = False) -> None:
        super().__init__()
        self.is_active = False
        self.replaces = replaces
        self._tokens: torch.Tensor | None = None

    @contextmanager
    def given(self, tokens: torch.Tensor) -> Iterator[None]:
        """Inside the `with` statement every pass gets `tokens`, of shape (n, p, width)."""
        self._tokens, self.is_active = tokens, True
        self.added_tokens = 0 if self.replaces else tokens.shape[1]
        try:
            yield
        finally:
            self._tokens, self.added_tokens, self.is_active = None, 0, False

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert self._tokens is not None, "PromptTokens is used inside `with prompts.given(tokens):`"
        kept = y[:, : -self._tokens.shape[1]] if self.replaces else y
        return torch.cat([kept, self._tokens.to(y.dtype)], dim=1)


class Prompt(Delta):
    """Trained tokens, the same for every example. At the `tokens` site they are appended to the sequence (shallow
    prompts). At the `output` of a block, with `replaces`, they replace its last tokens (deep prompts, VPT).

    Args:
        width: size of a token.
        length: number of tokens.
        replaces: whether they replace as many tokens at the end of the sequence.

    >>> import torch
    >>> y = torch.zeros(2, 5, 8)
    >>> tuple(Prompt(8, length=3)(y, y).shape), tuple(Prompt(8, length=3, replaces=True)(y, y).shape)
    ((2, 8, 8), (2, 5, 8))
    """

    def __init__(self, width: int, *, length: int = 5, replaces: bool = False) -> None:
        super().__init__()
        self.added_tokens = 0 if replaces else length
        self.replaces = replaces
        self.vectors = nn.Parameter(torch.empty(length, width))
        nn.init.xavier_uniform_(self.vectors)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y (n, tokens, width) with the trained tokens appended, or in the place of its last ones; x is not used."""
        kept = y[:, : -len(self.vectors)] if self.replaces else y
        return torch.cat([kept, self.vectors.expand(len(y), -1, -1).to(y.dtype)], dim=1)
