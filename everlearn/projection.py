"""The nearest gradient that agrees with others: how GEM and A-GEM change a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everlearn.errors import EverlearnError

COLUMNS = 2**14
"""Entries of each gradient that are multiplied at once: for some ten gradients they fit into a cache."""
TABLE = 2**12
"""A weight with as many rows is taken for a table of words, of which a batch has few."""


def compact(gradient: Tensor) -> Tensor:
    """The gradient; of a long table as a sparse tensor of the rows that are not zero, if they are fewer than half.

    A text encoder has a row for each word of its vocabulary, and a batch gives a gradient to those that it contains:
    this saves memory and most of the products.

    >>> table = torch.zeros(TABLE, 2)
    >>> table[5] = 1.0
    >>> compact(table).coalesce().values()
    tensor([[1., 1.]])
    """
    if gradient.ndim != 2 or len(gradient) < TABLE:
        return gradient
    rows = ((gradient.amax(1) != 0) | (gradient.amin(1) != 0)).nonzero()[:, 0]
    if 2 * len(rows) > len(gradient):
        return gradient
    return torch.sparse_coo_tensor(
        rows[None], gradient[rows], gradient.shape, is_coalesced=True, check_invariants=False
    )


@torch.no_grad()
def project(gradient: Sequence[Tensor], others: Sequence[Sequence[Tensor]], margin: float = 0.0) -> None:
    """Change a gradient to the nearest one whose product with each of the others is not negative.

    It stays as it is where no product is negative. Otherwise v_k times the k-th other gradient is added, and v ≥ 0
    solves the dual of the quadratic program: a non-negative least squares problem with as many unknowns as there are
    others, of which only the inner products of the gradients are needed. No copy of a gradient is made.

    Args:
        gradient: dense tensors of any shapes, which are changed in place. others: tensors of the same shapes for
            each, dense or as `compact` gives them.
        margin: the least value of each v_k (the memory strength of GEM): what is above 0 moves the gradient further
            towards the others, and all products remain not negative.

    Raises:
        EverlearnError: a gradient is not finite.

    >>> gradient = [torch.tensor([1.0, -2.0])]
    >>> project(gradient, [[torch.tensor([0.0, 1.0])], [torch.tensor([1.0, 0.0])]])
    >>> gradient
    [tensor([1., 0.])]
    """
    found = weights(products([[compact(part) for part in gradient], *others]), margin)
    for weight, other in zip(found, others, strict=True):
        if weight > 0:
            for mine, its in zip(gradient, other, strict=True):
                mine.add_(its, alpha=weight)


def products(gradients: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """(k, k) inner products of k gradients, each given by tensors of the same shapes, dense or `compact`, in float64.

    >>> products([[torch.ones(2), torch.ones(1)], [torch.ones(2), torch.zeros(1)]]).tolist()
    [[3.0, 2.0], [2.0, 2.0]]
    """
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for tensors in zip(*gradients, strict=True):  # of one parameter
        for parts in zip(*(tensor.flatten().split(COLUMNS) for tensor in dense(tensors)), strict=True):
            block = torch.stack(parts)
            total += (block @ block.T).to(total)
    return total.numpy()


def dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors without the rows that are zero in all of them, if all are sparse."""
    sparse = [tensor for tensor in tensors if tensor.is_sparse]
    if len(sparse) < len(tensors):
        return [tensor.to_dense() for tensor in tensors]
    rows = torch.cat([tensor.indices()[0] for tensor in sparse]).unique()
    return [tensor.index_select(0, rows).to_dense() for tensor in sparse]


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
