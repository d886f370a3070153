"""What a run is worth: every figure is read off the accuracy matrix by a few lines that fit on a page."""
# ruff: noqa: RUF001  (the minus sign of the formulas)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everlearn.metrics.accuracy_matrix import Matrix, average_accuracy, curve, final_accuracy
from everlearn.metrics.forgetting import forgetting, retention
from everlearn.metrics.gate import own_seconds, pareto_front, passes
from everlearn.metrics.transfer import backward_transfer, forward_transfer, gain

__all__ = [
    "FORMULAS", "average_accuracy", "backward_transfer", "curve", "final_accuracy", "forgetting",
    "forward_transfer", "gain", "own_seconds", "pareto_front", "passes", "retention", "summary",
]  # fmt: skip

# R_{i,j}: score on task j after learning task i of T; n_{j}: its test examples; A_{i}: the curve.
# _{…} is a subscript: readable in a terminal, typeset in the report.
FORMULAS: dict[str, str] = {
    "curve": "A_{i} = Σ_{j≤i} n_{j} R_{i,j} / Σ_{j≤i} n_{j}",
    "final_accuracy": "A_{T} = Σ_{j≤T} n_{j} R_{T,j} / Σ_{j≤T} n_{j}",
    "average_accuracy": "mean_{i≤T} A_{i}",
    "forgetting": "mean_{j<T} ( max_{i<T} R_{i,j} − R_{T,j} )",
    "backward_transfer": "mean_{j<T} ( R_{T,j} − R_{j,j} )",
    "forward_transfer": "mean_{j>1} ( R_{j−1,j} − R_{0,j} )",
    "retention": "mean_{j<T} R_{T,j} / mean_{j<T} R_{j,j}",
    "gain": "mean_{j>1} R_{j,j}",
    "gate": "retention ≥ 80 % and gain ≥ 90 % of the gain of joint",
    "nDCG@10": "DCG@10 / best possible DCG@10, DCG@10 = Σ_{r≤10} grade_{r} / log₂(r + 1)",
    "recall@10": "relevant documents among the first 10 / relevant documents",
    "own prompts": "prompts given to test examples that are their own task's (in a shared pool: that of all tasks it "
    "chose most often when it was learned) / prompts given",
    "own components": "largest weights of test examples on components that their own task, of all tasks, used most / "
    "largest weights",
    "router accuracy": "test examples that are sent to their own task / test examples",
    "accuracy told the task": "test examples that are right where the task is told / test examples",
    "mrr@10": "1 / rank of the first relevant document, 0 beyond rank 10",
}


def summary(
    matrix: Matrix,
    counts: Sequence[int],
    before: Sequence[float | None],
    initial: Sequence[float | None],
) -> dict[str, Any]:
    """Every figure of a run, under its key in results.json.

    Args:
        matrix: (T, T) scores; row i = after task i, column j = task j, None where not measured.
        counts: (T,) test examples per task.
        before: (T,) score on task j just before it was learned.
        initial: (T,) score of the untouched model on task j.

    Raises:
        ValueError: if the sizes do not fit together.

    >>> summary([[1.0, None], [0.5, 0.8]], [100, 200], [None, None], [None, None])["retention"]
    0.5
    """
    return {
        "curve": curve(matrix, counts),
        "final_accuracy": final_accuracy(matrix, counts),
        "average_accuracy": average_accuracy(matrix, counts),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(before, initial),
        "retention": retention(matrix),
        "gain": gain(matrix),
    }
