"""The nearest gradient that agrees with others: how GEM and A-GEM change a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everlearn.errors import EverlearnError

COLUMNS = 2**16
"""Entries of each gradient that are multiplied at once: for some ten gradients they fit into the cache of a core."""


@torch.no_grad()
def project(gradient: Sequence[Tensor], others: Sequence[Sequence[Tensor]], margin: float = 0.0) -> None:
    """Change a gradient to the nearest one whose product with each of the others is not negative.

    It stays as it is where no product is negative. Otherwise v_k times the k-th other gradient is added, and v ≥ margin
    solves the dual of the quadratic program. Only the others with a negative product enter the program; what its
    solution opposes then joins them. So a step costs a few passes over the gradients, and inner products of a few of
    them with each other. No copy of a gradient is made.

    Args:
        gradient: tensors of any shapes, which are changed in place. others: tensors of the same shapes for each.
        margin: the least value of each v_k (the memory strength of GEM): what is above 0 moves the gradient further
            towards the others, and all products remain not negative.

    Raises:
        EverlearnError: a gradient is not finite.

    >>> gradient = [torch.tensor([1.0, -2.0])]
    >>> project(gradient, [[torch.tensor([0.0, 1.0])], [torch.tensor([1.0, 0.0])]])
    >>> gradient
    [tensor([1., 0.])]
    """
    found = along(gradient, others)
    if (found >= 0).all():
        return
    if margin:
        _add(gradient, others, np.full(len(others), margin))
        found = along(gradient, others)
    active: list[int] = []
    chosen = np.zeros(0)
    while violated := [k for k in np.flatnonzero(found < 0).tolist() if k not in active]:
        active += violated
        chosen = np.append(chosen, np.zeros(len(violated)))
        rows = [others[k] for k in active]
        inner = products([gradient, *rows])
        inner[0, 1:] -= chosen @ inner[1:, 1:]  # of the gradient without what was added for others already
        inner[0, 0] -= 2 * chosen @ inner[0, 1:] + chosen @ inner[1:, 1:] @ chosen
        inner[1:, 0] = inner[0, 1:]
        better = weights(inner)
        _add(gradient, rows, better - chosen)
        chosen, found = better, along(gradient, others)


def along(gradient: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """(k,) the product of a gradient with each of k others, in float64.

    Raises:
        EverlearnError: a gradient is not finite.

    >>> along([torch.tensor([1.0, -2.0])], [[torch.tensor([0.0, 1.0])], [torch.tensor([1.0, 0.0])]]).tolist()
    [-2.0, 1.0]
    """
    total = np.zeros(len(others))
    for k, other in enumerate(others):
        for mine, its in zip(gradient, other, strict=True):
            pairs = zip(mine.flatten().split(COLUMNS), its.flatten().split(COLUMNS), strict=True)
            total[k] += float(torch.stack([part @ its_part for part, its_part in pairs]).double().sum())
    if not np.isfinite(total).all():
        raise EverlearnError("a gradient is not finite: lower the learning rate (--method.lr)")
    return total


def products(gradients: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """(k, k) inner products of k gradients, each given by tensors of the same shapes, in float64.

    >>> products([[torch.ones(2), torch.ones(1)], [torch.ones(2), torch.zeros(1)]]).tolist()
    [[3.0, 2.0], [2.0, 2.0]]
    """
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for tensors in zip(*gradients, strict=True):  # of one parameter
        for parts in zip(*(tensor.flatten().split(COLUMNS) for tensor in tensors), strict=True):
            block = torch.stack(parts)
            total += (block @ block.T).to(total)
    return total.numpy()


def weights(products: np.ndarray) -> np.ndarray:
    """What of each of k other gradients is added to the first one, not negative, by the inner products (1 + k, 1 + k)
    of them all: a non-negative least squares problem with k unknowns."""
    from scipy.optimize import nnls

    # Short vectors with the same inner products take the place of the gradients. They get length 1, so that small
    # gradients are treated as exactly as large ones.
    lengths = np.sqrt(np.diag(products).clip(min=0))
    lengths[lengths == 0] = 1
    values, vectors = np.linalg.eigh(products / np.outer(lengths, lengths))
    columns = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    found, _ = nnls(columns[:, 1:], -columns[:, 0], maxiter=100 * len(products))
    return found * lengths[0] / lengths[1:]


def _add(gradient: Sequence[Tensor], others: Sequence[Sequence[Tensor]], by: np.ndarray) -> None:
    for weight, other in zip(by.tolist(), others, strict=True):
        if weight:
            for mine, its in zip(gradient, other, strict=True):
                mine.add_(its, alpha=weight)
