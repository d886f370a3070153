"""Thresholds translated by matched quantiles."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.errors import EverlearnError
from everlearn.retrieval.thresholds import share_changed, translate

OLD = np.random.default_rng(0).uniform(0.2, 0.9, 1001)


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.62, 0.88])
def test_as_many_pairs_pass_as_before(threshold: float) -> None:
    new = np.random.default_rng(1).normal(10, 3, 1001)
    assert (new >= translate(threshold, OLD, new)).sum() == (threshold <= OLD).sum()


def test_a_monotone_change_of_scores_changes_no_decision() -> None:
    new = 20 * OLD**3 - 4
    moved = translate(0.62, OLD, new)
    assert abs(moved - (20 * 0.62**3 - 4)) < 0.05
    assert share_changed(0.62, moved, OLD, new) == 0


def test_unrelated_scores_keep_the_count_and_change_half_of_the_decisions() -> None:
    new = np.random.default_rng(2).permutation(OLD)
    median = float(np.median(OLD))
    assert 0.4 < share_changed(median, translate(median, OLD, new), OLD, new) < 0.6


def test_equal_scores() -> None:
    old = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    assert translate(0.5, old, np.array([1.0, 2, 3, 4, 5])) == 1.5  # four pass
    assert translate(0.51, old, np.array([1.0, 2, 3, 4, 5])) == 4.5  # one passes


@pytest.mark.parametrize("threshold", [0.1, 0.95, float("nan")])
def test_a_threshold_that_divides_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(EverlearnError, match="give one between them"):
        translate(threshold, OLD, OLD)


def test_scores_of_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="same pairs"):
        translate(0.5, OLD, OLD[1:])
