"""The accuracy matrix: cell (i, j) is the score on the tests of task j after learning task i.

All metrics of a run are computed from this matrix. A cell is None where nothing was measured: above
the diagonal, and for a task without test examples. A metric that cannot be computed is None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Matrix = Sequence[Sequence[float | None]]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None.

    >>> mean([0.5, None, 1.0])
    0.75
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def square(matrix: Matrix) -> Matrix:
    """Return the matrix if it is square; otherwise raise a ValueError."""
    if not matrix or any(len(row) != len(matrix) for row in matrix):
        raise ValueError(f"an accuracy matrix must be square; got rows of {[len(row) for row in matrix]} cells")
    return matrix


def curve(matrix: Matrix, counts: Sequence[int]) -> list[float | None]:
    """The score over the tests of all seen tasks, after each of T tasks.

    Args:
        matrix: (T, T) scores.
        counts: (T,) test examples per task, used as the weights of the mean.

    Raises:
        ValueError: if the matrix is not square, or if `counts` has another length.

    >>> curve([[1.0, None], [0.5, 0.8]], [100, 200])
    [1.0, 0.7]
    """
    if len(counts) != len(square(matrix)):
        raise ValueError(f"{len(matrix)} tasks but {len(counts)} counts of test examples")
    scores: list[float | None] = []
    for row in matrix:
        seen = [(score, n) for score, n in zip(row, counts, strict=True) if score is not None and n]
        total = sum(n for _, n in seen)
        scores.append(sum(score * n for score, n in seen) / total if total else None)
    return scores


def final_accuracy(matrix: Matrix, counts: Sequence[int]) -> float | None:
    """The score over the tests of all tasks, after the last task.

    Args:
        matrix: (T, T) scores.
        counts: (T,) test examples per task.

    Raises:
        ValueError: if the sizes do not match.

    >>> final_accuracy([[1.0, None], [0.5, 0.8]], [100, 200])
    0.7
    """
    return curve(matrix, counts)[-1]


def average_accuracy(matrix: Matrix, counts: Sequence[int]) -> float | None:
    """The mean of `curve`: one score after each task. It is also called average incremental accuracy.

    Args:
        matrix: (T, T) scores.
        counts: (T,) test examples per task.

    Raises:
        ValueError: if the sizes do not match.

    >>> average_accuracy([[1.0, None], [0.5, 0.8]], [100, 200])
    0.85
    """
    return mean(curve(matrix, counts))
