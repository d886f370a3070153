"""Ridge: the linear head of least squares, in closed form and exact however the data arrive."""

from __future__ import annotations

import math
import warnings
import zlib
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu

from everlearn.errors import EverlearnError, unknown
from everlearn.heads.content_sample import ContentSample
from everlearn.heads.statistics import Statistics

LAMBDAS = tuple(10.0**exponent for exponent in range(-8, 9))
ROWS = 1024  # examples expanded at once: bounds the n × M temporary
PANEL = 512  # rows of HᵀH stored together


class Ridge(Statistics):
    """Scores h W with W = (HᵀH + λI)⁻¹ HᵀY: ridge regression of the one-hot labels, no training.

    h = relu(f P), P a fixed random matrix of `projection` columns, or h = f where `projection` is 0
    (M is the length of h).

    Precision: statistics and the solve are float64, the solved weight is cast to float32 once and
    `forward` computes in float32. The projection is not saved but drawn again from `seed`; its
    checksum is saved, and loading fails where it differs.

    Size: about 4 M² bytes (half of HᵀH: 105 MB at M = 5000, 410 MB at M = 10000) + 12 M per class
    + 4 `width` per row of the sample. Solving needs 16 M² bytes for a moment.

    Choosing λ: by squared error on a held-out fifth, for all candidates from one factorisation.
    `select="sample"` (default) uses up to `sample` feature rows of all seen so far, chosen by their
    content alone, when the head is solved: λ too is then the same for every order and number of tasks.
    A tenth more rows are kept, so that rows which are removed can be replaced. λ is used as found, not
    scaled to the number of examples.
    `select="current"` is RanPAC's: the features that were added last. It keeps no rows, but the head then
    depends on which task came last and how large it was.

    Args:
        width: length of a feature vector.
        projection: number of random features M; 0 for none.
        seed: of the projection and of the choice of rows.
        lambdas: candidates for λ.
        select: which features choose λ.
        sample: rows that choose λ, where select is "sample".

    >>> head = Ridge(2, lambdas=(1e-6,))
    >>> head.grow(2)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> head.add(x, y)
    >>> head.solve().round(decimals=3).tolist(), float(head.lambda_)
    ([[1.0, 0.0], [0.0, 1.0]], 1e-06)
    >>> head(x).argmax(1).tolist()
    [0, 1]
    """

    by_class = {"targets": 1}  # noqa: RUF012
    over_all = ("gram",)
    solved = {"weight": (1, 0.0)}  # noqa: RUF012
    projection: Tensor
    gram: Tensor
    targets: Tensor
    weight: Tensor
    lambda_: Tensor

    def __init__(
        self, width: int, *, projection: int = 0, seed: int = 0, lambdas: tuple[float, ...] = LAMBDAS,
        select: Literal["sample", "current"] = "sample", sample: int = 1500,
    ):  # fmt: skip
        super().__init__()
        if select not in ("sample", "current"):
            raise unknown("way to select λ", select, ("sample", "current"))
        if not lambdas or not all(0 < candidate < math.inf for candidate in lambdas):
            raise EverlearnError(f"ridge: every candidate for λ is above 0 and finite, but lambdas = {tuple(lambdas)}")
        self.lambdas, self.select, self.rows = tuple(lambdas), select, sample
        features = projection or width
        matrix = torch.randn(width, projection, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("projection", matrix, persistent=False)
        self.sample = ContentSample(width, sample + sample // 10 if select == "sample" else 0, seed + 1)
        drawn = matrix.numpy().tobytes() + self.sample.directions.numpy().tobytes()
        self.register_buffer("checksum", torch.tensor([width, projection, zlib.crc32(drawn)]))
        panels = sum(rows * columns for _, rows, columns in self._layout(features))
        self.register_buffer("gram", torch.zeros(panels, dtype=torch.float64))  # HᵀH, lower half, by row panels
        self.register_buffer("targets", torch.zeros(features, 0, dtype=torch.float64))  # HᵀY
        self.register_buffer("weight", torch.zeros(features, 0))
        self.register_buffer("lambda_", torch.tensor(1.0, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) float32 scores, with the weight of the last `solve`."""
        return torch.cat([self._expand(rows.float()) @ self.weight for rows in features.split(ROWS)])

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        super().add(features, labels)
        self.sample.add(features, labels)
        if self.select == "current":
            self.choose_lambda(features, labels)

    @torch.no_grad()
    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Undo `add` for these examples; `solve` makes it felt. The sample loses those of its rows.

        Raises:
            ContractError: where more examples of a class leave than were added.
            EverlearnError: where an example that must be in the sample is not: it was never added.
        """
        self._counted(labels, -1)  # refuses before anything changes
        self.sample.remove(features, labels)
        super().remove(features, labels)

    @torch.no_grad()
    def merge(self, other: Statistics) -> None:
        super().merge(other)
        assert isinstance(other, Ridge)
        self.sample.merge(other.sample, torch.tensor([self.class_names.index(name) for name in other.class_names]))

    @torch.no_grad()
    def choose_lambda(self, features: Tensor, labels: Tensor) -> float:
        """Set λ and return it: of those within 1e-6 of the least held-out error, the largest.

        A fifth of the rows is held out, picked by content, so that shuffling changes nothing and
        equal rows fall on the same side (but at the border between them).
        With fewer than two rows λ stays as it is (at first 1).

        Args:
            features: (n, width). labels: (n,).
        """
        held = len(features) // 5 or 1
        if len(features) >= 2:
            order = self.sample.keys_of(features, which=1).argsort()
            h = self._expand(features[order].double())
            y = one_hot(labels.to(order.device)[order], self.classes).double()
            errors = held_out_errors(h[held:], y[held:], h[:held], y[:held], self.lambdas)
            good = errors <= errors.min() * (1 + 1e-6)
            self.lambda_.fill_(max(value for value, is_good in zip(self.lambdas, good, strict=True) if is_good))
        return float(self.lambda_)

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Choose λ on the sample, set the weight by one Cholesky factorisation, and return it in float64,
        (M, classes). Where λ is too small for one, it is raised tenfold until there is, with a warning."""
        if self.select == "sample":
            self.choose_lambda(*self.sample.smallest(self.rows))
        gram, strength = self._dense_gram(), float(self.lambda_)
        gram.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(gram)
        while failed:
            raised = max(10 * strength, 1e-16 * float(gram.diagonal().mean()))
            warnings.warn(f"ridge: HᵀH + λI is singular at λ = {strength:.3g}; {raised:.3g} is used", stacklevel=2)
            gram.diagonal().add_(raised - strength)
            strength = raised
            factor, failed = torch.linalg.cholesky_ex(gram)
        weight = torch.cholesky_solve(self.targets, factor)
        self.weight = weight.to(self.weight.dtype).contiguous()  # safetensors asks for it
        return weight

    # -- sums over examples

    @staticmethod
    def _layout(features: int) -> list[tuple[int, int, int]]:
        """First row, number of rows and number of columns of each panel of the lower half."""
        starts = range(0, features, PANEL)
        return [(start, min(PANEL, features - start), min(start + PANEL, features)) for start in starts]

    def _panels(self) -> list[tuple[int, Tensor]]:
        """First row of each panel, and the panel as a view of the statistics."""
        layout = self._layout(len(self.targets))
        flat = self.gram.split([rows * columns for _, rows, columns in layout])
        return [(start, part.view(rows, columns)) for part, (start, rows, columns) in zip(flat, layout, strict=True)]

    def _dense_gram(self) -> Tensor:
        """HᵀH, (M, M), of which the lower half is filled: all that Cholesky reads."""
        dense = self.gram.new_zeros(len(self.targets), len(self.targets))
        for start, panel in self._panels():
            dense[start : start + len(panel), : panel.shape[1]] = panel
        return dense

    def _expand(self, features: Tensor) -> Tensor:
        """h in the precision of the features, (n, M)."""
        return relu(features @ self.projection.to(features.dtype)) if self.projection.shape[1] else features

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        if not len(labels):  # one_hot refuses
            return
        for rows, classes in zip(features.to(self.gram).split(ROWS), labels.split(ROWS), strict=True):
            h = self._expand(rows)
            for start, panel in self._panels():
                panel.addmm_(h[:, start : start + len(panel)].T, h[:, : panel.shape[1]], alpha=sign)
            self.targets.addmm_(h.T, one_hot(classes, self.classes).to(h), alpha=sign)


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
