"""KNN: the vote of the nearest kept features, mixed with a head that is solved on all of them."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.errors import EverlearnError, unknown
from everlearn.heads.gaussian import Gaussian
from everlearn.heads.kept_rows import KeptRows
from everlearn.heads.logistic import Logistic
from everlearn.heads.ridge import Ridge

WEIGHTS = tuple(tenth / 10 for tenth in range(11))
NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
UNTIL_CHOSEN = (0.5, 8, 0.1)  # λ, k and T while there are fewer than five rows
HELD = 1000  # rows, at most, that choose
SAME = 1e-6  # cosines that differ by less are equal: float32 rounds them by a tenth of it
QUERIES = 128  # compared with all rows at once
PARAMETRIC = {"logistic": Logistic, "lda": Gaussian, "ridge": Ridge}
Kind = Literal["logistic", "lda", "ridge"]


class KNN(KeptRows):
    """Log-probabilities ln(λ p_kNN + (1 - λ) p_head), as kNN-LM mixes them (Khandelwal et al., 2020,
    https://arxiv.org/abs/1911.00172), with f̂ = f / |f| and

        p_kNN(c) ∝ Σ over the k rows nearest to f̂ of [label = c] exp(-|f̂ - row|² / T).

    The head is linear in f̂, solved on all rows, and the softmax of its scores is taken at the temperature that fits
    rows held out. Rows as near as the k-th vote too, so that no tie depends on an order. A class with p = 0 has the
    logarithm of the least float32, -87.3.

    Only rows are kept, in the order of their content; everything else is solved from them anew. While none has to leave
    for `rows`, a head is therefore the same *to the bit* for every order and number of tasks, after `remove` as if the
    examples had never been there, and after `merge` as if all had been learned at once. (Where classes were met in
    another order, the softmax adds them up in that order, and the last digit of a score may differ.)

    The search compares all rows, in torch: it has no other answer where faiss is installed. λ, k and T, where "auto",
    have the least cross-entropy on a fifth of the rows, at most 1,000, given the others.

    Precision: directions are stored in float16, compared and solved in float32 (`lda` and `ridge`: float64).

    Size: 2 `width` + 16 bytes per row, 4 `width` + 12 per class.

    Args:
        width: length of a feature vector.
        parametric: the head beside the vote: logistic, lda or ridge.
        interpolation: λ, from 0 (the head alone) to 1 (the vote alone).
        neighbours: k.
        temperature: T, above 0.
        rows: most rows kept; where there are more, a uniform sample of them, in which none replaces one removed.
        seed: of the choice of rows.
        rounding: of the encoder (`Backbone.rounding`), up to which `remove` knows a row again.

    Raises:
        EverlearnError: a setting is out of its range.

    >>> head = KNN(2, interpolation=1.0, neighbours=2, temperature=1.0)
    >>> head.grow(["cat", "dog", "emu"])
    >>> head.add(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 1, 2]))
    >>> _ = head.solve()
    >>> head(torch.tensor([[3.0, 0.0]])).exp().round(decimals=3)  # cat to dog as 1 to exp(-2)
    tensor([[0.8810, 0.1190, 0.0000]])
    """

    chosen: Tensor

    def __init__(
        self, width: int, *, parametric: Kind = "logistic", interpolation: float | Literal["auto"] = "auto",
        neighbours: int | Literal["auto"] = "auto", temperature: float | Literal["auto"] = "auto",
        rows: int = 100_000, seed: int = 0, rounding: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__(width, rows, seed, rounding)
        if parametric not in PARAMETRIC:
            raise unknown("parametric head", parametric, PARAMETRIC)
        self.kind, self.wanted = parametric, (interpolation, neighbours, temperature)
        for name, value, (least, most) in zip(("interpolation", "neighbours", "temperature"), self.wanted,
                                              ((0, 1), (1, math.inf), (1e-9, math.inf)), strict=True):  # fmt: skip
            if value != "auto" and (isinstance(value, str) or not least <= value <= most):
                raise EverlearnError(f"knn: {name} is 'auto' or from {least:g} to {most:g}, but it is {value!r}")
        given = [start if value == "auto" else value for start, value in zip(UNTIL_CHOSEN, self.wanted, strict=True)]
        self.register_buffer("chosen", torch.tensor(given, dtype=torch.float64))  # λ, k, T

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) log-probabilities in float32."""
        share, k, temperature = self.chosen.tolist()
        rows, labels = self.sample.features.float(), self.sample.labels
        scores = [features.new_zeros(0, self.classes, dtype=torch.float32)]
        for part in normalize(features.float(), dim=1).split(QUERIES):
            mixed = part.new_zeros(len(part), self.classes)
            if share > 0:
                mixed += share * vote(part @ rows.T, labels, self.classes, int(k), temperature)
            if share < 1:
                mixed += (1 - share) * (part @ self.weight + self.offset).softmax(1)
            scores.append(mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log())
        return torch.cat(scores)

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Choose λ, k and T, solve the head, and return its weight, (width, classes)."""
        features, labels, by_name = self._rows_by_name()
        scale = self._choose(features, labels) if len(labels) >= 5 else 1.0
        if self.chosen[0] < 1 and len(labels):
            weight, offset, present = self._fit(features, labels)
            self._set(by_name[present], weight / scale, offset / scale)
        else:  # the vote alone answers
            self._set(by_name[:0], self.weight[:, :0], self.offset[:0])
        return self.weight

    def _choose(self, features: Tensor, labels: Tensor) -> float:
        """Set λ, k and T, and return the temperature of the head. The rows lie in the order of their keys, so the first
        ones are a sample of all."""
        from everlearn.calibration import temperature  # which imports the heads

        held = min(len(labels) // 5, HELD)
        asked, truth, rows, known = features[:held], labels[:held, None], features[held:], labels[held:]
        by_head, scale = features.new_zeros(held, 1), 1.0
        if self.wanted[0] != 1:  # else the head has no part
            weight, offset, present = self._fit(rows, known)
            scores = torch.full((held, self.classes), -math.inf, dtype=weight.dtype)
            scores[:, present] = asked.to(weight) @ weight + offset
            scale = temperature(scores.float(), labels[:held])
            by_head = (scores.float() / scale).softmax(1).gather(1, truth)
        options = [all_ if value == "auto" else (value,)
                   for all_, value in zip((WEIGHTS, NEIGHBOURS, TEMPERATURES), self.wanted, strict=True)]  # fmt: skip
        most = 2 * max(*NEIGHBOURS, *map(int, options[1]))  # as many as vote, and others that are as near as the last
        near, places = (asked @ rows.T).topk(min(most, len(rows)), dim=1)
        losses = {}
        for k, t in itertools.product(*options[1:]):
            by_vote = vote(near, known[places], self.classes, int(k), float(t)).gather(1, truth)
            for share in options[0]:
                mixed = float(share) * by_vote + (1 - float(share)) * by_head
                losses[share, k, t] = float(-mixed.clamp_min(1e-6).log().mean())  # one error is not everything
        best = min(losses, key=lambda option: (losses[option], *option))
        self.chosen.copy_(torch.tensor(best, dtype=self.chosen.dtype))
        return scale

    def _fit(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weight (width, k) and offset (k,) of the parametric head, and the k labels that they are of."""
        present = labels.unique()
        head = PARAMETRIC[self.kind](features.shape[1])
        head.grow(len(present))
        head.add(features, torch.searchsorted(present, labels))
        head.solve()
        return head.weight, getattr(head, "offset", head.weight.new_zeros(len(present))), present


def vote(similarities: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """p_kNN, (n, classes): the share of each class in the weights of the k nearest rows, and of those as near as the
    k-th. Nothing is nearest where there are no rows, and all shares are 0.

    Args:
        similarities: (n, rows) cosines, so that the squared distance is 2 - 2 cos.
        labels: (rows,) or (n, rows).

    >>> vote(torch.tensor([[1.0, 0.5, 0.5, 0.1]]), torch.tensor([0, 1, 2, 2]), 3, 2, 1.0).round(decimals=3)
    tensor([[0.5760, 0.2120, 0.2120]])
    """
    votes = similarities.new_zeros(len(similarities), classes)
    if not similarities.numel():
        return votes
    least = similarities.topk(min(k, similarities.shape[1]), dim=1).values
    weights = (2 / temperature * (similarities - least[:, :1])).exp()
    weights.masked_fill_(similarities < least[:, -1:] - SAME, 0)
    votes.scatter_add_(1, labels.expand_as(similarities), weights)
    return votes / votes.sum(1, keepdim=True)
