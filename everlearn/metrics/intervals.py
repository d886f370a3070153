"""What several seeds say together: a mean, its 95 % interval, and what may be concluded from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Conclusion = Literal["holds", "does not hold", "cannot tell"]

QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
             2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
             2.042)  # fmt: skip
"""Of Student's t at 97.5 %, for 1 to 30 degrees of freedom. From 31 on the last one is used: at most 4 % too wide."""


@dataclass(frozen=True)
class Interval:
    """A mean with the half width of its 95 % interval.

    Args:
        mean: of the values.
        half: half the width of the interval; None for a single value, which has none.

    >>> Interval(0.9, 0.02).low, Interval(0.9, None).low
    (0.88, 0.9)
    """

    mean: float
    half: float | None

    @property
    def low(self) -> float:
        """The lower bound; the value itself where there is only one."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper bound; the value itself where there is only one."""
        return self.mean + (self.half or 0.0)


def interval(values: Iterable[float | None]) -> Interval | None:
    """The mean of the values that are known, one for each seed, and the 95 % interval of Student's t.

    Returns:
        None where no value is known.

    >>> found = interval([0.90, 0.92, 0.94])
    >>> round(found.mean, 2), round(found.half, 3)
    (0.92, 0.05)
    >>> interval([0.9]), interval([None])
    (Interval(mean=0.9, half=None), None)
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    if len(known) == 1:
        return Interval(mean, None)
    t = QUANTILES[min(len(known) - 1, len(QUANTILES)) - 1]
    return Interval(mean, t * statistics.stdev(known) / math.sqrt(len(known)))


def paired(first: Sequence[float | None], second: Sequence[float | None]) -> Interval | None:
    """The interval of the differences `second` - `first`, seed by seed. What makes a seed hard for both cancels out.

    Raises:
        ValueError: there are not as many of the one as of the other.

    >>> easier_and_harder = [0.80, 0.90, 0.70], [0.82, 0.92, 0.72]
    >>> round(paired(*easier_and_harder).mean, 3), round(paired(*easier_and_harder).half, 3)
    (0.02, 0.0)
    """
    pairs = zip(first, second, strict=True)
    return interval(None if a is None or b is None else b - a for a, b in pairs)


def conclusion(difference: Interval | None) -> Conclusion:
    """Whether it holds that something is at least as large as something else, from the difference of the two.

    It holds where the whole interval is at least 0, and does not hold where the whole interval is below 0. In between,
    and without an interval (a single seed), nobody can tell.

    >>> conclusion(Interval(0.02, 0.01)), conclusion(Interval(-0.02, 0.01)), conclusion(Interval(0.02, 0.03))
    ('holds', 'does not hold', 'cannot tell')
    >>> conclusion(Interval(0.02, None))
    'cannot tell'
    """
    if difference is None or difference.half is None or difference.low < 0 <= difference.high:
        return "cannot tell"
    return "holds" if difference.low >= 0 else "does not hold"
