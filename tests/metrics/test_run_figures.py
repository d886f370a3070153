"""Every figure against a matrix worked out by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from everlearn import metrics
from everlearn.metrics import gate, intervals
from everlearn.metrics.intervals import Interval

MATRIX = [
    [0.9, None, None],
    [0.6, 0.8, None],
    [0.7, 0.5, 1.0],
]
COUNTS = [100, 100, 200]
SUMMARY = {
    "curve": [0.9, 0.7, 0.8],  # (60 + 80) / 200, (70 + 50 + 200) / 400
    "final_accuracy": 0.8,
    "average_accuracy": 0.8,  # (0.9 + 0.7 + 0.8) / 3
    "forgetting": 0.25,  # ((0.9 - 0.7) + (0.8 - 0.5)) / 2
    "backward_transfer": -0.25,
    "forward_transfer": 0.15,  # ((0.3 - 0.1) + (0.2 - 0.1)) / 2
    "old": 0.6,  # (70 + 50) / 200
    "new": 1.0,
    "forgetting_proper": 0.25,  # no class came later: as backward transfer
    "retention": 1.2 / 1.7,
    "gain": 0.9,  # (0.8 + 1.0) / 2
}


def test_summary_by_hand():
    summary = metrics.summary(MATRIX, COUNTS, [None, 0.3, 0.2], [0.1, 0.1, 0.1])
    assert summary.keys() == SUMMARY.keys()
    for name, value in SUMMARY.items():
        assert summary[name] == pytest.approx(value, abs=1e-12), name


def test_forgetting_counts_from_the_best_and_backward_transfer_from_the_first():
    matrix = [[0.5, None, None], [0.9, 0.8, None], [0.6, 0.8, 1.0]]
    assert metrics.forgetting(matrix) == pytest.approx((0.3 + 0.0) / 2)
    assert metrics.backward_transfer(matrix) == pytest.approx((0.1 + 0.0) / 2)


def test_a_single_task_has_a_gain_and_nothing_old():
    summary = metrics.summary([[0.7]], [10], [None], [None])
    assert summary == {
        "curve": [0.7], "final_accuracy": 0.7, "average_accuracy": 0.7, "gain": 0.7, "forgetting": None,
        "backward_transfer": None, "forward_transfer": None, "retention": None, "old": None, "new": 0.7,
        "forgetting_proper": None,
    }  # fmt: skip


def test_two_tasks_gain_is_the_new_one_alone():
    assert metrics.gain([[0.2, None], [0.2, 0.8]]) == 0.8


def test_what_was_not_measured_is_left_out_not_zero():
    matrix = [[0.5, None, None], [0.5, None, None], [0.4, None, 1.0]]
    summary = metrics.summary(matrix, [10, 0, 30], [None] * 3, [None] * 3)
    assert summary["curve"] == pytest.approx([0.5, 0.5, 0.85])
    assert summary["retention"] == pytest.approx(0.8)
    assert summary["forgetting"] == pytest.approx(0.1)
    assert summary["gain"] == 1.0
    assert summary["forward_transfer"] is None


def test_retention_of_nothing_learned_is_undefined():
    assert metrics.retention([[0.0, None], [0.0, 1.0]]) is None


@pytest.mark.parametrize("matrix, counts", [([[0.5, None]], [1]), ([], []), ([[0.5]], [1, 2])])
def test_sizes_that_do_not_fit_are_refused(matrix, counts):
    with pytest.raises(ValueError):
        metrics.summary(matrix, counts, [None] * len(matrix), [None] * len(matrix))


@pytest.mark.parametrize(
    "old, new, verdict",
    [
        (0.8, 0.9, "pass"),
        (0.72 / 0.9, 0.81 / 0.9, "pass"),  # the first is 0.7999999999999999
        (0.79, 0.99, "fail"),
        (0.95, 0.89, "fail"),
        (None, 0.99, "unknown"),
        (0.95, None, "unknown"),
        (0.2, None, "unknown"),
        (Interval(0.9, 0.05), Interval(0.95, 0.04), "pass"),
        (Interval(0.9, 0.05), Interval(0.95, 0.06), "cannot tell"),
        (Interval(0.7, 0.05), Interval(0.95, 0.06), "fail"),
        (Interval(0.9, 0.2), Interval(0.8, 0.05), "fail"),
    ],
)
def test_gate(old, new, verdict):
    assert metrics.passes(old, new) == verdict


def test_the_least_that_passes_may_be_given():
    assert metrics.passes(0.5, 0.6, (0.5, 0.6)) == "pass" and metrics.passes(0.5, 0.6, (0.5, 0.7)) == "fail"


def test_old_counts_test_examples_and_leaves_out_what_was_not_measured():
    assert metrics.old_and_new([0.5, None, 0.9, 1.0], [30, 0, 10, 5]) == (pytest.approx(0.6), 1.0)
    assert metrics.old_and_new([0.5], [30]) == (None, 0.5)
    assert gate.part_of(0.5, 0.0) is None and gate.part_of(None, 0.5) is None


def test_forgetting_proper_leaves_the_growth_of_the_class_set_out():
    unchanged = [[0.9, None, None], [0.6, 0.8, None], [0.3, 0.5, 1.0]]
    assert metrics.forgetting_proper(unchanged, [0.9, 0.8, 1.0]) == 0
    assert metrics.forgetting(unchanged) == pytest.approx(0.45)
    assert metrics.forgetting_proper(unchanged, [0.5, 0.6, 1.0]) == pytest.approx(0.3)
    with pytest.raises(ValueError):
        metrics.forgetting_proper(unchanged, [0.9, 0.8])


def test_an_interval_is_that_of_students_t():
    stats = pytest.importorskip("scipy.stats")
    for count in (2, 3, 5, 30, 31):
        values = [0.8 + 0.01 * (i * i % 7) for i in range(count)]
        low, high = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=stats.sem(values))
        found = intervals.interval([*values, None])
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5)), count
    wide, real = intervals.QUANTILES[-1], stats.t.ppf(0.975, 100)
    assert real < wide < 1.04 * real


def test_pairs_tell_what_two_intervals_cannot():
    hard_and_easy = [0.5, 0.7, 0.9]
    better = [score + gap for score, gap in zip(hard_and_easy, (0.010, 0.012, 0.011), strict=True)]
    alone = [intervals.interval(scores) for scores in (hard_and_easy, better)]
    assert alone[0].high > alone[1].low
    assert intervals.conclusion(intervals.paired(hard_and_easy, better)) == "holds"
    assert intervals.conclusion(intervals.paired(better, hard_and_easy)) == "does not hold"
    assert intervals.conclusion(intervals.paired(better[:1], hard_and_easy[:1])) == "cannot tell"
    assert intervals.conclusion(intervals.Interval(0.0, 0.0)) == "holds"


def test_pareto_front_drops_what_is_beaten_and_keeps_equals():
    points = [(0.9, 0.9, -5.0), (0.9, 0.9, -5.0), (0.9, 0.8, -5.0), (0.8, 0.8, -1.0)]
    assert gate.pareto_front(points) == [0, 1, 3]
    assert gate.pareto_front([]) == []


def test_every_figure_has_its_formula():
    assert SUMMARY.keys() <= metrics.FORMULAS.keys()


def test_importing_metrics_is_light():
    heavy = "{'torch', 'transformers', 'sklearn', 'matplotlib', 'datasets'}"
    code = f"import sys, everlearn.metrics.retrieval; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
