"""Subsets of real examples that a distilled set is compared with: at random, by herding, and medoids of k-means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from everlearn.seeds import derived_seed


def rows_by_class(labels: Tensor) -> list[Tensor]:
    """The rows of each label that occurs, in the order of the labels."""
    return [(labels == label).nonzero()[:, 0] for label in labels.unique()]


def random_rows(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Up to `per_class` rows of each class at random, (m,).

    >>> random_rows(torch.tensor([0, 0, 1]), 1, seed=0).shape
    torch.Size([2])
    """
    generator = torch.Generator().manual_seed(derived_seed(seed))
    parts = [rows[torch.randperm(len(rows), generator=generator)[:per_class]] for rows in rows_by_class(labels)]
    return torch.cat(parts)


def herding(features: Tensor, labels: Tensor, per_class: int) -> Tensor:
    """Up to `per_class` rows of each class whose mean is near the mean of the class, (m,), taken one after the other
    (Welling, 2009, https://doi.org/10.1145/1553374.1553517; as in iCaRL, Rebuffi et al., 2017,
    https://arxiv.org/abs/1611.07725).

    Args:
        features: (n, width). labels: (n,).

    >>> herding(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 0]), 1).tolist()
    [1]
    """
    return _of_each_class(features, labels, per_class, _herded)


def medoids(features: Tensor, labels: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """The rows of each class that are nearest to the `per_class` centres of k-means, (m,).

    Args:
        features: (n, width). labels: (n,).

    >>> medoids(torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([0, 0, 0]), 2).sort().values[-1].tolist()
    2
    """
    return _of_each_class(features, labels, per_class, lambda own, k: _medoids(own, k, seed))


def centres(features: Tensor, k: int, seed: int) -> Tensor:
    """The centres (k, width) of k-means."""
    from sklearn.cluster import KMeans

    found = KMeans(k, n_init=3, random_state=derived_seed(seed) % 2**32).fit(features.double().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(features)


def _of_each_class(
    features: Tensor, labels: Tensor, per_class: int, choose: Callable[[Tensor, int], list[int]]
) -> Tensor:
    parts = [rows[choose(features[rows], min(per_class, len(rows)))] for rows in rows_by_class(labels)]
    return torch.cat(parts)


def _herded(features: Tensor, k: int) -> list[int]:
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen: list[int] = []
    for count in range(1, k + 1):
        distance = (mean - (total + features) / count).square().sum(1)
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
        total = total + features[chosen[-1]]
    return chosen


def _medoids(features: Tensor, k: int, seed: int) -> list[int]:
    chosen: list[int] = []
    for distance in torch.cdist(centres(features, k, seed), features):
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
    return chosen
