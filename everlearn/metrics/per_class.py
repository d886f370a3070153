"""Scores of each class, and which classes are taken for which, at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_PAIRS = 50
"""Confusions that are listed, most frequent first."""

LARGEST_MATRIX = 50
"""Classes up to which the whole confusion matrix is kept."""


def per_class(names: Sequence[str], truth: Sequence[int], predicted: Sequence[int]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class, in the order of the names, and the class that it is most often taken for.
    What is not defined is None: the recall of a class without test examples, and the precision of one that was never
    predicted.

    Args:
        names: the classes. truth, predicted: (n,) positions in names.

    >>> per_class(["tea", "sofa"], [0, 0, 0, 1], [0, 0, 1, 1])[1]
    {'name': 'sofa', 'examples': 1, 'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'confused_with': None}
    """
    true, said = np.asarray(truth, int), np.asarray(predicted, int)
    other: dict[int, str] = {}
    for _, t, s in _wrong(true, said):
        other.setdefault(t, names[s])
    of_class = (true, said, true[true == said])
    examples, answers, right = (np.bincount(rows, minlength=len(names)).tolist() for rows in of_class)
    return [
        {"name": name, "examples": n, "precision": _share(hit, given), "recall": _share(hit, n),
         "f1": _share(2 * hit, n + given), "confused_with": other.get(k)}
        for k, (name, n, given, hit) in enumerate(zip(names, examples, answers, right, strict=True))
    ]  # fmt: skip


def confusion(names: Sequence[str], truth: Sequence[int], predicted: Sequence[int]) -> dict[str, Any]:
    """The most frequent confusions, and the whole matrix where there are few classes.

    Returns:
        `pairs`: at most `MOST_PAIRS` of {"true", "predicted", "examples"}, most frequent first. `matrix`: row i holds
        the test examples of class i by predicted class; None with more than `LARGEST_MATRIX` classes.

    >>> confusion(["tea", "sofa"], [0, 0, 1], [0, 1, 1])
    {'pairs': [{'true': 'tea', 'predicted': 'sofa', 'examples': 1}], 'matrix': [[1, 1], [0, 1]]}
    """
    true, said = np.asarray(truth, int), np.asarray(predicted, int)
    wrong = _wrong(true, said)[:MOST_PAIRS]
    pairs = [{"true": names[t], "predicted": names[s], "examples": n} for n, t, s in wrong]
    size = len(names)
    cells = np.bincount(size * true + said, minlength=size * size) if size <= LARGEST_MATRIX else None
    return {"pairs": pairs, "matrix": None if cells is None else cells.reshape(size, size).tolist()}


def _wrong(true: np.ndarray, said: np.ndarray) -> list[tuple[int, int, int]]:
    """How many examples of a class were taken for another: (examples, class, other class), most frequent first."""
    cells, counts = np.unique(np.stack([true, said])[:, true != said], axis=1, return_counts=True)
    return sorted(zip(counts.tolist(), *cells.tolist(), strict=True), key=lambda cell: (-cell[0], cell[1:]))


def worst(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The classes with test examples, the lowest recall first, and of equal ones the lowest precision.

    >>> [score["name"] for score in worst(per_class(["tea", "sofa"], [0, 0, 1], [0, 1, 1]))]
    ['tea', 'sofa']
    """
    tested = (score for score in scores if score["examples"])
    return sorted(tested, key=lambda score: (score["recall"], score["precision"] or 0.0))


def missed(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of `worst` of which a test example was answered wrong, in the same order.

    >>> [score["name"] for score in missed(per_class(["tea", "sofa"], [0, 0, 1], [0, 1, 1]))]
    ['tea']
    """
    return [score for score in worst(scores) if score["recall"] < 1]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
