"""Active learning: which unlabelled examples a person should label next, and when to stop.

Each strategy is a plain function of frozen features, and where a model exists of its probabilities. It gives rows in
an order of which any beginning is a choice of its own, so that whoever labels may stop early.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.errors import EverlearnError, unknown

MOST = 20_000
"""Rows that a strategy which compares all rows with each other looks at; of more, a sample is drawn."""
FILTER = 4
"""`fass` looks at this many times the budget of uncertain rows."""
CLUSTERS = 500
"""Clusters of `typical`, at most; the number is that of its paper."""
BLOCK = 64
"""Rows whose gains `facility` computes at once."""
NEIGHBOURS = 20
"""Neighbours whose distance decides how typical a row is; the number is that of the paper."""
KAPPA = 0.99
"""Agreement of successive models from which on labels change little; the number is that of the paper."""

Strategy = Literal["random", "margin", "entropy", "k-center", "typical", "facility", "badge", "fass"]
BY_FEATURES: tuple[Strategy, ...] = ("random", "k-center", "typical", "facility")
"""The strategies that need no model."""
BY_MODEL: tuple[Strategy, ...] = ("margin", "entropy", "badge", "fass")
FEW = CLUSTERS
"""Up to so many labels, `typical` has a cluster for each; from then on a model knows enough to be asked."""
COLD: Strategy = "typical"
"""The default where there is no model, or fewer labels than FEW."""
WARM: Strategy = "margin"
"""The default later. Both were chosen on validation examples of CLINC150 (docs/results/active_choice.md)."""


def choose(
    budget: int, features: Tensor, probabilities: Tensor | None = None, labelled: Tensor | None = None, *,
    strategy: Strategy | None = None, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Rows (at most `budget`,) of what to label next, the most useful first.

    Args:
        budget: how many.
        features: (n, width) of the unlabelled examples, from a frozen encoder. Their lengths do not matter.
        probabilities: (n, classes) that the present model gives them; None where there is no model yet.
        labelled: (m, width) of what is labelled already, if anything is.
        strategy: the name of a function of this file; by default that of `default`.
        seed: of what is drawn.

    Raises:
        EverlearnError: an unknown strategy, one that needs a model where there is none, or a budget below 1.

    >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> choose(2, features, strategy="k-center").tolist()
    [1, 2]
    """
    strategy = strategy or default(probabilities is not None, 0 if labelled is None else len(labelled))
    check(strategy, budget, has_model=probabilities is not None)
    features = normalize(features.float(), dim=1)
    covered = features[:0] if labelled is None else normalize(labelled.float(), dim=1)
    if strategy == "random":
        return _shuffled(len(features), seed)[:budget]
    if strategy == "k-center":
        return k_center(features, covered, budget)
    if strategy == "typical":
        return typical(features, covered, budget, seed)
    if strategy == "facility":
        return facility(features, covered, budget, seed)
    assert probabilities is not None
    if strategy == "margin":
        return margin(probabilities, budget)
    if strategy == "entropy":
        return entropy(probabilities, budget)
    if strategy == "badge":
        return badge(features, probabilities, budget, seed)
    return fass(features, probabilities, budget)


def check(strategy: Strategy, budget: int, *, has_model: bool) -> None:
    """Raise an EverlearnError if nothing can be chosen so, before anything is computed.

    >>> check("k-center", 5, has_model=False)
    """
    if strategy not in (*BY_FEATURES, *BY_MODEL):
        raise unknown("strategy", strategy, [*BY_FEATURES, *BY_MODEL])
    if budget < 1:
        raise EverlearnError(f"a budget of {budget} labels chooses nothing: give at least 1")
    if strategy in BY_MODEL and not has_model:
        raise EverlearnError(f"the strategy {strategy} asks a model, and there is none yet: give one of "
                             + ", ".join(BY_FEATURES))  # fmt: skip


def default(has_model: bool, labelled: int) -> Strategy:
    """The strategy that did best on validation examples.

    Args:
        has_model: whether there are probabilities. labelled: how many labels there are.

    >>> default(False, 0), default(True, 600)
    ('typical', 'margin')
    """
    return WARM if has_model and labelled >= FEW else COLD


def margin(probabilities: Tensor, budget: int) -> Tensor:
    """The rows, of (n, classes), whose two likeliest classes are nearest to each other (Scheffer, Decomain & Wrobel,
    2001, https://doi.org/10.1007/3-540-44816-0_31).

    >>> margin(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]]), 2).tolist()
    [2, 1]
    """
    return _margins(probabilities).argsort(stable=True)[:budget]


def entropy(probabilities: Tensor, budget: int) -> Tensor:
    """The rows, of (n, classes), that are least certain as a whole (Shannon's entropy; Settles & Craven, 2008,
    https://aclanthology.org/D08-1112/).

    >>> entropy(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]]), 2).tolist()
    [2, 1]
    """
    return torch.special.entr(probabilities).sum(1).argsort(descending=True, stable=True)[:budget]


