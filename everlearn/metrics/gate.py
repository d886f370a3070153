"""The gate (minimum retention and gain), and the Pareto front of the methods that pass it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

RETENTION = 0.8
GAIN_OF_REFERENCE = 0.9

Verdict = Literal["pass", "fail", "unknown"]


def passes(retention: float | None, gain: float | None, reference_gain: float | None = None) -> Verdict:
    """Whether a run has sufficient retention *and* sufficient gain.

    Args:
        retention: score on old tasks at the end ÷ their score when learned; None for a single task.
        gain: score on new tasks just after they were learned.
        reference_gain: the gain of retraining on all data (the method `joint`), if it was run.

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
    """The indices of the points that no other point dominates; larger is better in every coordinate.

    A point dominates another one if it is at least as good in all coordinates and better in one, so equal
    points do not exclude each other. Give a cost (seconds, bytes) with a minus sign.

    >>> pareto_front([(0.9, 0.9, -10), (0.95, 0.8, -20), (0.9, 0.8, -10)])
    [0, 1]
    """

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


def own_seconds(results: Mapping[str, Any]) -> float:
    """The seconds of a method without encoding, because the first method encodes for all later ones.

    >>> own_seconds({"seconds": {"total": 12.0, "encode": 10.0}})
    2.0
    """
    return results["seconds"]["total"] - results["seconds"]["encode"]
