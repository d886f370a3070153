"""Forgetting events: how often an example that was answered rightly is answered wrongly when it is presented again.

Toneva, Sordoni, Tachet des Combes, Trischler, Bengio & Gordon, "An Empirical Study of Example Forgetting during Deep
Neural Network Learning", ICLR 2019, https://arxiv.org/abs/1812.05159
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Events:
    """What happened to an example while it was trained on.

    Args:
        presented: how often it was presented.
        learned: at which presentation it was right first, from 0; None if it never was.
        forgotten: how often it was right, and wrong when it was presented next.
        right: whether it was right when it was presented last.

    >>> events_of([False, True, True, False, True, False])
    Events(presented=6, learned=1, forgotten=2, right=False)
    """

    presented: int
    learned: int | None
    forgotten: int
    right: bool

    @property
    def is_never_forgotten(self) -> bool:
        """Whether it was learned, and right ever after: unforgettable, as the paper says."""
        return self.learned is not None and not self.forgotten


def events_of(right: Sequence[bool]) -> Events:
    """The events of an example, from whether it was right at each of its presentations, in order.

    Args:
        right: one entry or more.

    >>> events_of([False, False]).learned is None, events_of([False, True, True]).is_never_forgotten
    (True, True)
    """
    learned = next((number for number, value in enumerate(right) if value), None)
    falls = sum(before and not after for before, after in pairwise(right))
    return Events(len(right), learned, falls, bool(right[-1]))


def order(events: Sequence[Events]) -> list[int]:
    """The positions of the examples, the most forgotten first. One that was never learned comes before all others, as
    in the paper; of equal ones the one that was learned later comes first.

    >>> order([events_of([True, False, True]), events_of([False, False]), events_of([True, True, True])])
    [1, 0, 2]
    """

    def key(place: int) -> tuple[bool, int, int, int]:
        one = events[place]
        return one.learned is not None, -one.forgotten, -(one.learned or 0), place

    return sorted(range(len(events)), key=key)
