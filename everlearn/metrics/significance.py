"""Whether two runs differ by more than chance, from the scores of the same queries in both.

Smucker, Allan & Carterette (2007), "A Comparison of Statistical Significance Tests for Information Retrieval
Evaluation", https://dl.acm.org/doi/10.1145/1321440.1321528
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

DRAWS = 10_000
SCORES_AT_ONCE = 1 << 22  # 32 MiB of float64: the largest matrix of draws, for any number of queries
SAME = 1e-12  # differences of means below this come from rounding


@dataclass(frozen=True)
class Comparison:
    """How the scores of a second run differ from those of a first.

    Args:
        difference: the mean score of the second run − that of the first.
        low, high: the bounds of its confidence interval.
        p: how often a difference of at least this size, in either direction, arises by chance.
        queries: how many were compared.

    >>> compare_scores([0.2, 0.4], [0.2, 0.4]).queries
    2
    """

    difference: float
    low: float
    high: float
    p: float
    queries: int


def compare_scores(
    first: ArrayLike, second: ArrayLike, *, draws: int = DRAWS, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two runs on the same queries: a paired randomisation test of the mean difference, and its bootstrap
    interval.

    If both runs were equally good, each query's two scores might as well be exchanged. p is the share of random
    exchanges whose mean differs at least as much as the one observed, which counts as one of the draws; so p is never
    below 1 / (draws + 1). The interval holds the middle `confidence` of the means of queries drawn with replacement.

    Args:
        first, second: (n,) scores of the same n queries, in the same order.
        draws: of the test and of the interval.
        confidence: between 0 and 1.
        seed: of both.

    Raises:
        ValueError: the scores are not two arrays (n,) of finite numbers with n ≥ 1, or there is no draw.

    >>> same = compare_scores([0.5, 0.2, 0.9], [0.5, 0.2, 0.9])
    >>> same.difference, same.p
    (0.0, 1.0)
    >>> better = compare_scores([0.1] * 20, [0.4] * 20)
    >>> round(better.difference, 2), better.p < 0.001
    (0.3, True)
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"the scores {a.shape} and {b.shape} are not those of the same queries")
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError("a score is NaN or infinite")
    if draws < 1 or not 0 < confidence < 1:
        raise ValueError(f"{draws} draws with confidence {confidence}: at least one draw, and a share below 1")
    differences = b - a
    observed = float(differences.mean())
    random = np.random.default_rng(seed)
    exchanged, resampled = [], []
    for rows in _portions(draws, len(a)):
        exchanged.append(random.choice([-1.0, 1.0], (rows, len(a))) @ differences / len(a))
        resampled.append(differences[random.integers(0, len(a), (rows, len(a)))].mean(axis=1))
    means = np.concatenate(resampled)
    extreme = int((np.abs(np.concatenate(exchanged)) >= abs(observed) - SAME).sum())
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Comparison(observed, float(low), float(high), (extreme + 1) / (draws + 1), len(a))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, corrected so that the chance of even one false finding stays at its level
    (Holm, 1979): the smallest times their number m, the next one times m − 1 and so on, never falling and at most 1.

    Raises:
        ValueError: a value is not between 0 and 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1, and these are {list(p_values)}")
    order = values.argsort(kind="stable")
    corrected = np.empty(len(values))
    scaled = values[order] * np.arange(len(values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(values) else scaled
    return [float(value) for value in corrected]


def _portions(draws: int, queries: int) -> Iterator[int]:
    """How many draws are made at once, until all are made."""
    most = max(SCORES_AT_ONCE // queries, 1)
    while draws > 0:
        yield min(draws, most)
        draws -= most
