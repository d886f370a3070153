"""Context: trained vectors in the place of a text's words (CoOp; Zhou et al., 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from everlearn.peft.delta import Delta


class Context(Delta):
    """Puts given vectors in the place of the embeddings of some tokens, at the `words` site of a text encoder. They
    stand before the name of a class, whose text has placeholders there (`Backbone.placeholders`): the text keeps its
    length and its positions, so encoders that read from left to right take them too.

    Zhou, Yang, Loy & Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022, https://arxiv.org/abs/2109.01134.
    The vectors are not parameters of this delta: their owner passes them in for each pass.

    Args:
        start: the place of the first placeholder among the tokens.

    >>> context, y = Context(start=1), torch.zeros(1, 4, 2)
    >>> with context.given(torch.ones(1, 2, 2)):
    ...     context(y, y)[0, :, 0].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, start: int) -> None:
        super().__init__()
        self.is_active, self.start = False, start
        self._vectors: torch.Tensor | None = None

    @contextmanager
    def given(self, vectors: torch.Tensor) -> Iterator[None]:
        """Inside the `with` statement every pass gets `vectors`, of shape (n, p, width): those of each text."""
        self._vectors, self.is_active = vectors, True
        try:
            yield
        finally:
            self._vectors, self.is_active = None, False

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y (n, tokens, width) with the given vectors in the place of the placeholders; x is not used."""
        assert self._vectors is not None, "Context is used inside `with context.given(vectors):`"
        end = self.start + self._vectors.shape[1]
        return torch.cat([y[:, : self.start], self._vectors.to(y.dtype), y[:, end:]], dim=1)