def k_center(features: Tensor, labelled: Tensor, budget: int) -> Tensor:
    """One after the other, the row that is farthest from all rows chosen before and from all that is labelled: the
    greedy core-set of Sener & Savarese (ICLR 2018, https://arxiv.org/abs/1708.00489). Where nothing is labelled, it
    begins with the row that is nearest to the mean.

    Args:
        features: (n, width) and labelled: (m, width), of length 1.

    >>> rows = torch.eye(3)[[0, 0, 1, 2]]
    >>> k_center(rows, rows[:1], 2).tolist()
    [2, 3]
    """
    if not len(features):
        return torch.empty(0, dtype=torch.long)
    # 1 - cosine is half of the squared distance, so the order is the same.
    far = 1 - _nearest(features, labelled, -torch.inf)
    chosen: list[int] = []
    for _ in range(min(budget, len(features))):
        is_first = not chosen and not len(labelled)
        row = int((features @ features.mean(0)).argmax() if is_first else far.argmax())
        chosen.append(row)
        far = torch.minimum(far, 1 - features @ features[row])
        far[chosen] = -torch.inf  # else it would be chosen again where all that is left are copies
    return torch.tensor(chosen)


def typical(features: Tensor, labelled: Tensor, budget: int, seed: int = 0) -> Tensor:
    """The most typical row of each cluster, clusters without a label and large ones first: TypiClust (Hacohen, Dekel &
    Weinshall, ICML 2022, https://arxiv.org/abs/2202.02794), which is made for few labels.

    The rows and what is labelled are cut into as many clusters as there will be labels (k-means). Typical is what is
    near to its 20 nearest neighbours in the cluster. A cluster may have a second turn when all others had one.

    Departures: as in the released code distances are squared, so on rows of length 1 the order is that of the mean
    cosine. A row counts among its own 20 neighbours. In a cluster of fewer rows all are neighbours, and in the released
    code half of them, which also leaves clusters of up to five rows out.

    >>> rows = torch.eye(2)[[0, 0, 0, 1, 1]]
    >>> typical(rows, rows[:0], 2).tolist()
    [0, 3]
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = _sample(len(features), seed)
    every = torch.cat([features[rows], labelled])
    if not len(rows):
        return rows
    count = min(len(labelled) + budget, CLUSTERS, len(every.unique(dim=0)))
    means = KMeans(count, n_init=1, max_iter=20, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # rows that hardly differ fill fewer clusters
        cluster = torch.from_numpy(means.fit_predict(every.numpy())).long()
    labels = cluster[len(rows) :].bincount(minlength=count).tolist()
    queue = []
    members: dict[int, list[int]] = {}
    for number in range(count):
        mine = (cluster[: len(rows)] == number).nonzero().flatten()
        if len(mine):
            near = features[rows[mine]] @ features[rows[mine]].T
            density = near.topk(min(NEIGHBOURS, len(mine)), dim=1).values.mean(1)
            members[number] = rows[mine[density.argsort(descending=True, stable=True)]].tolist()
            queue.append((labels[number], -len(mine), number))
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < budget:
        turns, size, number = heapq.heappop(queue)
        chosen.append(members[number].pop(0))
        if members[number]:
            heapq.heappush(queue, (turns + 1, size, number))
    return torch.tensor(chosen)


def facility(features: Tensor, labelled: Tensor, budget: int, seed: int = 0) -> Tensor:
    """One after the other, the row that brings all rows nearest to what is chosen or labelled: greedy facility location
    (Wei, Iyer & Bilmes, ICML 2015, https://proceedings.mlr.press/v37/wei15.html), maximising

        Σ over rows i of  max over chosen or labelled j of  cos(i, j).

    Every beginning of the order covers at least 1 - 1/e of what the best choice of its size covers.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [0.0, 1.0]])
    >>> facility(normalize(rows, dim=1), rows[:0], 2).tolist()
    [2, 0]
    """
    rows = _sample(len(features), seed)
    return rows[_facility(features[rows], features[rows], labelled, budget)]


def badge(features: Tensor, probabilities: Tensor, budget: int, seed: int = 0) -> Tensor:
    """Rows whose gradients would be large and different from each other: BADGE (Ash, Zhang, Krishnamurthy, Langford &
    Agarwal, ICLR 2020, https://arxiv.org/abs/1906.03671).

    The gradient of the last layer, at the label that the model guesses, is (p - guess) ⊗ feature. The rows are the
    centres that k-means++ draws of them. Products of gradients are products of the two parts, so no gradient is built.

    >>> features, probabilities = torch.eye(2)[[0, 0, 1]], torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.5, 0.5]])
    >>> badge(features, probabilities, 2).tolist()
    [2, 1]
    """
    error = probabilities.clone()
    error[torch.arange(len(error)), probabilities.argmax(1)] -= 1
    norms = error.square().sum(1) * features.square().sum(1)
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    far = norms.clone()
    for _ in range(min(budget, len(features))):
        if not chosen:
            row = int(norms.argmax())
        elif far.sum() > 0:
            row = int(torch.multinomial(far.double(), 1, generator=generator))
        else:  # what is left has no gradient of its own: the model is certain, or they are copies
            left = torch.ones(len(features)).index_fill(0, torch.tensor(chosen), 0)
            row = int(left.argmax())
        chosen.append(row)
        products = (error @ error[row]) * (features @ features[row])
        far = torch.minimum(far, (norms + norms[row] - 2 * products).clamp_min(0))
        far[chosen] = 0
    return torch.tensor(chosen, dtype=torch.long)


def fass(features: Tensor, probabilities: Tensor, budget: int) -> Tensor:
    """The rows with the smallest margins, four times the budget, and of them those that `facility` chooses: filtered
    active submodular selection (Wei, Iyer & Bilmes, ICML 2015, https://proceedings.mlr.press/v37/wei15.html). So they
    are uncertain, and not all of one kind.

    >>> features = torch.eye(3)[[0, 0, 1, 1, 2]]
    >>> certain = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.6, 0.4], [0.7, 0.3], [1.0, 0.0]])
    >>> fass(features, certain, 1).tolist(), fass(features, certain, 2).tolist()
    ([0], [0, 2])
    """
    rows = margin(probabilities, min(FILTER * budget, MOST))
    return rows[_facility(features[rows], features[rows], features[:0], budget)]


def expected_accuracy(probabilities: Tensor) -> float:
    """The share of (n, classes) probabilities' best classes that should be right: the mean of their probabilities. It
    is true as far as these are calibrated. Zhu, Wang & Hovy (COLING 2008, https://aclanthology.org/C08-1142/) stop
    when the expected error on what is unlabelled is low enough.

    >>> expected_accuracy(torch.tensor([[0.9, 0.1], [0.3, 0.7]]))
    0.8
    """
    return round(float(probabilities.double().max(1).values.mean()), 6)


def agreement(before: Sequence[str], after: Sequence[str]) -> float:
    """Cohen's kappa between the guesses of two models for the same examples: 1 where all agree, 0 for chance.

    Bloodgood & Vijay-Shanker (CoNLL 2009, https://aclanthology.org/W09-1107/) stop when the mean of the last three
    reaches 0.99 on examples that nobody labels (`is_stable`).

    >>> agreement(["a", "b", "a", "b"], ["a", "b", "a", "a"])
    0.5
    """
    from sklearn.metrics import cohen_kappa_score

    if list(before) == list(after):
        return 1.0  # also where there is one class, for which kappa is 0 / 0
    return float(cohen_kappa_score(list(before), list(after)))


def is_stable(agreements: Sequence[float]) -> bool:
    """Whether labelling may stop: the mean of the last three agreements of successive models is at least 0.99.

    >>> is_stable([0.9, 1.0, 1.0, 1.0]), is_stable([1.0, 1.0])
    (True, False)
    """
    return len(agreements) >= 3 and sum(agreements[-3:]) / 3 >= KAPPA - 1e-9


def _margins(probabilities: Tensor) -> Tensor:
    """(n,): by how much the likeliest class is likelier than the second; 1 where there is one class only."""
    if probabilities.shape[1] < 2:
        return torch.ones(len(probabilities))
    best = probabilities.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _facility(candidates: Tensor, covered: Tensor, labelled: Tensor, budget: int) -> Tensor:
    """Rows of the candidates, by the lazy greedy algorithm (Minoux, 1978): a gain only shrinks, so a row whose gain is
    still the largest after it was computed again is the best of all. A block of rows is computed at once."""
    best = _nearest(covered, labelled, 0.0)
    gains = [(covered @ part.T - best[:, None]).clamp_min_(0).sum(0) for part in candidates.split(512)]
    queue = [(-gain, row) for row, gain in enumerate(torch.cat(gains).tolist())] if gains else []
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < budget:
        block = [heapq.heappop(queue)[1] for _ in range(min(BLOCK, len(queue)))]
        near = covered @ candidates[block].T
        for row, gain in zip(block, (near - best[:, None]).clamp_min_(0).sum(0).tolist(), strict=True):
            heapq.heappush(queue, (-gain, row))
        if queue[0][1] in block:
            row = heapq.heappop(queue)[1]
            chosen.append(row)
            best = torch.maximum(best, near[:, block.index(row)])
    return torch.tensor(chosen, dtype=torch.long)


def _nearest(features: Tensor, labelled: Tensor, least: float) -> Tensor:
    """(n,): the cosine of each row to the nearest labelled one; `least` where nothing is labelled."""
    best = torch.full((len(features),), least)
    for part in labelled.split(1024) if len(labelled) else ():
        best = torch.maximum(best, (features @ part.T).max(1).values)
    return best


def _sample(count: int, seed: int) -> Tensor:
    """All rows in order, or a sorted sample of them where there are more than `MOST`."""
    return torch.arange(count) if count <= MOST else _shuffled(count, seed)[:MOST].sort().values


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
