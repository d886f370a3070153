"""Every figure against a matrix worked out by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from everlearn import metrics
from everlearn.metrics import gate

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
        "backward_transfer": None, "forward_transfer": None, "retention": None,
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
    "retention, gain, reference, verdict",
    [
        (0.8, 0.9, 1.0, "pass"),
        (0.79, 0.99, 1.0, "fail"),
        (0.79, 0.99, None, "fail"),
        (0.95, 0.89, 1.0, "fail"),
        (0.95, 0.89, None, "unknown"),
        (None, 0.99, 1.0, "unknown"),
        (0.95, None, 1.0, "unknown"),
    ],
)
def test_gate(retention, gain, reference, verdict):
    assert metrics.passes(retention, gain, reference) == verdict


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
