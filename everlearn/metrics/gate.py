"""The gate: is a method worth keeping, and which of those that are does no other one beat?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

RETENTION = 0.8
GAIN_OF_REFERENCE = 0.9

Verdict = Literal["pass", "fail", "unknown"]


def passes(retention: float | None, gain: float | None, reference_gain: float | None = None) -> Verdict:
    """Whether a run keeps the old *and* learns the new.

    Args:
        retention: score on old tasks now ÷ when they were learned; None for a single task.
        gain: score on new tasks.
        reference_gain: the gain of retraining on everything (the method `joint`), if it was run.

    >>> passes(0.95, 0.88, reference_gain=0.9), passes(0.95, 0.5, reference_gain=0.9)
    ('pass', 'fail')
    >>> passes(0.5, 0.99), passes(0.95, 0.99)
    ('fail', 'unknown')
    """
    if retention is not None and retention < RETENTION:
        return "fail"
    if retention is None or gain is None or reference_gain is None:
        return "unknown"
    return "pass" if gain >= GAIN_OF_REFERENCE * reference_gain else "fail"


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """The positions of the points that no other point beats; larger is better in every coordinate.

    A point is beaten by one that is at least as good everywhere and better somewhere, so equal
    points stay together. Give a cost (seconds, bytes) with a minus sign.

    >>> pareto_front([(0.9, 0.9, -10), (0.95, 0.8, -20), (0.9, 0.8, -10)])
    [0, 1]
    """

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


def own_seconds(results: Mapping[str, Any]) -> float:
    """What a method itself takes: encoding is left out, for the first method encodes for all that follow.

    >>> own_seconds({"seconds": {"total": 12.0, "encode": 10.0}})
    2.0
    """
    return results["seconds"]["total"] - results["seconds"]["encode"]
