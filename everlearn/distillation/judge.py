"""What a distilled set is worth: accuracy of models trained on it, beside subsets of real examples of equal size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from everlearn.backbones.backbone import Backbone
from everlearn.distillation.inner import solve, with_offset
from everlearn.distillation.subsets import herding, medoids, random_rows
from everlearn.seeds import derived_seed, seeded
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples

SUBSETS, STARTS = 20, 5
"""Random subsets that are drawn, and fresh starts of training."""
Accuracy = dict[str, float]
"""Accuracy by part: validation and test."""


@dataclass(frozen=True)
class Space:
    """Features of all real examples, in which sets are judged.

    Args:
        train: (n, width) with labels (n,), and the same of each part that accuracy is measured on.
    """

    train: Tensor
    labels: Tensor
    parts: Mapping[str, tuple[Tensor, Tensor]]
    classes: int

    @staticmethod
    def of(encode: Callable[[list[Input]], Tensor], parts: Mapping[str, Examples], classes: int) -> Space:
        """The features that `encode` gives for the inputs of train, validation and test."""
        found = {name: (encode(list(part.inputs)).float().cpu(), part.labels) for name, part in parts.items()}
        train, labels = found.pop("train")
        return Space(train, labels, found, classes)

    def rows(self, features: Tensor) -> Tensor:
        """Features (n, width) as the inner problem reads them, (n, width + 1)."""
        return with_offset(features, normalize(self.train, dim=1).mean(0))

    def solved(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Accuracy:
        """Accuracy of the logistic regression of these features (m, width), with targets (m, classes)."""
        weight = solve(self.rows(features), targets, features.new_ones(len(features)) if weights is None else weights)
        return self.accuracy(lambda part: self.rows(part) @ weight)

    def trained(self, features: Tensor, targets: Tensor, weights: Tensor | None = None, *, start: int) -> Accuracy:
        """Accuracy of a linear head that starts at random and is trained on the features by 300 steps of Adam."""
        with seeded(start):
            weight = 0.1 * torch.randn(features.shape[1] + 1, self.classes)
        weight.requires_grad_(True)
        adam, rows = torch.optim.Adam([weight], lr=0.05), self.rows(features)
        weights = features.new_ones(len(features)) if weights is None else weights
        for _ in range(300):
            adam.zero_grad()
            loss = (weights * cross_entropy(rows @ weight, targets, reduction="none")).sum() / weights.sum()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        return self.accuracy(lambda part: self.rows(part) @ weight.detach())

    def accuracy(self, scores: Callable[[Tensor], Tensor]) -> Accuracy:
        """The share of right answers on each part."""
        return {name: float((scores(features).argmax(1) == labels).float().mean())
                for name, (features, labels) in self.parts.items()}  # fmt: skip

    def hard(self, labels: Tensor) -> Tensor:
        """Labels (m,) as targets (m, classes)."""
        return one_hot(labels, self.classes).float()

    def of_rows(self, rows: Tensor, weights: Tensor | None = None) -> Accuracy:
        """As `solved`, of real examples with their labels."""
        return self.solved(self.train[rows], self.hard(self.labels[rows]), weights)


def beside(
    space: Space, per_class: int, *, chosen_in: Space | None = None, seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Accuracy with all real examples, and with equally many a class: the mean of random subsets, the one of them with
    the highest accuracy on validation examples, herding, and medoids of k-means.

    Args:
        chosen_in: the features by which herding and k-means choose, where they are others than those that accuracy is
            measured with.
    """
    by = (chosen_in or space).train
    drawn = [
        space.of_rows(random_rows(space.labels, per_class, derived_seed(seed, number))) for number in range(SUBSETS)
    ]
    everything = space.solved(space.train, space.hard(space.labels))
    return {
        "all real examples": everything,
        f"best of {SUBSETS} random subsets": max(drawn, key=lambda accuracy: accuracy["validation"]),
        "random subsets, mean": {part: mean(accuracy[part] for accuracy in drawn) for part in space.parts},
        "herding": space.of_rows(herding(by, space.labels, per_class)),
        "medoids of k-means": space.of_rows(medoids(by, space.labels, per_class, seed)),
    }


def from_starts(accuracies: list[Accuracy]) -> dict[str, Any]:
    """Mean and standard deviation over fresh starts, by part."""
    return {part: {"mean": mean(a[part] for a in accuracies), "deviation": pstdev(a[part] for a in accuracies)}
            for part in accuracies[0]}  # fmt: skip


def nearest_real(features: Tensor, space: Space, k: int = 1) -> Tensor:
    """The real training examples that are nearest by cosine to each feature (m, width): rows (m, k), or all of them
    where there are fewer."""
    cosines = normalize(features, dim=1) @ normalize(space.train, dim=1).T
    return cosines.topk(min(k, cosines.shape[1]), dim=1).indices


def words(size: int = 256) -> Callable[[list[Input]], Tensor]:
    """A second encoder that needs no weights: words and pairs of words by tf-idf, reduced to `size` dimensions by their
    singular vectors (latent semantic analysis). It is fitted on the texts that come first, the training texts."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import Pipeline, make_pipeline

    fitted: list[Pipeline] = []

    def encode(texts: list[Input]) -> Tensor:
        plain = [str(text) for text in texts]
        if not fitted:
            counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
            kept = min(size, *(limit - 1 for limit in counts.fit_transform(plain).shape))
            fitted.append(make_pipeline(counts, TruncatedSVD(max(kept, 1), random_state=0)).fit(plain))
        return torch.from_numpy(fitted[0].transform(plain)).float()

    return encode


def encoder_of(backbone: Backbone) -> Callable[[list[Input]], Tensor]:
    """Features of a frozen backbone, from the feature store."""
    return lambda inputs: backbone.encode(inputs)
