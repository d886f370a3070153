"""Statistics: heads that keep sums over examples, so that they add, remove and merge exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from everlearn.errors import ContractError, EverlearnError, printable
from everlearn.state import Stateful, check_finite, check_saved, grown


def names_of(classes: int | Sequence[str]) -> tuple[str, ...]:
    """The names of the classes; where only their number is given, they are called 0, 1, 2, …"""
    return tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)


class Statistics(Stateful):
    """Sums over examples, of which each class has its part, and what is solved from them.

    Only sums are kept. The head therefore does not depend on the order or the grouping of what was added
    (about 1e-12 relative), heads merge by addition, and an example is removed by subtraction. Classes are
    matched by name: two heads may have met the same classes in different orders.

    A subclass registers its buffers, says below what they are, and defines `_accumulate` and, where scores
    need one, `solve`.

    Attributes:
        class_names: the names of the classes, in the order of the scores.
        counts: (classes,) how many examples of each class were added.

    >>> from everlearn.heads.prototype import Prototype
    >>> head = Prototype(2)
    >>> head.grow(["cat", "dog"])
    >>> head.add(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1, 1]))
    >>> head.remove(torch.tensor([[0.0, 3.0]]), torch.tensor([1]))
    >>> head.counts.tolist()
    [1, 1]
    """

    by_class: ClassVar[Mapping[str, int]] = {}
    """Buffers that hold sums of each class, and the dimension along which the classes lie."""
    over_all: ClassVar[tuple[str, ...]] = ()
    """Buffers that hold sums over all classes."""
    solved: ClassVar[Mapping[str, tuple[int, float]]] = {}
    """Buffers that `solve` sets: the dimension of the classes, and the value of a class until it is solved for."""
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.class_names: tuple[str, ...] = ()
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))

    @property
    def classes(self) -> int:
        """How many classes it scores."""
        return len(self.counts)

    def grow(self, classes: int | Sequence[str]) -> None:
        """Have these classes, given by their names or by their number; old ones keep their places.

        Raises:
            ContractError: where an old class has another name or place, or two classes have one name.
        """
        names = names_of(classes)
        if len(set(names)) < len(names):
            raise ContractError(f"two classes have the same name, among {names[:5]}…: give each its own")
        if names[: len(self.class_names)] != self.class_names[: len(names)]:
            raise ContractError(f"the head knows the classes {self.class_names[:5]}… and was given {names[:5]}…")
        self.class_names = max(self.class_names, names, key=len)
        sums = {name: (dim, 0.0) for name, dim in {"counts": 0, **self.by_class}.items()}
        for name, (dim, fill) in {**sums, **self.solved}.items():
            setattr(self, name, grown(getattr(self, name), len(names), dim, fill))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count (n, width) features with their (n,) labels; `solve` makes them felt.

        Raises:
            ContractError: where a label is outside the classes that the head has grown to.
            EverlearnError: where a feature is not finite.
        """
        check_finite(features)
        self.counts = self._counted(labels, 1)
        self._accumulate(features, labels.to(self.counts.device), 1)

    @torch.no_grad()
    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Undo `add` for these (n, width) features and (n,) labels; `solve` makes it felt.

        Raises:
            ContractError: where more examples of a class leave than were added.
        """
        self.counts = self._counted(labels, -1)
        self._accumulate(features, labels.to(self.counts.device), -1)
        # What is left of the sums where no example is left is their rounding, and a covariance of it is no covariance.
        for sums, dim in self._class_sums():
            sums.index_fill_(dim, (self.counts == 0).nonzero()[:, 0], 0)
        if not self.counts.any():
            for name in self.over_all:
                getattr(self, name).zero_()

    @torch.no_grad()
    def merge(self, other: Statistics) -> None:
        """Count all that `other` has seen; its classes are found by their names. `solve` makes it felt.

        Raises:
            EverlearnError: where the two keep different statistics.
        """
        self._check_mergeable(other)
        self.grow([*self.class_names, *(name for name in other.class_names if name not in self.class_names)])
        places = self._places_of(other)
        for name, dim in {"counts": 0, **self.by_class}.items():
            mine = getattr(self, name)
            mine.index_add_(dim, places.to(mine.device), getattr(other, name).to(mine).clone())
        for name in self.over_all:
            getattr(self, name).add_(getattr(other, name).to(self.counts.device))

    def solve(self) -> Tensor | None:
        """Have the scores follow from the statistics, and return the weight, (features, classes); None where the scores
        are read off the sums."""
        return None

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """As every module, and each sum has the size of the classes, which replaying has grown the head to."""
        super().check_saved(saved)
        for name in {"counts", *self.by_class, *self.over_all, *self.solved} & saved.keys():
            check_saved(name, saved[name], self._buffers[name])

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _accumulate(features, labels, sign)")

    def _check_mergeable(self, other: Statistics) -> None:
        mine, theirs = (
            (type(head), getattr(head, "checksum", self.counts[:0]).tolist(), getattr(head, "select", None),
             [(*t.shape[:dim], *t.shape[dim + 1 :]) for t, dim in head._class_sums()]) for head in (self, other)
        )  # fmt: skip
        if len(other.class_names) != other.classes:
            raise EverlearnError("cannot merge a head whose classes have no names: grow it by their names first")
        if mine != theirs:
            raise EverlearnError(f"cannot merge {type(self).__name__.lower()} heads of different kinds, widths, "
                                 "random features or seeds: build both with the same settings")  # fmt: skip

    def _places_of(self, other: Statistics) -> Tensor:
        """The label here (classes of `other`,) of each class that `other` knows, by its name."""
        return torch.tensor([self.class_names.index(name) for name in other.class_names], dtype=torch.long)

    def _class_sums(self) -> list[tuple[Tensor, int]]:
        return [(getattr(self, name), dim) for name, dim in self.by_class.items()]

    def _counted(self, labels: Tensor, sign: int) -> Tensor:
        counted = torch.bincount(labels.to(self.counts.device), minlength=self.classes)
        if len(counted) > self.classes:
            remedy = "call grow in begin_task first" if sign > 0 else "it was never added; nothing was removed"
            raise ContractError(f"label {len(counted) - 1} in a head of {self.classes} classes: {remedy}")
        counts = self.counts + sign * counted
        if (counts < 0).any():
            name = (self.class_names or names_of(self.classes))[int((counts < 0).nonzero()[0])]
            raise ContractError(f"remove: the class '{printable(name, 60)}' would be left with fewer than 0 examples: "
                                "some of them were never added; nothing was removed")  # fmt: skip
        return counts
