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

    It stays as it is where no product is negative. Otherwise v_k times the k-th other gradient is added, and v ≥ 0
    solves the dual of the quadratic program: a non-negative least squares problem with as many unknowns as there are
    others, of which only the inner products of the gradients are needed. No copy of a gradient is made.

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
    for weight, other in zip(weights(products([gradient, *others]), margin), others, strict=True):
        if weight > 0:
            for mine, its in zip(gradient, other, strict=True):
                mine.add_(its, alpha=weight)


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


def weights(products: np.ndarray, margin: float = 0.0) -> list[float]:
    """What of each other gradient is added to the first one, by the inner products (1 + k, 1 + k) of them all."""
    from scipy.optimize import nnls

    if not np.isfinite(products).all():
        raise EverlearnError("a gradient is not finite: lower the learning rate (--method.lr)")
    if len(products) == 1 or (products[0, 1:] >= 0).all():
        return [0.0] * (len(products) - 1)
    # Short vectors with the same inner products take the place of the gradients. They get length 1, so that small
    # gradients are treated as exactly as large ones.
    lengths = np.sqrt(np.diag(products))
    lengths[lengths == 0] = 1
    values, vectors = np.linalg.eigh(products / np.outer(lengths, lengths))
    columns = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    first = columns[:, 0] * lengths[0] + margin * columns[:, 1:] @ lengths[1:]
    found, _ = nnls(columns[:, 1:], -first / lengths[0], maxiter=100 * len(products))
    return [float(v) for v in found * lengths[0] / lengths[1:] + margin]
