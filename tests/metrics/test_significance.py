"""The paired test against scipy and against cases whose answer is known, and Holm's correction worked out by
hand."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.metrics import significance
from everlearn.metrics.significance import compare_scores, holm


def scores(seed, n=40, better=0.0):
    random = np.random.default_rng(seed)
    first = random.random(n)
    return first, np.clip(first + random.normal(better, 0.1, n), 0, 1)


@pytest.mark.parametrize("better", [0.0, 0.02, 0.04])
def test_the_p_value_is_that_of_scipy(better):
    scipy = pytest.importorskip("scipy.stats")
    first, second = scores(3, better=better)
    found = compare_scores(first, second)
    wanted = scipy.permutation_test(
        (second, first), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=np.random.default_rng(1),
    )  # fmt: skip
    assert found.difference == pytest.approx(wanted.statistic)
    assert found.p == pytest.approx(wanted.pvalue, abs=0.015)


def test_the_p_value_of_few_queries_is_the_share_of_all_exchanges():
    found = compare_scores([0.1, 0.2, 0.3], [0.4, 0.4, 0.4])
    assert found.p == pytest.approx(2 / 8, abs=0.02)  # all three signs as they are, or all three exchanged


def test_the_interval_is_that_of_the_normal_distribution_for_many_queries():
    first, second = scores(5, n=4000, better=0.02)
    found, differences = compare_scores(first, second), second - first
    error = 1.96 * differences.std() / np.sqrt(len(differences))
    assert found.low == pytest.approx(differences.mean() - error, abs=error / 10)
    assert found.high == pytest.approx(differences.mean() + error, abs=error / 10)
    assert found.queries == 4000 and found.p < 0.001


def test_equal_runs_differ_by_chance_as_often_as_the_level_says():
    found = [compare_scores(*scores(seed), draws=400).p for seed in range(200)]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1


def test_the_same_seed_gives_the_same_and_portions_change_only_the_draws(monkeypatch):
    first, second = scores(7, better=0.03)
    assert compare_scores(first, second) == compare_scores(first, second)
    assert compare_scores(first, second) != compare_scores(first, second, seed=1)
    whole = compare_scores(first, second)
    sizes = []
    monkeypatch.setattr(significance, "SCORES_AT_ONCE", 40 * 1000)
    plain = significance._portions
    monkeypatch.setattr(significance, "_portions", lambda d, n: (sizes.append(size) or size for size in plain(d, n)))
    assert compare_scores(first, second).p == pytest.approx(whole.p, abs=0.02)
    assert sizes == [1000] * 10


def test_an_exchange_of_the_runs_turns_the_difference_round():
    first, second = scores(9, better=0.05)
    there, back = compare_scores(first, second), compare_scores(second, first)
    assert there.difference == -back.difference and there.p == back.p


@pytest.mark.parametrize(
    "first, second, rest, message",
    [
        ([0.1], [0.1, 0.2], {}, "not those of the same queries"),
        ([], [], {}, "not those of the same queries"),
        ([[0.1]], [[0.1]], {}, "not those of the same queries"),
        ([np.nan], [0.1], {}, "NaN or infinite"),
        ([0.1], [0.1], {"draws": 0}, "at least one draw"),
        ([0.1], [0.1], {"confidence": 1.0}, "a share below 1"),
    ],
)
def test_faults_are_refused(first, second, rest, message):
    with pytest.raises(ValueError, match=message):
        compare_scores(first, second, **rest)


def test_holm_never_falls_and_keeps_the_order_given():
    assert holm([0.005, 0.02, 0.01, 0.9]) == pytest.approx([0.02, 0.04, 0.03, 0.9])
    assert holm([0.3, 0.4, 0.5]) == pytest.approx([0.9, 0.9, 0.9]) and holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == [] and holm([0.2]) == [0.2]
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])
