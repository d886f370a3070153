"""Batches: shuffled examples over several epochs, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from everlearn.seeds import derived_seed
from everlearn.streams.stream import Examples
from everlearn.streams.views import views

WINDOW = 8
"""How many batches are drawn together and then sorted by length."""


class Batches(Sequence[Examples]):
    """Shuffled batches over several epochs. Batch k depends on the seed and on k alone, so a resumed run
    continues at k without drawing the batches before it.

    Where the lengths of the examples are given, each run of `WINDOW` batches is sorted by length before it
    is cut into batches, and these are shuffled. Short texts are then not padded to the length of long
    ones, which halves the number of tokens.

    >>> data = Examples(["a", "b", "c"], torch.tensor([0, 1, 0]), ["1", "2", "3"])
    >>> [len(batch) for batch in Batches(data, epochs=2, size=2, seed=0)]
    [2, 1, 2, 1]
    """

    def __init__(
        self, examples: Examples, epochs: int, size: int, seed: int, lengths: Sequence[int] | None = None,
        augment: bool = False,
    ) -> None:  # fmt: skip
        self.examples, self.size, self.seed, self.lengths, self.augment = examples, size, seed, lengths, augment
        self.per_epoch = -(-len(examples) // size)
        self.length = epochs * self.per_epoch
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        batch = self.examples[self.rows(index)]
        return augmented(batch, self.seed, index) if self.augment else batch

    def rows(self, index: int) -> torch.Tensor:
        """Which examples are in the batch of this number, (size,); the last batch of an epoch may have fewer."""
        epoch, position = divmod(index, self.per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            order = torch.randperm(len(self.examples), generator=generator)
            self._order = (epoch, self.by_length(order, generator))
        return self._order[1][position * self.size : (position + 1) * self.size]

    def by_length(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The rows (n,) in an order in which each batch holds similar lengths, where the lengths are given."""
        if self.lengths is None:
            return order
        lengths = torch.tensor(self.lengths)
        batches: list[torch.Tensor] = []
        for window in order.split(WINDOW * self.size):
            window = window[lengths[window].argsort(stable=True)]
            cut = list(window.split(self.size))
            full = [batch for batch in cut if len(batch) == self.size]
            shuffled = torch.randperm(len(full), generator=generator).tolist()
            batches += [full[i] for i in shuffled] + cut[len(full) :]  # a smaller batch stays the last one
        return torch.cat(batches)


class Interleaved(Sequence[Examples]):
    """The batches of several sequences, each in its own order, in turns that a seed decides.

    >>> data = Examples(["a", "b", "c"], torch.tensor([0, 1, 0]), ["1", "2", "3"])
    >>> both = Interleaved([Batches(data, 1, 2, seed=0), Batches(data[[0]], 1, 2, seed=0)], seed=1)
    >>> sorted(len(both[k]) for k in range(len(both)))
    [1, 1, 2]
    """

    def __init__(self, parts: Sequence[Sequence[Examples]], seed: int) -> None:
        self.parts = parts
        turns = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
        self.turns = turns[torch.randperm(len(turns), generator=torch.Generator().manual_seed(derived_seed(seed)))]
        self.places = torch.empty_like(self.turns)  # of each batch within its own sequence
        for number, part in enumerate(parts):
            self.places[self.turns == number] = torch.arange(len(part))

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, index: Any) -> Any:
        return self.parts[int(self.turns[index])][int(self.places[index])]


def of_similar_length(lengths: Sequence[int], most_tokens: int, most: int) -> list[list[int]]:
    """All rows in batches of similar length, the shortest first, so that little is padded.

    Args:
        lengths: the number of tokens of each row.
        most_tokens: the most tokens of a batch, where each row is padded to the longest; a single row may have more.
        most: the most rows of a batch.

    >>> of_similar_length([3, 9, 2, 3], most_tokens=9, most=8)
    [[2, 0, 3], [1]]
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or len(batches[-1]) == most or (len(batches[-1]) + 1) * lengths[row] > most_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def augmented(batch: Examples, *seed: int) -> Examples:
    """The batch with a random view of each image in place of the image."""
    seeds = [derived_seed(*seed, row) for row in range(len(batch))]
    return replace(batch, inputs=views(batch.inputs, seeds))
