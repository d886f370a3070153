"""Policies: which examples a memory keeps when it cannot keep all.

A policy is asked with every candidate, the examples in memory and the new ones, and answers their rows in
the order in which it would keep them. Each candidate has a column "draw": a random number in [0, 1) that
it was given when it was first offered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from everlearn.distillation.subsets import herding
from everlearn.streams.stream import Examples

Policy = Callable[[Examples], Tensor]


class Reservoir:
    """Each example seen so far is equally likely to be kept (reservoir sampling, in the form that keeps the
    smallest of random numbers: Efraimidis & Spirakis, 2006, https://doi.org/10.1016/j.ipl.2005.11.003).

    >>> examples = Examples(["a", "b"], torch.tensor([0, 0]), ["1", "2"], columns={"draw": torch.tensor([0.9, 0.1])})
    >>> Reservoir()(examples).tolist()
    [1, 0]
    """

    def __call__(self, candidates: Examples) -> Tensor:
        return candidates.columns["draw"].argsort(stable=True)


class Balanced:
    """Every class keeps equally many examples, each example of a class equally likely (Chaudhry et al., 2019,
    https://arxiv.org/abs/1902.10486, compare it with the reservoir).

    >>> draws = torch.tensor([0.1, 0.2, 0.3])
    >>> examples = Examples(["a", "b", "c"], torch.tensor([0, 0, 1]), ["1", "2", "3"], columns={"draw": draws})
    >>> Balanced()(examples).tolist()
    [0, 2, 1]
    """

    def __call__(self, candidates: Examples) -> Tensor:
        order = self.within_class(candidates)
        labels = candidates.labels[order] if len(candidates.labels) else torch.zeros_like(order)
        by_class, counts = labels.argsort(stable=True), labels.bincount()
        # The place of each example among those of its own class decides first, its draw second.
        places = torch.empty_like(labels)
        places[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
        return order[places.argsort(stable=True)]

    def within_class(self, candidates: Examples) -> Tensor:
        """(n,): the rows of all n candidates, those first that are kept before others of their class."""
        return candidates.columns["draw"].argsort(stable=True)


class MostForgotten(Balanced):
    """Every class keeps equally many examples: those that were forgotten most often while they were learned. Toneva et
    al., ICLR 2019, https://arxiv.org/abs/1812.05159, find that training needs these most. The candidates have a column
    "forgotten"; of equal ones chance decides.

    >>> columns = {"draw": torch.tensor([0.1, 0.2, 0.3]), "forgotten": torch.tensor([0, 5, 1])}
    >>> examples = Examples(["a", "b", "c"], torch.tensor([0, 0, 1]), ["1", "2", "3"], columns=columns)
    >>> MostForgotten()(examples).tolist()
    [1, 2, 0]
    """

    def within_class(self, candidates: Examples) -> Tensor:
        by_chance = super().within_class(candidates)
        return by_chance[candidates.columns["forgotten"][by_chance].argsort(descending=True, stable=True)]


class Herded(Balanced):
    """Every class keeps equally many examples: those whose mean is nearest to the mean of the class, chosen one after
    the other (Welling, 2009, https://doi.org/10.1145/1553374.1553517; as in iCaRL, Rebuffi et al., 2017,
    https://arxiv.org/abs/1611.07725). The candidates have a column "place", as `places` gives it when their task is
    learned: so the memory keeps no features, and can drop the last ones when other classes need the room.

    >>> columns = {"draw": torch.tensor([0.1, 0.2, 0.3]), "place": torch.tensor([1, 2, 0])}
    >>> examples = Examples(["a", "b", "c"], torch.tensor([0, 0, 0]), ["1", "2", "3"], columns=columns)
    >>> Herded()(examples).tolist()
    [2, 0, 1]
    """

    def within_class(self, candidates: Examples) -> Tensor:
        by_chance = super().within_class(candidates)
        return by_chance[candidates.columns["place"][by_chance].argsort(stable=True)]

    @staticmethod
    def places(features: Tensor, labels: Tensor, most: int) -> Tensor:
        """(n,): when each example is chosen among those of its class, from 0 on; `most` for those that never are.

        Args:
            features: (n, width). labels: (n,).
            most: how many of a class are chosen at most.

        >>> Herded.places(torch.tensor([[0.0], [1.0], [3.0], [5.0]]), torch.tensor([0, 0, 0, 1]), 2).tolist()
        [2, 0, 1, 0]
        """
        labels, places = labels.cpu(), torch.full((len(labels),), most)
        if most and len(labels):
            chosen = herding(features.cpu(), labels, most)
            counts = labels[chosen].bincount()
            places[chosen] = torch.arange(len(chosen)) - (counts.cumsum(0) - counts)[labels[chosen]]
        return places
