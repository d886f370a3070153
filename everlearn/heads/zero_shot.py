"""ZeroShot: a class is the text embedding of its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.heads.statistics import names_of
from everlearn.state import Stateful, grown


class ZeroShot(Stateful):
    """Scores cos(f, embedding of the class name); it needs no training and no examples.

    Args:
        width: length of a feature vector, and of a text embedding.

    >>> head = ZeroShot(2)
    >>> head.set(torch.tensor([[5.0, 0.0], [0.0, 2.0]]))
    >>> head(torch.tensor([[0.0, 3.0]])).tolist()
    [[0.0, 1.0]]
    """

    embeddings: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("embeddings", torch.empty(0, width))

    @property
    def classes(self) -> int:
        """How many classes it scores."""
        return len(self.embeddings)

    def set(self, embeddings: Tensor) -> None:
        """Take the (classes, width) text embeddings of all class names, in label order, of any length."""
        self.embeddings = normalize(embeddings.detach().to(self.embeddings), dim=1)

    def grow(self, classes: int | Sequence[str]) -> None:
        """Have a row for each of these classes; a class scores 0 until `set` gives its embedding."""
        self.embeddings = grown(self.embeddings, len(names_of(classes)))

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) cosines."""
        return normalize(features, dim=1) @ self.embeddings.T
