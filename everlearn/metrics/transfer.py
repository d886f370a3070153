"""Transfer: what one task does for another, and gain, the score on what is new."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.metrics.accuracy_matrix import Matrix, mean, square


def backward_transfer(matrix: Matrix) -> float | None:
    """The change on old tasks between when they were learned and now; negative is forgetting.

    >>> backward_transfer([[0.75, None], [0.5, 1.0]])
    -0.25
    """
    last = square(matrix)[-1]
    return mean(_difference(last[j], matrix[j][j]) for j in range(len(matrix) - 1))


def forward_transfer(before: Sequence[float | None], initial: Sequence[float | None]) -> float | None:
    """What earlier tasks did for a task that was not learned yet.

    Args:
        before: (T,) score on task j just before it was learned.
        initial: (T,) score of the untouched model on task j.

    Returns:
        The mean difference over all tasks but the first; None where the protocol defines neither,
        as in class-incremental streams, where a model cannot name a class before it is shown.

    >>> forward_transfer([None, 0.5], [None, 0.25])
    0.25
    """
    return mean(_difference(a, b) for a, b in list(zip(before, initial, strict=True))[1:])


def gain(matrix: Matrix) -> float | None:
    """The score on each new task just when it was learned; of a single task, its score.

    >>> gain([[0.75, None], [0.5, 1.0]])
    1.0
    """
    learned = [row[i] for i, row in enumerate(square(matrix))]
    return mean(learned[1:] or learned)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
