"""Ridge: the linear head of least squares, in closed form and exact however the data arrive."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot, relu

from everlearn.errors import EverlearnError, unknown
from everlearn.heads.content_sample import ContentSample
from everlearn.heads.least_squares import held_out_errors, rows_of, solve_shifted
from everlearn.heads.statistics import Statistics
from everlearn.state import Stateful, check_saved, grown

LAMBDAS = tuple(10.0**exponent for exponent in range(-8, 9))
ROWS = 1024  # examples expanded at once: bounds the n × M temporary
PANEL = 512  # rows of HᵀH stored together
SUMS = frozenset(("gram", "targets"))


class Ridge(Statistics):
    """Scores h W with W = (HᵀH + λI)⁻¹ HᵀY: ridge regression of the one-hot labels, no training.

    h = relu(f P), P a fixed random matrix of `projection` columns, or h = f where `projection` is 0
    (M is the length of h).

    Precision: sums and the solve are float64, the solved weight is cast to float32 once and
    `forward` computes in float32. The projection is not saved but drawn again from `seed`; its
    checksum is saved, and loading fails where it differs.

    What it keeps: the features of all examples as long as they are smaller than half of HᵀH (`width` × examples < M²),
    then that half and HᵀY, and the features no longer. Both give the same weight. From up to M / 2 examples it is
    solved in their kernel HHᵀ: W = Hᵀ(HHᵀ + λI)⁻¹Y. Features are a memory of the data, as those of the sample
    are too: treat them like it.

    Size: 4 `width` + 8 bytes an example, about 4 M² at most (420 MB at M = 10000), where also 8 M per class are added;
    4 M per class for the weight; 4 `width` per row of the sample. Solving needs 8 M² bytes for a moment, and up to
    4 M² more between two tasks.

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
        rounding: of the encoder (`Backbone.rounding`), up to which `remove` knows a row again.

    >>> head = Ridge(2, lambdas=(1e-6,))
    >>> head.grow(2)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> head.add(x, y)
    >>> head.solve().round(decimals=3).tolist(), float(head.lambda_)
    ([[1.0, 0.0], [0.0, 1.0]], 1e-06)
    >>> head(x).argmax(1).tolist()
    [0, 1]
    """

    solved = {"weight": (1, 0.0)}  # noqa: RUF012
    projection: Tensor
    gram: Tensor
    targets: Tensor
    kept: Tensor
    kept_labels: Tensor
    kernel: Tensor
    weight: Tensor
    lambda_: Tensor

    def __init__(
        self, width: int, *, projection: int = 0, seed: int = 0, lambdas: tuple[float, ...] = LAMBDAS,
        select: Literal["sample", "current"] = "sample", sample: int = 1500, rounding: float = 1e-4,
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
        rows = sample + sample // 10 if select == "sample" else 0
        self.sample = ContentSample(width, rows, seed + 1, rounding=rounding)
        drawn = matrix.numpy().tobytes() + self.sample.directions.numpy().tobytes()
        self.register_buffer("checksum", torch.tensor([width, projection, zlib.crc32(drawn)]))
        self.register_buffer("kept", torch.zeros(0, width))  # the features of all examples, until they are summed
        self.register_buffer("kept_labels", torch.zeros(0, dtype=torch.long))
        # Saved only where they take the place of the features; before, they spare work between one task and the next.
        empty = torch.zeros(0, 0, dtype=torch.float64)
        self.register_buffer("gram", empty.flatten(), persistent=False)  # HᵀH, lower half, in panels of rows
        self.register_buffer("targets", empty, persistent=False)  # HᵀY
        self.register_buffer("kernel", empty.clone(), persistent=False)  # HHᵀ, lower half
        self.summed = 0  # so many of the features kept are in `gram` and `targets`
        self.register_buffer("weight", torch.zeros(features, 0))
        self.register_buffer("lambda_", torch.tensor(1.0, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) float32 scores, with the weight of the last `solve`."""
        return torch.cat([self._expand(rows.float()) @ self.weight for rows in features.split(ROWS)])

    @property
    def size(self) -> int:
        """M, the length of h."""
        return len(self.weight)

    @property
    def keeps_features(self) -> bool:
        """Whether it keeps the features of all examples, and not their sums."""
        return "gram" in self._non_persistent_buffers_set

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        super().add(features, labels)
        self.sample.add(features, labels)
        if self.select == "current":
            self.choose_lambda(features, labels)

    @torch.no_grad()
    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Undo `add` for these (n, width) features and (n,) labels; `solve` makes it felt. The sample loses those of
        its rows.

        Raises:
            ContractError: where more examples of a class leave than were added.
            EverlearnError: where an example was never added with its label. It is noticed as long as the features are
                kept, and later where the example must be in the sample.
        """
        self._counted(labels, -1)  # refuses before anything changes
        if self.keeps_features:
            rows_of(features, labels, self.kept, self.kept_labels, self.sample.rounding)
        self.sample.remove(features, labels)
        super().remove(features, labels)

    @torch.no_grad()
    def merge(self, other: Statistics) -> None:
        super().merge(other)
        assert isinstance(other, Ridge)
        places = self._places_of(other)
        self.sample.merge(other.sample, places)
        if other.keeps_features:
            self._accumulate(other.kept.to(self.kept), places[other.kept_labels.cpu()].to(self.kept_labels), 1)
        else:
            self._sum_up()
            self.gram.add_(other.gram.to(self.gram))
            self.targets.index_add_(1, places.to(self.targets.device), other.targets.to(self.targets).clone())

    def grow(self, classes: int | Sequence[str]) -> None:
        super().grow(classes)
        self.targets = grown(self.targets, self.classes, 1)

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
        if self.keeps_features and 2 * len(self.kept) <= self.size:
            chunks = self.kept.double().split(ROWS)
            h = torch.cat([self._expand(rows) for rows in chunks])
            y = h.new_zeros(len(h), self.classes)
            y[range(len(h)), self.kept_labels] = 1
            weight = h.T @ solve_shifted(lambda: (self._dense_kernel(h), y), float(self.lambda_))
        else:
            weight = solve_shifted(self._dense_sums, float(self.lambda_))
        self.weight = weight.to(self.weight.dtype).contiguous()  # safetensors asks for it
        return weight

    # -- the features that are kept, and their kernel

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        if not len(labels):  # one_hot refuses
            return
        if not self.keeps_features:
            self._add_to(self._panels(), self.targets, features, labels, sign)
        elif sign > 0:
            self.kept = torch.cat([self.kept, features.to(self.kept)])
            self.kept_labels = torch.cat([self.kept_labels, labels.to(self.kept_labels)])
            if self.kept.numel() >= self.size**2:
                self._sum_up()
        else:
            places = rows_of(features, labels, self.kept, self.kept_labels, self.sample.rounding)
            if len(early := places[places < self.summed]):
                self._add_to(self._panels(), self.targets, self.kept[early], self.kept_labels[early], -1)
                self.summed -= len(early)
            stay = torch.ones_like(self.kept_labels, dtype=torch.bool)
            stay[places] = False
            left = stay[: len(self.kernel)].nonzero()[:, 0]
            self.kernel = self.kernel[left][:, left]
            self.kept, self.kept_labels = self.kept[stay], self.kept_labels[stay]

    def _dense_kernel(self, h: Tensor) -> Tensor:
        """HHᵀ, (n, n), of which the lower half is filled. Whole blocks of rows are remembered for the next time: then,
        and in a resumed run, the same products are formed of the same blocks."""
        have = len(self.kernel)
        dense = h.new_zeros(len(h), len(h))
        dense[:have, :have] = self.kernel
        for start in range(have, len(h), ROWS):
            rows = h[start : start + ROWS]
            dense[start : start + len(rows), : start + len(rows)] = rows @ h[: start + len(rows)].T
        whole = have + (len(h) - have) // ROWS * ROWS
        if whole > have:
            self.kernel = dense[:whole, :whole].clone()
        return dense

    # -- sums over examples

    def _sum_up(self) -> None:
        """Keep sums from now on, and the features no longer."""
        if self.keeps_features:
            self._begin_sums()
            rows, labels = self.kept[self.summed :], self.kept_labels[self.summed :]
            self._add_to(self._panels(), self.targets, rows, labels, 1)
            self._non_persistent_buffers_set -= {"gram", "targets"}
            self.kept, self.kept_labels, self.kernel = self.kept[:0], self.kept_labels[:0], self.kernel[:0, :0]

    def _begin_sums(self) -> None:
        if not len(self.gram):
            panels = sum(rows * columns for _, rows, columns in self._layout(self.size))
            self.gram, self.summed = self.gram.new_zeros(panels), 0
            self.targets = self.targets.new_zeros(self.size, self.classes)

    def _dense_sums(self) -> tuple[Tensor, Tensor]:
        """HᵀH, (M, M), of which the lower half is filled: all that Cholesky reads; and HᵀY. Whole blocks of the
        features kept are remembered in the sums, as those of the kernel are."""
        self._begin_sums()
        whole = self.summed + max(0, len(self.kept) - self.summed) // ROWS * ROWS
        if whole > self.summed:
            part = slice(self.summed, whole)
            self._add_to(self._panels(), self.targets, self.kept[part], self.kept_labels[part], 1)
            self.summed = whole
        dense, targets = self.gram.new_zeros(self.size, self.size), self.targets
        for start, panel in self._panels():
            dense[start : start + len(panel), : panel.shape[1]] = panel
        if self.keeps_features and whole < len(self.kept):
            views = [(start, dense[start : start + rows, :columns]) for start, rows, columns in self._layout(self.size)]
            targets = targets.clone()
            self._add_to(views, targets, self.kept[whole:], self.kept_labels[whole:], 1)
        return dense, targets

    @staticmethod
    def _layout(features: int) -> list[tuple[int, int, int]]:
        """First row, number of rows and number of columns of each panel of the lower half."""
        starts = range(0, features, PANEL)
        return [(start, min(PANEL, features - start), min(start + PANEL, features)) for start in starts]

    def _panels(self) -> list[tuple[int, Tensor]]:
        """First row of each panel, and the panel as a view of the statistics."""
        layout = self._layout(self.size)
        flat = self.gram.split([rows * columns for _, rows, columns in layout])
        return [(start, part.view(rows, columns)) for part, (start, rows, columns) in zip(flat, layout, strict=True)]

    def _add_to(
        self, panels: list[tuple[int, Tensor]], targets: Tensor, features: Tensor, labels: Tensor, sign: int
    ) -> None:
        """Add the features, times `sign`, to HᵀH in panels and to HᵀY."""
        for rows, classes in zip(features.to(targets).split(ROWS), labels.to(targets.device).split(ROWS), strict=True):
            h = self._expand(rows)
            for start, panel in panels:
                panel.addmm_(h[:, start : start + len(panel)].T, h[:, : panel.shape[1]], alpha=sign)
            targets.addmm_(h.T, one_hot(classes, self.classes).to(h), alpha=sign)

    def _expand(self, features: Tensor) -> Tensor:
        """h in the precision of the features, (n, M)."""
        return relu(features @ self.projection.to(features.dtype)) if self.projection.shape[1] else features

    # -- a checkpoint holds the features or the sums

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """As every head, and there are the features of all examples that were counted, or sums of them.

        Raises:
            EverlearnError: a tensor does not fit.
        """
        Stateful.check_saved(self, {name: saved[name] for name in saved if name not in SUMS})
        for name in {"counts", "weight"} & saved.keys():
            check_saved(name, saved[name], self._buffers[name])
        kept, labels = saved.get("kept", self.kept), saved.get("kept_labels", self.kept_labels)
        check_saved("kept", kept, self.kept, (len(labels), self.kept.shape[1]))
        if saved.keys() >= SUMS:
            panels = sum(rows * columns for _, rows, columns in self._layout(self.size))
            check_saved("gram", saved["gram"], self.gram, (panels,))
            check_saved("targets", saved["targets"], self.targets, (self.size, self.classes))
        elif SUMS & saved.keys():
            raise EverlearnError("the checkpoint does not fit the method: it has HᵀH or HᵀY alone")
        in_kept = len(labels) > 0 or not saved.keys() >= SUMS
        outside = len(labels) > 0 and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes
        if in_kept and (outside or not torch.equal(labels.bincount(minlength=self.classes), saved["counts"])):
            raise EverlearnError("the checkpoint is damaged: the features in it are not of the examples that it counts")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.gram, self.kernel, self.summed = self.gram[:0], self.kernel[:0, :0], 0
        self.targets = self.targets[:0]
        saved = {name for name in SUMS if prefix + name in state_dict}
        self._non_persistent_buffers_set = (self._non_persistent_buffers_set | SUMS) - saved
        super()._load_from_state_dict(state_dict, prefix, *rest)
