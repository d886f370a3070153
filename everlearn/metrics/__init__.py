"""The metrics of a run: each is computed from the accuracy matrix by a few lines of code."""
# ruff: noqa: RUF001  (the minus sign of the formulas)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everlearn.metrics.accuracy_matrix import Matrix, average_accuracy, curve, final_accuracy
from everlearn.metrics.forgetting import forgetting, forgetting_proper, retention
from everlearn.metrics.gate import old_and_new, own_seconds, pareto_front, passes
from everlearn.metrics.transfer import backward_transfer, forward_transfer, gain

__all__ = [
    "FORMULAS", "average_accuracy", "backward_transfer", "curve", "final_accuracy", "forgetting",
    "forgetting_proper", "forward_transfer", "gain", "old_and_new", "own_seconds", "pareto_front", "passes",
    "retention", "summary",
]  # fmt: skip

# R_{i,j}: score on task j after learning task i of T; n_{j}: number of test examples of task j; A_{i}: the curve.
# K_{j}: score on task j after the last task, where the answer is chosen among the classes known after task j.
# _{…} marks a subscript: it is readable in a terminal and is typeset in the report.
FORMULAS: dict[str, str] = {
    "curve": "A_{i} = Σ_{j≤i} n_{j} R_{i,j} / Σ_{j≤i} n_{j}",
    "final_accuracy": "A_{T} = Σ_{j≤T} n_{j} R_{T,j} / Σ_{j≤T} n_{j}",
    "average_accuracy": "mean_{i≤T} A_{i}",
    "forgetting": "mean_{j<T} ( max_{i<T} R_{i,j} − R_{T,j} )",
    "backward_transfer": "mean_{j<T} ( R_{T,j} − R_{j,j} )",
    "forward_transfer": "mean_{j>1} ( R_{j−1,j} − R_{0,j} )",
    "retention": "mean_{j<T} R_{T,j} / mean_{j<T} R_{j,j}",
    "gain": "mean_{j>1} R_{j,j}",
    "old": "Σ_{j<T} n_{j} R_{T,j} / Σ_{j<T} n_{j}",
    "new": "R_{T,T}",
    "forgetting_proper": "mean_{j<T} ( R_{j,j} − K_{j} )",
    "general": "Q_{T−1} / Q_{0}, where Q_{i} is the share of test examples of task T that are nearest to the mean of "
    "their own class, the example left out, in the embeddings after task i",
    "gate": "old ≥ 80 % of joint's old and new ≥ 90 % of joint's new, on the same cells R_{T,j}",
    "recall": "right answers of a class / its test examples",
    "precision": "right answers of a class / test examples that it was predicted for",
    "f1": "2 · precision · recall / (precision + recall)",
    "nDCG@10": "DCG@10 / best possible DCG@10, with DCG@10 = Σ_{r≤10} grade_{r} / log₂(r + 1)",
    "recall@10": "relevant documents among the first 10 / relevant documents",
    "own prompts": "selected prompts that belong to the test example's own task / selected prompts (a prompt in a "
    "shared pool belongs to the task that selected it most often while it was learned)",
    "own components": "largest weights of test examples on components that their own task used more than any other "
    "task / largest weights of test examples",
    "router accuracy": "test examples that the router assigns to their own task / test examples",
    "accuracy told the task": "test examples that are classified correctly when the task is told / test examples",
    "map@10": "Σ_{r≤10} relevant_{r} · precision@r / relevant documents",
    "nDCG@10 kept index": "nDCG@10 in the index that was made when the domain was learned",
    "nDCG@10 new index": "nDCG@10 in an index that the present model makes",
    "mrr@10": "1 / rank of the first relevant document, or 0 if it is not among the first 10",
}


def summary(
    matrix: Matrix, counts: Sequence[int], before: Sequence[float | None], initial: Sequence[float | None],
    known: Sequence[float | None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All metrics of a run, with the keys of results.json.

    Args:
        matrix: (T, T) scores; row i: after learning task i; column j: task j; None where nothing was measured.
        counts: (T,) test examples per task.
        before: (T,) score on task j just before it was learned.
        initial: (T,) score on task j before any learning.
        known: (T,) score on task j at the end among the classes known when it was learned; by default the last row,
            as where no task brings a new class.

    Raises:
        ValueError: if the sizes do not match.

    >>> summary([[1.0, None], [0.5, 0.8]], [100, 200], [None, None], [None, None])["retention"]
    0.5
    """
    old, new = old_and_new(matrix[-1] if matrix else [], counts)
    return {
        "curve": curve(matrix, counts),
        "final_accuracy": final_accuracy(matrix, counts),
        "average_accuracy": average_accuracy(matrix, counts),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(before, initial),
        "old": old,
        "new": new,
        "forgetting_proper": forgetting_proper(matrix, matrix[-1] if known is None else known),
        "retention": retention(matrix),
        "gain": gain(matrix),
    }
