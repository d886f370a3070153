"""The inner problem of readable sets: logistic regression on weighted rows, and what its solution owes to each row.

The gradient of an outer loss through the solution W of an inner problem is exact by the implicit function theorem:
one system with the Hessian of the inner loss gives V = H⁻¹ ∂outer/∂W, and the derivative with respect to anything in
a row is minus the product of V with the derivative of that row's gradient. Nothing is unrolled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

STRENGTH = 30.0
"""C, the weight of the data against the penalty: that of the method `logistic`."""


def with_offset(features: Tensor, mean: Tensor) -> Tensor:
    """Features (n, width) at length 1, less the mean (width,), with a column of ones: (n, width + 1).

    >>> with_offset(torch.tensor([[3.0, 4.0]]), torch.tensor([0.6, 0.0]))
    tensor([[0.0000, 0.8000, 1.0000]])
    """
    centred = normalize(features, dim=1) - mean
    return torch.cat([centred, centred.new_ones(len(centred), 1)], 1)


def solve(
    rows: Tensor, targets: Tensor, weights: Tensor, start: Tensor | None = None, *, strength: float = STRENGTH,
    steps: int = 100,
) -> Tensor:  # fmt: skip
    """The minimum W (width, classes) of Σ weight · cross-entropy(row W, target) + |W|² / 2C, by L-BFGS.

    Args:
        rows: (n, width). targets: (n, classes) probabilities. weights: (n,), not negative.
        start: where the search begins; zero by default.
        steps: most iterations.

    >>> solve(torch.eye(2), torch.eye(2), torch.ones(2)).softmax(1).diagonal().min() > 0.8
    tensor(True)
    """
    weight = rows.new_zeros(rows.shape[1], targets.shape[1]) if start is None else start.clone()
    weight.requires_grad_(True)
    total = weights.sum()
    search = torch.optim.LBFGS([weight], max_iter=steps, history_size=10, line_search_fn="strong_wolfe",
                               tolerance_grad=1e-5 if rows.dtype == torch.float32 else 1e-12,
                               tolerance_change=1e-9 if rows.dtype == torch.float32 else 1e-16)  # fmt: skip

    def closure() -> Tensor:
        search.zero_grad()
        losses = -(targets * (rows @ weight).log_softmax(1)).sum(1)
        loss = ((weights * losses).sum() + weight.square().sum() / (2 * strength)) / total
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        search.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach()


def adjoint(
    rows: Tensor, weights: Tensor, solution: Tensor, outer: Tensor, *, strength: float = STRENGTH, steps: int = 50
) -> Tensor:
    """V = H⁻¹ outer, (width, classes), by conjugate gradients, with the Hessian H of the inner loss at its solution.

    Args:
        outer: (width, classes) the gradient of the outer loss with respect to the solution.
    """
    probabilities = (rows @ solution).softmax(1)

    def hessian(direction: Tensor) -> Tensor:
        moved = rows @ direction
        moved = probabilities * (moved - (probabilities * moved).sum(1, keepdim=True))
        return rows.T @ (weights[:, None] * moved) + direction / strength

    found, rest = torch.zeros_like(outer), outer.clone()
    way, size = rest.clone(), rest.square().sum()
    enough = size * torch.finfo(outer.dtype).eps
    for _ in range(steps):
        if size <= enough:
            break
        bent = hessian(way)
        along = size / (way * bent).sum()
        found, rest = found + along * way, rest - along * bent
        size, before = rest.square().sum(), size
        way = rest + size / before * way
    return found


def by_weight(rows: Tensor, targets: Tensor, solution: Tensor, adjoint: Tensor) -> Tensor:
    """The derivative (n,) of the outer loss with respect to the weight of each row, also of rows that have none yet:
    where it is negative, more of the row would help."""
    return -(((rows @ solution).softmax(1) - targets) * (rows @ adjoint)).sum(1)
