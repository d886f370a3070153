"""Thresholds on scores, such as "show nothing below 0.62", translated to another encoder by matched quantiles."""

from __future__ import annotations

import numpy as np

from everlearn.errors import EverlearnError


def translate(threshold: float, old_scores: np.ndarray, new_scores: np.ndarray) -> float:
    """The threshold that as many pairs of a query and a document pass with the new scores as with the old ones
    (quantile matching: equipercentile equating, Kolen & Brennan, Test Equating, Scaling, and Linking, 2014).

    It says nothing of which pairs pass: `share_changed` does.

    Args:
        threshold: of the old scores; a score that equals it passes.
        old_scores, new_scores: (n,) of the same n pairs.

    Raises:
        EverlearnError: every old score passes, or none does, so that nothing is known of the place of the threshold.
        ValueError: the scores are not those of the same pairs.

    >>> translate(0.55, np.array([0.4, 0.5, 0.6, 0.7]), np.array([10.0, 20.0, 30.0, 40.0]))
    25.0
    """
    old, new = np.asarray(old_scores, float), np.sort(np.asarray(new_scores, float))
    if old.ndim != 1 or old.shape != new.shape or not len(old):
        raise ValueError(f"the scores {old.shape} and {new.shape} are not those of the same pairs")
    below = int((old < threshold).sum())
    if not 0 < below < len(old):
        raise EverlearnError(f"the threshold {threshold:g} does not divide the scores {old.min():.4g} to "
                             f"{old.max():.4g} of the documents found: give one between them")  # fmt: skip
    return float(new[below - 1 : below + 1].mean())


def share_changed(threshold: float, new_threshold: float, old_scores: np.ndarray, new_scores: np.ndarray) -> float:
    """The share of pairs that pass one of the two thresholds and not the other.

    Args:
        threshold, new_threshold: of the old scores and of the new ones.
        old_scores, new_scores: (n,) of the same n pairs.

    >>> share_changed(0.5, 5.0, np.array([0.4, 0.6]), np.array([6.0, 7.0]))
    0.5
    """
    return float(((np.asarray(old_scores) >= threshold) != (np.asarray(new_scores) >= new_threshold)).mean())
