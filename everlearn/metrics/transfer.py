"""Transfer (the influence of one task on another) and gain (the score on new tasks)."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.metrics.accuracy_matrix import Matrix, mean, square


def backward_transfer(matrix: Matrix) -> float | None:
    """The mean change of the score on old tasks since they were learned; negative values mean forgetting.

    Args:
        matrix: (T, T) scores.

    Raises:
        ValueError: if the matrix is not square.

    >>> backward_transfer([[0.75, None], [0.5, 1.0]])
    -0.25
    """
    last = square(matrix)[-1]
    return mean(_difference(last[j], matrix[j][j]) for j in range(len(matrix) - 1))


def forward_transfer(before: Sequence[float | None], initial: Sequence[float | None]) -> float | None:
    """The influence of earlier tasks on the score on a task that was not yet learned.

    Args:
        before: (T,) score on task j just before it was learned.
        initial: (T,) score on task j before any learning.

    Returns:
        The mean difference over all tasks except the first. None if these scores are not defined, as in
        class-incremental streams, where a model cannot predict a class before it has seen it.

    >>> forward_transfer([None, 0.5], [None, 0.25])
    0.25
    """
    return mean(_difference(a, b) for a, b in list(zip(before, initial, strict=True))[1:])


def gain(matrix: Matrix) -> float | None:
    """The mean score on each task after the first, just after it was learned; for a single task, its score.

    Args:
        matrix: (T, T) scores.

    Raises:
        ValueError: if the matrix is not square.

    >>> gain([[0.75, None], [0.5, 1.0]])
    1.0
    """
    learned = [row[i] for i, row in enumerate(square(matrix))]
    return mean(learned[1:] or learned)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
