"""Logistic: multinomial logistic regression, solved on the stored features of everything seen."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.errors import EverlearnError
from everlearn.heads.kept_rows import KeptRows

STRENGTH = 30.0  # C, where it is not chosen
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
FIRST = 3  # where the search for the best one begins
GAIN = 0.01  # of the held-out cross-entropy
CHOOSING = 1500  # rows that choose C
ITERATIONS = 300  # of L-BFGS, at most
SPREAD = 6.0  # root mean square length of the rows that L-BFGS is given: with it, iterations are fewest


class Logistic(KeptRows):
    """Scores W f̂ + b with f̂ = f / |f|: multinomial logistic regression with a squared penalty,

        min over W, b of  C Σ cross-entropy(W f̂ + b, y) + ½ |W|²,

    which is convex. The rows are kept: up to `rows` of them, chosen by their content, so that the head is the same for
    every order and number of tasks. Solved by scikit-learn (L-BFGS).

    Choosing C, where it is "auto", from 0.01 to 1,000 by powers of ten: by the cross-entropy on a held-out fifth of at
    most 1,500 rows. C multiplies a sum over rows, so the value found on a part serves for all of them.

    Precision: directions are stored in float16 (relative rounding 5e-4), solved in float32.

    Size: 2 `width` + 16 bytes per row, 4 `width` + 12 per class.

    Args:
        width: length of a feature vector.
        rows: most rows kept; where there are more, a uniform sample of them.
        strength: C, or "auto".
        seed: of the choice of rows.
        rounding: of the encoder (`Backbone.rounding`), up to which `remove` knows a row again.

    >>> head = Logistic(2)
    >>> head.grow(2)
    >>> head.add(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]]), torch.tensor([0, 0, 1, 1]))
    >>> _ = head.solve()
    >>> head(torch.tensor([[2.0, 0.0], [0.0, 0.5]])).argmax(1).tolist()
    [0, 1]
    """

    chosen: Tensor

    def __init__(
        self, width: int, *, rows: int = 100_000, strength: float | Literal["auto"] = STRENGTH, seed: int = 0,
        rounding: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__(width, rows, seed, rounding)
        if strength != "auto" and (isinstance(strength, str) or not 0 < strength < math.inf):
            raise EverlearnError(f"logistic: strength is 'auto' or above 0 and finite, but it is {strength!r}")
        self.strength = strength
        self.register_buffer("chosen", torch.tensor(1.0))  # C

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) float32 scores, with the weight of the last `solve`."""
        return normalize(features.float(), dim=1) @ self.weight + self.offset

    @torch.no_grad()
    def refit(self, features: Tensor, labels: Tensor) -> None:
        """Forget all rows and fit to these (n, width) features and (n,) labels, because the encoder has changed."""
        self.counts = torch.zeros_like(self.counts)
        self.sample.clear()
        self.add(features, labels)
        self.solve()

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Choose C, set weight and offset, and return the weight, (width, classes)."""
        features, labels, by_name = self._rows_by_name()
        if self.strength != "auto":
            self.chosen.fill_(self.strength)
        elif len(labels) >= 5:
            # The rows lie in the order of their keys, so the first ones are a sample of all.
            self.chosen.fill_(best_strength(features[:CHOOSING], labels[:CHOOSING]))
        weight, offset, present = fit(features, labels, float(self.chosen))
        self._set(by_name[present], weight, offset)
        return self.weight


Fit = tuple[Tensor, Tensor, Tensor]
"""Weight (width, k), offset (k,) and the k labels that they are of."""


def fit(features: Tensor, labels: Tensor, strength: float, tolerance: float = 3e-4) -> Fit:
    """Logistic regression with C = `strength`, of the labels that occur.

    Args:
        tolerance: the largest derivative of the mean loss at which the search ends.

    >>> weight, offset, present = fit(torch.eye(3), torch.tensor([0, 4, 4]), 1.0)
    >>> weight.shape, present.tolist()
    (torch.Size([3, 2]), [0, 4])
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = labels.unique()
    if len(present) < 2:  # nothing to tell apart
        return features.new_zeros(features.shape[1], len(present)), features.new_zeros(len(present)), present
    # Centred and scaled the problem is the same, with another offset and C, and takes a third of the iterations.
    mean = features.mean(0)
    centred = features - mean
    scale = SPREAD / float(centred.square().sum(1).mean().sqrt().clamp_min(1e-6))
    rows = centred.mul_(scale)
    strength /= scale**2
    if len(present) == 2:  # scikit-learn penalises one row then, the difference of the two: its |d|² is 2 |W|²
        strength *= 2
    model = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=tolerance, warm_start=True)
    if len(present) > 2:  # half of the means of the classes is nearer to the minimum than zero
        which = torch.searchsorted(present, labels)
        means = rows.new_zeros(len(present), rows.shape[1]).index_add_(0, which, rows)
        model.coef_ = means.div_(2 * which.bincount()[:, None]).numpy()
        model.intercept_ = rows.new_zeros(len(present)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 300 iterations no prediction changes any more
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one or two rows a class
        model.fit(rows.numpy(), labels.numpy())
    weight, offset = torch.from_numpy(model.coef_).float().T * scale, torch.from_numpy(model.intercept_).float()
    offset = offset - mean @ weight
    if len(present) == 2:  # scikit-learn gives the difference of the two scores
        weight, offset = torch.cat([-weight, weight], 1) / 2, torch.cat([-offset, offset]) / 2
    return weight.contiguous(), offset, present


def best_strength(features: Tensor, labels: Tensor) -> float:
    """C by a held-out fifth of the rows.

    Of two values of C the larger one is taken only if its held-out cross-entropy, each at its own temperature, is lower
    by a hundredth: less is noise, and a smaller C is found sooner. The search begins at 10.
    """
    held, errors = len(labels) // 5, dict[int, float]()

    def error(k: int) -> float:
        fitted = fit(features[held:], labels[held:], STRENGTHS[k], tolerance=1e-3)
        errors[k] = held_out_error(features[:held], labels[:held], fitted)
        return errors[k]

    best = FIRST
    error(best)
    while best + 1 < len(STRENGTHS) and error(best + 1) < (1 - GAIN) * errors[best]:
        best += 1
    while 0 < best <= FIRST and error(best - 1) <= (1 + GAIN) * errors[best]:
        best -= 1
    return STRENGTHS[best]


def held_out_error(features: Tensor, labels: Tensor, fitted: Fit) -> float:
    """Mean cross-entropy at the best temperature. No probability counts as less than one in a million: a class may be
    among these rows only."""
    from everlearn.calibration import temperature  # which imports the heads

    weight, offset, present = fitted
    scores = torch.full((len(labels), int(max(labels.max(), present.max())) + 1), -math.inf)
    scores[:, present] = features @ weight + offset
    logs = (scores / temperature(scores, labels)).log_softmax(1).clamp_min(math.log(1e-6))
    return float(-logs.gather(1, labels[:, None]).mean())
