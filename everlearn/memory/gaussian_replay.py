"""GaussianReplay: features of old classes, drawn from one Gaussian per class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from everlearn.errors import EverlearnError
from everlearn.state import Stateful, check_finite, check_saved, grown

BLOCK = 256  # columns of the features drawn together
JITTER = 1e-4  # added to every variance


class GaussianReplay(Stateful):
    """One Gaussian per class, from which features are drawn.

    Of a class are kept the count n of its examples, their mean, and a triangular factor R with RᵀR = Σ (f - mean)(f -
    mean)ᵀ. R has as many rows as the class has examples, and never more than `width`: few examples span few
    directions, and what they say about the covariance needs no more. With z ~ N(0, I), mean + Rᵀz / √(n - 1) has
    the mean and the covariance of the class.

    Size: 4 `width` (min(n, `width`) + 1) + 16 bytes per class; the covariance would take 4 `width`² or more.

    Args:
        width: length of a feature vector.

    Attributes:
        counts: (classes,) examples of each class. means: (classes, width). sizes: (classes,) rows of each factor.
        rows: (sum of the sizes, width) the factors, one class below the other.

    >>> memory = GaussianReplay(2)
    >>> memory.grow(1)
    >>> memory.add(torch.randn(50, 2) + 9, torch.zeros(50, dtype=torch.long))
    >>> [(features.shape, labels.unique().tolist()) for features, labels in memory.drawn(4, times=1)]
    [(torch.Size([4, 2]), [0])]
    """

    counts: Tensor
    means: Tensor
    sizes: Tensor
    rows: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))
        self.register_buffer("means", torch.zeros(0, width))
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.long))
        self.register_buffer("rows", torch.zeros(0, width))

    def grow(self, classes: int) -> None:
        """Have this many classes; new ones have no examples."""
        for name in ("counts", "means", "sizes"):
            setattr(self, name, grown(getattr(self, name), classes))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Have the Gaussians be those of all examples so far, with these (n, width) features of (n,) labels.

        Raises:
            EverlearnError: a feature is not finite. Nothing is added then.
        """
        check_finite(features)
        features, labels = features.to(self.means), labels.to(self.counts.device)
        factors, means = list(self.factors()), self.means.clone()
        for k in labels.unique().tolist():
            new, old, known = features[labels == k].double(), self.means[k].double(), int(self.counts[k])
            total, mean = known + len(new), new.mean(0)
            between = (mean - old) * (known * len(new) / total) ** 0.5  # that of the two means around the one of all
            means[k] = old + (mean - old) * (len(new) / total)
            parts = [factors[k].double(), new - mean, *([between[None]] if known else [])]
            factors[k] = torch.linalg.qr(torch.cat(parts), mode="r").R.to(self.rows)
        self.counts += torch.bincount(labels, minlength=len(self.counts)).to(self.counts)
        self.means, self.rows = means, torch.cat([self.rows[:0], *factors])
        self.sizes = self.sizes.new_tensor([len(factor) for factor in factors])

    def factors(self) -> tuple[Tensor, ...]:
        """R of each class, (size, width) upper triangular."""
        return self.rows.split(self.sizes.tolist())

    def covariances(self) -> Tensor:
        """(classes, width, width), unbiased. Zeros for a class that has not two examples."""
        return torch.stack([factor.mT @ factor for factor in self.scaled()])

    def scaled(self) -> list[Tensor]:
        """R / √(n - 1) of each class, (size, width): its transpose makes features of the class of normal numbers."""
        freedom = (self.counts - 1).clamp_min(1).sqrt()
        return [factor / divisor for factor, divisor in zip(self.factors(), freedom, strict=True)]

    @torch.no_grad()
    def drawn(self, samples: int, *, times: int, shrink: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw `samples` features of every class that has examples, with their labels, `times` times. Each draw
        overwrites the one before.

        Args:
            shrink: (classes,) factors of the means; 1 by default.
        """
        present = self.counts.nonzero()[:, 0]
        means = (self.means if shrink is None else self.means * shrink[:, None])[present, None]
        scaled = self.scaled()
        factors = pad_sequence([scaled[k] for k in present.tolist()], batch_first=True)  # type: ignore[no-untyped-call]
        labels = present.repeat_interleave(samples)
        features = means.new_empty(len(present), samples, means.shape[2])
        noise = means.new_empty(len(present), samples, factors.shape[1])
        for _ in range(times):
            noise.normal_()
            features.normal_().mul_(JITTER**0.5).add_(means)
            for start in range(0, means.shape[2], BLOCK):
                end = start + BLOCK  # rows of the factors beyond it are zero here: a third of the work is saved
                features[:, :, start:end].baddbmm_(noise[:, :, :end], factors[:, :end, start:end])
            yield features.flatten(0, 1), labels

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """As every module, with one mean and one factor for each class that replaying has grown it to.

        Raises:
            EverlearnError: they do not fit each other or the classes.
        """
        super().check_saved(saved)
        for name in {"counts", "means", "sizes"} & saved.keys():
            check_saved(name, saved[name], self._buffers[name])
        if {"sizes", "rows"} <= saved.keys():
            if (saved["sizes"] < 0).any() or int(saved["sizes"].sum()) != len(saved["rows"]):
                raise EverlearnError("the checkpoint is damaged: the factors of its Gaussians do not fit their sizes")
            check_saved("rows", saved["rows"], self.rows, (len(saved["rows"]), self.rows.shape[1]))
