"""Readable sets: real examples, selected and weighted so that a model trained on them does well on all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from everlearn.distillation.inner import adjoint, by_weight, solve
from everlearn.distillation.subsets import herding, rows_by_class
from everlearn.progress import Progress

STEPS, EXCHANGED_AFTER, RATE, MOST = 30, 5, 0.1, 10.0
"""Steps of Adam on the logarithms of the weights, after how many of them examples are exchanged, its learning rate,
and the largest weight; the smallest is its inverse."""


def select(
    rows: Tensor, labels: Tensor, classes: int, per_class: int, *, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows (m,) of at most `per_class` examples of each class, and their weights (m,), from 0.1 to 10.

    The weights minimise the loss on all examples of the logistic regression that is trained on the weighted rows
    (Borsos, Mutný & Krause, Coresets via Bilevel Optimization for Continual Learning and Streaming, NeurIPS 2020,
    https://arxiv.org/abs/2006.03875). The gradient goes through the solution (`inner.py`). Selection begins with
    herding; after a few steps each class exchanges the example that helps least for the one outside that would help
    most. Of all steps the one with the lowest loss counts.

    Args:
        rows: (n, width) features, as `inner.with_offset` gives them.
        labels: (n,).

    >>> rows = torch.tensor([[0.0, 1.0], [0.1, 1.0], [1.0, 1.0], [1.1, 1.0]])
    >>> chosen, weights = select(rows, torch.tensor([0, 0, 1, 1]), 2, per_class=1)
    >>> len(chosen), bool((weights > 0).all())
    (2, True)
    """
    targets = one_hot(labels, classes).to(rows)
    chosen = herding(rows, labels, per_class)
    logs = rows.new_zeros(len(chosen), requires_grad=True)
    adam = torch.optim.Adam([logs], lr=RATE)
    solution: Tensor | None = None
    best = float("inf"), chosen, logs.detach().exp()
    with Progress(STEPS, "weighting examples", progress) as bar:
        for step in range(STEPS):
            weights = logs.detach().exp()
            own, wanted = rows[chosen], targets[chosen]
            solution = solve(own, wanted, weights, solution, steps=40)
            scores = rows @ solution
            loss = float(-(targets * scores.log_softmax(1)).sum(1).mean())
            if loss < best[0]:
                best = loss, chosen, weights
            outer = rows.T @ (scores.softmax(1) - targets) / len(rows)
            gradient = by_weight(rows, targets, solution, adjoint(own, weights, solution, outer))
            logs.grad = gradient[chosen] * weights
            adam.step()
            logs.data.clamp_(-torch.tensor(MOST).log(), torch.tensor(MOST).log())
            if step + 1 == EXCHANGED_AFTER:
                chosen, moved = _exchanged(chosen, gradient, labels)
                logs.data[moved] = 0.0
            bar.advance(text=f"loss {loss:.4f}")
    return best[1], best[2]


def _exchanged(chosen: Tensor, gradient: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with, in each class, the one of the highest derivative exchanged for the one outside of the lowest,
    where that is lower; and the places that have changed."""
    chosen, moved = chosen.clone(), torch.zeros(len(chosen), dtype=torch.bool)
    inside = torch.zeros(len(labels), dtype=torch.bool)
    inside[chosen] = True
    for rows in rows_by_class(labels):
        outside = rows[~inside[rows]]
        places = (labels[chosen] == labels[rows[0]]).nonzero()[:, 0]
        if len(outside):
            worst, best = places[gradient[chosen[places]].argmax()], outside[gradient[outside].argmin()]
            if gradient[best] < gradient[chosen[worst]]:
                chosen[worst], moved[worst] = best, True
    return chosen, moved
