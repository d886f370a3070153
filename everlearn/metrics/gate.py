"""The gate: what a method must reach of retraining on all data (`joint`), on old tasks and on the newest one. And the
Pareto front of the methods that pass it.

Both halves are measured on the same cells of the accuracy matrix as joint's: the last row. So a class set that grows,
which makes every task harder, makes it as much harder for joint, and cannot be mistaken for forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from everlearn.metrics.intervals import Interval

OLD, NEW = 0.8, 0.9
"""The least that must be reached of joint's score on old tasks, and on the newest one."""

SAME = 1e-9

Least = tuple[float, float]

Verdict = Literal["pass", "fail", "cannot tell", "unknown"]


def old_and_new(scores: Sequence[float | None], counts: Sequence[int]) -> tuple[float | None, float | None]:
    """The score over the tests of all tasks but the last, and that on the last task.

    Args:
        scores: (T,) the last row of the accuracy matrix.
        counts: (T,) test examples per task, used as the weights of the mean.

    Returns:
        The first is None for a single task, which leaves no old one.

    >>> old_and_new([0.5, 0.75, 1.0], [100, 300, 50])
    (0.6875, 1.0)
    """
    known = [(score, n) for score, n in zip(scores[:-1], counts[:-1], strict=True) if score is not None and n]
    total = sum(n for _, n in known)
    return sum(score * n for score, n in known) / total if total else None, scores[-1] if scores else None


def part_of(score: float | None, reference: float | None) -> float | None:
    """A score divided by that of the reference; None where either is missing, or the reference has learned nothing.

    >>> part_of(0.6, 0.8), part_of(0.6, None), part_of(0.6, 0.0)
    (0.7499999999999999, None, None)
    """
    return None if score is None or not reference else score / reference


def passes(old: Interval | float | None, new: Interval | float | None, least: Least = (OLD, NEW)) -> Verdict:
    """Whether a method reaches enough of joint's score on old tasks *and* on the newest one.

    Args:
        old: score on old tasks now ÷ joint's; None for a single task, or where joint was not run.
        new: score on the newest task ÷ joint's.
        least: what each must reach.

    Returns:
        "fail" where one of them is below, "pass" where both reach it, "cannot tell" where an interval over several
        seeds holds the least, and "unknown" where one of the two is missing.

    >>> passes(0.95, 0.97), passes(0.75, 1.1), passes(1.02, 0.6), passes(None, 0.97)
    ('pass', 'fail', 'fail', 'unknown')
    >>> passes(Interval(0.82, 0.05), Interval(0.97, 0.01)), passes(Interval(0.82, 0.05), Interval(0.5, 0.01))
    ('cannot tell', 'fail')
    """
    if old is None or new is None:
        return "unknown"
    # A ratio such as 0.72 / 0.9 is a rounding error below what it is on paper.
    least = least[0] - SAME, least[1] - SAME
    halves = [half if isinstance(half, Interval) else Interval(half, None) for half in (old, new)]
    if any(half.high < wanted for half, wanted in zip(halves, least, strict=True)):
        return "fail"
    return "pass" if all(half.low >= wanted for half, wanted in zip(halves, least, strict=True)) else "cannot tell"


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
    """The seconds of a method without those in which the pre-trained encoder encoded, because the first method encodes
    for all later ones. What an encoder that the method has changed takes is the method's own.

    >>> own_seconds({"seconds": {"total": 12.0, "encode": 10.0, "encode_pretrained": 7.0}})
    5.0
    """
    seconds = results["seconds"]
    return seconds["total"] - seconds.get("encode_pretrained", seconds["encode"])  # older runs did not tell them apart
