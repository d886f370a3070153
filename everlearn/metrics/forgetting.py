"""Forgetting and retention: how much the scores on old tasks have changed after the last task.

In a class-incremental stream a score falls for two reasons: the model has forgotten, and it has more classes to choose
among. `forgetting` and `retention` are the field's figures and hold both; `forgetting_proper` holds the first alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.metrics.accuracy_matrix import Matrix, mean, square


def forgetting(matrix: Matrix) -> float | None:
    """The mean drop of old tasks from their best earlier score; negative if they only improved.

    Args:
        matrix: (T, T) scores. The result is None for a single task, because there is no old task.

    Raises:
        ValueError: if the matrix is not square.

    >>> forgetting([[0.75, None], [0.5, 1.0]])
    0.25
    """
    *earlier, last = square(matrix)
    drops = []
    for j, now in enumerate(last[:-1]):
        past = [score for row in earlier if (score := row[j]) is not None]
        drops.append(max(past) - now if past and now is not None else None)
    return mean(drops)


def retention(matrix: Matrix) -> float | None:
    """The score on old tasks after the last task, divided by their score when they were learned.

    It is above 1 if later tasks improved old ones, and None for a single task or if nothing was learned.

    Args:
        matrix: (T, T) scores.

    Raises:
        ValueError: if the matrix is not square.

    >>> retention([[0.8, None], [0.6, 1.0]])
    0.7499999999999999
    """
    last = square(matrix)[-1]
    pairs = [(last[j], matrix[j][j]) for j in range(len(matrix) - 1)]
    known = [(now, then) for now, then in pairs if now is not None and then is not None]
    learned = sum(then for _, then in known)
    return sum(now for now, _ in known) / learned if learned else None


def forgetting_proper(matrix: Matrix, known: Sequence[float | None]) -> float | None:
    """The mean drop of old tasks, over the classes that were known when each was learned; negative if they improved.

    A model that learns nothing after its first task, or that is never changed, has 0 here, however many classes come.

    Args:
        matrix: (T, T) scores. The result is None for a single task.
        known: (T,) score on task j at the end, where the answer is chosen among the classes known after task j.

    Raises:
        ValueError: if the matrix is not square, or `known` has another length.

    >>> more_classes = [[0.75, None], [0.5, 1.0]]
    >>> forgetting(more_classes), forgetting_proper(more_classes, [0.75, 1.0])
    (0.25, 0.0)
    """
    if len(known) != len(square(matrix)):
        raise ValueError(f"{len(matrix)} tasks but {len(known)} scores among known classes")
    pairs = [(matrix[j][j], known[j]) for j in range(len(matrix) - 1)]
    return mean(None if then is None or now is None else then - now for then, now in pairs)
