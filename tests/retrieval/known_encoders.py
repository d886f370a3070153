"""Encoders for tests whose quality and kinship are known: a text names a number, and its embedding is near that of
the number, turned, moved and stretched as the encoder says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from everlearn import backbones
from everlearn.method import Method, Role, Tags
from everlearn.streams.retrieval import Entry

BASE = 32


class Known(Method):
    """Embeds the last number n of a text as row n of random vectors, with noise for queries.

    Args:
        family: seed of the rows; encoders of two families know nothing of each other.
        noise: of queries; the larger, the less an encoder finds.
        turned: whether the space is turned.
        moved: by how much queries and documents are moved in one direction.
    """

    tags = Tags(family="baseline", trains="nothing", goals=("ranking",))
    asked: ClassVar[list[str]] = []
    """All texts that were embedded."""

    def __init__(self, *, family: int = 0, noise: float = 0.3, turned: bool = False, moved: float = 0.0) -> None:
        super().__init__(backbones.load("tiny"))
        self.known = (family, noise, turned, moved)

    def param_groups(self) -> list[dict[str, Any]]:
        return []

    def document_space(self) -> str:
        family, _, turned, moved = self.known
        return f"family {family}, turned {turned}, moved {moved}"

    def reaches(self, space: str) -> bool:
        return space == self.document_space()

    def embed(self, inputs: Sequence[Any], role: Role | None = None) -> torch.Tensor:
        family, noise, turned, moved = self.known
        self.asked.extend(inputs)
        rows = []
        for text in inputs:
            number = int(re.findall(r"\d+", str(text))[-1])
            row = np.random.default_rng([family, number]).normal(size=BASE)
            if role == "query":
                row = row + noise * np.random.default_rng([7, number]).normal(size=BASE)
            rows.append(row / np.linalg.norm(row) + moved * np.eye(BASE)[0])
        turn = np.linalg.qr(np.random.default_rng(5).normal(size=(BASE, BASE)))[0] if turned else np.eye(BASE)
        return torch.from_numpy(np.array(rows) @ turn).float()


def texts(n: int) -> dict[str, str]:
    """n documents by id."""
    return {f"d{i}": f"document number {i}" for i in range(n)}


def queries(n: int, domains: int = 1) -> list[Entry]:
    """One query for each of the first n documents."""
    return [Entry(f"q{i}", f"query number {i}", f"domain {i % domains}", None, {f"d{i}": 1}) for i in range(n)]
