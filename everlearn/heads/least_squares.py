"""Least squares: the solution of a ridge system in place, the error of every penalty, and rows found again."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from everlearn.errors import EverlearnError, EverlearnWarning


def solve_shifted(system: Callable[[], tuple[Tensor, Tensor]], strength: float) -> Tensor:
    """(A + λI)⁻¹B by one Cholesky factorisation, in place of A. Where λ is too small for one, it is raised tenfold
    until there is, with a warning.

    Args:
        system: gives A (n, n), of which the lower half is read and overwritten, and B (n, columns).
        strength: λ.

    >>> a, b = torch.tensor([[1.0, 0.0], [1.0, 2.0]]).double(), torch.tensor([[1.0], [4.0]]).double()
    >>> solve_shifted(lambda: (a, b), 1.0).round(decimals=6).tolist()
    [[-0.2], [1.4]]
    """
    while True:
        matrix, right = system()
        matrix.diagonal().add_(strength)
        raised = max(10 * strength, 1e-16 * float(matrix.diagonal().mean()))
        # LAPACK works in place on the transpose of a matrix in rows; otherwise there would be two copies of A more.
        out = matrix.mT, torch.empty((), dtype=torch.int32, device=matrix.device)
        if not torch.linalg.cholesky_ex(matrix.mT, upper=True, out=out).info:
            half = torch.linalg.solve_triangular(matrix, right, upper=False)
            return torch.linalg.solve_triangular(matrix.mT, half, upper=True)
        warnings.warn(f"ridge: HᵀH + λI is singular at λ = {strength:.3g}; {raised:.3g} is used",
                      EverlearnWarning, stacklevel=3)  # fmt: skip
        strength = raised


def held_out_errors(h: Tensor, y: Tensor, held_h: Tensor, held_y: Tensor, lambdas: tuple[float, ...]) -> Tensor:
    """Mean squared error of ridge regression on held-out rows, for every λ from one factorisation.

    With HᵀH = V diag(s) Vᵀ the prediction is (h V) (VᵀHᵀY / (s + λ)); with fewer rows than features
    the smaller kernel HHᵀ is factorised instead and the prediction is (h Hᵀ V) (VᵀY / (s + λ)).

    Args:
        h: (n, M) float64 features to fit. y: (n, classes) their targets.
        held_h, held_y: the held-out rows.

    Returns:
        (len(lambdas),) float64 errors.
    """
    if len(h) < h.shape[1]:
        values, vectors = torch.linalg.eigh(h @ h.T)
        left, right = held_h @ h.T @ vectors, vectors.T @ y
    else:
        values, vectors = torch.linalg.eigh(h.T @ h)
        left, right = held_h @ vectors, vectors.T @ (h.T @ y)
    values = values.clamp_min(0)[:, None]  # rounding makes the zero ones slightly negative
    return torch.stack([(left @ (right / (values + strength)) - held_y).square().mean() for strength in lambdas])


def rows_of(
    features: Tensor, labels: Tensor, kept: Tensor, kept_labels: Tensor, rounding: float = 1e-4
) -> Tensor:  # fmt: skip
    """Where (n, width) features with these labels are among the kept ones, (n,), each at a place of its own: that of
    the nearest.

    Args:
        rounding: of the encoder; the nearest may be so far away, of the largest number in a feature.

    Raises:
        EverlearnError: one of them is not there.

    >>> kept, kept_labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    >>> rows_of(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), kept, kept_labels).tolist()
    [2]
    """
    places = torch.empty(len(labels), dtype=torch.long, device=kept.device)
    for label in labels.unique().tolist():
        own = (kept_labels == label).nonzero()[:, 0]
        free = torch.ones_like(own, dtype=torch.bool)
        for row in (labels == label).nonzero()[:, 0].tolist():
            wanted = features[row].to(kept)
            distance = (kept[own] - wanted).abs().amax(1).masked_fill(~free, torch.inf)
            if not len(own) or distance.min() > rounding * wanted.abs().amax():
                raise EverlearnError("remove: an example was never added with this label; nothing was removed")
            free[distance.argmin()] = False
            places[row] = own[distance.argmin()]
    return places
