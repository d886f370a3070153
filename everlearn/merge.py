"""Merging: plain functions that make one set of weights of several.

A set of weights is a dictionary of tensors by name: a state dict, the deltas of an insertion or the rows of a head. All
sets have the same names. A tensor may have more rows in one set than in another, as the head of a model that knows more
classes does: the classes that both know come first. A row that only one set has is taken as it is and never scaled.
Where classes stand in another order, `rows_by_class` puts them in order first; a value that is NaN is one that a set
does not have.

Averages of LoRA matrices are averages of A and of B, not of their products. To merge adapters inside of a model of
`peft`, its own `add_weighted_adapter` is the place; its results are those of `ties` and `dare` here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from everlearn.errors import EverlearnError

Weights = Mapping[str, Tensor]
"""Tensors by name."""


def average(models: Sequence[Weights], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Σ w θ / Σ w, in each place over the models that have a value there. Wortsman et al., Model soups, ICML 2022,
    https://arxiv.org/abs/2203.05482

    Args:
        models: k sets of weights.
        weights: k numbers of at least 0; equal by default. Only their ratio matters.

    Raises:
        EverlearnError: the models have other names or shapes than each other, or the weights do not fit them.

    >>> one, two = {"head": torch.tensor([1.0])}, {"head": torch.tensor([3.0, 8.0])}
    >>> average([one, two])["head"].tolist()
    [2.0, 8.0]
    """
    return fisher_average(models, [dict.fromkeys(model, torch.ones(())) for model in models], weights)


def fisher_average(
    models: Sequence[Weights], fishers: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Σ w F θ / Σ w F, in each place over the models that have a value there: a weight that matters to one model alone
    keeps that model's value. Matena & Raffel, NeurIPS 2022, https://arxiv.org/abs/2111.09832

    Where every F is 0, so that no model cares, the result is the plain average.

    Args:
        models: k sets of weights.
        fishers: their diagonal Fisher information, tensors of the same names and shapes, at least 0.
        weights: k numbers of at least 0; equal by default.

    Raises:
        EverlearnError: as for `average`, or the Fisher information is not that of these models.

    >>> models = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}]
    >>> fishers = [{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}]
    >>> fisher_average(models, fishers)["w"].tolist()
    [0.25, 0.5]
    """
    factors, by_name = _checked(weights, len(models)), _by_name(models)
    if len(fishers) != len(models) or any(name not in fisher for fisher in fishers for name in models[0]):
        raise EverlearnError("merge: the Fisher information is not that of these models: give one dictionary for each "
                             "model, with the same names")  # fmt: skip
    merged = {}
    for name, tensors in by_name.items():
        values = _stacked(tensors)
        known = ~values.isnan()
        plain = _beside(factors, values) * known
        share = plain * torch.stack([_rows(fisher[name], values.shape[1:]) for fisher in fishers]).to(values)
        for fallback in (plain, known.to(values)):
            share = torch.where(share.sum(0) > 0, share, fallback)
        # Divided first: the share of a row's only owner is exactly 1, so that its bits stay as they are.
        share = share / share.sum(0)
        merged[name] = (share * values.masked_fill(~known, 0)).sum(0).to(tensors[0].dtype)
    return merged


@torch.no_grad()
def ema_step(averaged: Mapping[str, Tensor], model: Weights, decay: float) -> None:
    """averaged ← decay · averaged + (1 - decay) · model, in place: one step of an exponential moving average (Polyak &
    Juditsky, 1992, https://doi.org/10.1137/0330046, average the weights of all steps equally).

    After n steps the start still weighs decay**n: of 0.9999, 90 % after 1,000 steps.

    Args:
        averaged, model: two sets of weights of the same shapes.
        decay: between 0, where the average is the model, and 1, where it never moves.

    >>> slow = {"w": torch.tensor([0.0])}
    >>> for _ in range(2):
    ...     ema_step(slow, {"w": torch.tensor([1.0])}, decay=0.5)
    >>> slow["w"].tolist()
    [0.75]
    """
    for name, tensor in averaged.items():
        tensor.lerp_(model[name].to(tensor), 1 - decay)


def interpolate(old: Weights, new: Weights, weight: float) -> dict[str, Tensor]:
    """(1 - weight) · old + weight · new. Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022,
    https://arxiv.org/abs/2109.01903

    Args:
        old, new: two sets of weights. weight: of the new one, between 0 and 1.

    Raises:
        EverlearnError: as for `average`.

    >>> interpolate({"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0, 7.0])}, 0.25)["w"].tolist()
    [2.0, 7.0]
    """
    return average([old, new], [1 - weight, weight])


def largest_weight(score: Callable[[float], float], target: float, steps: int = 10) -> float:
    """The largest weight of a new model at which the old data still score as much as they should. Choose it on
    validation examples of the old data, never on test examples.

    Args:
        score: gives the score of `interpolate` at a weight.
        target: the least score.
        steps: the weights 1, 1 - 1/steps, …, 1/steps are tried.

    Returns:
        The weight; 0, the old model, where none reaches the target.

    >>> largest_weight(lambda weight: 0.9 - 0.2 * weight, target=0.8)
    0.5
    """
    weights = (step / steps for step in range(steps, 0, -1))
    return next((weight for weight in weights if score(weight) >= target), 0.0)


def task_vector(model: Weights, base: Weights) -> dict[str, Tensor]:
    """model - base: what training has changed. Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023,
    https://arxiv.org/abs/2212.04089

    Raises:
        EverlearnError: the two have other names or shapes.

    >>> task_vector({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})["w"].tolist()
    [2.0]
    """
    return {name: after - before for name, (after, before) in _by_name([model, base], one_shape=True).items()}


def add(base: Weights, vector: Weights, scale: float = 1.0) -> dict[str, Tensor]:
    """base + scale · vector: the way back from a task vector.

    Raises:
        EverlearnError: the two have other names or shapes.

    >>> add({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}, scale=0.5)["w"].tolist()
    [2.0]
    """
    pairs = _by_name([base, vector], one_shape=True)
    return {name: before + scale * change for name, (before, change) in pairs.items()}


def ties(
    vectors: Sequence[Weights], *, density: float = 0.2, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """TIES-Merging: Resolving Interference When Merging Models. Yadav, Tam, Choshen, Raffel & Bansal, NeurIPS 2023,
    https://arxiv.org/abs/2306.01708

    Of each task vector the largest entries are kept (trim); in each place the sign of their sum is taken (elect); the
    result is the mean of the entries that have this sign (disjoint mean), and 0 where the sum is 0. (`peft` trims each
    tensor by itself, and takes + where the sum is 0.)

    Args:
        vectors: k task vectors.
        density: share of the entries of a whole vector that are kept, between 0 and 1.
        weights: k numbers of at least 0, in the sum and in the mean; equal by default, as published.

    Returns:
        A task vector, to be added to the base with a scale that the paper chooses on validation data (about 1).

    Raises:
        EverlearnError: as for `average`, or the density is not between 0 and 1.

    >>> one, two = {"w": torch.tensor([4.0, 1.0, 0.1])}, {"w": torch.tensor([2.0, -3.0, 0.1])}
    >>> ties([one, two], density=2 / 3)["w"].tolist()
    [3.0, -3.0, 0.0]
    """
    factors = _checked(weights, len(vectors))
    merged = {}
    for name, tensors in _by_name([trimmed(vector, density) for vector in vectors], one_shape=True).items():
        values = _stacked(tensors)
        weight = _beside(factors, values)
        elected = (weight * values).sum(0).sign()
        weight = weight * (values.sign() == elected) * (elected != 0)
        total = weight.sum(0)
        mean = (weight * values).sum(0) / total.where(total > 0, torch.ones_like(total))
        merged[name] = mean.to(tensors[0].dtype)
    return merged


def trimmed(vector: Weights, density: float) -> dict[str, Tensor]:
    """The task vector with only its largest entries, by absolute value; the others are 0.

    Args:
        density: share of the entries that are kept, of all tensors together.

    Raises:
        EverlearnError: it is not between 0 and 1.

    >>> trimmed({"a": torch.tensor([1.0, -9.0]), "b": torch.tensor([5.0, 2.0])}, 0.5)
    {'a': tensor([ 0., -9.]), 'b': tensor([5., 0.])}
    """
    _check_share("density", density)
    flat = torch.cat([tensor.flatten() for tensor in vector.values()])
    rows = flat.abs().topk(int(density * len(flat)), sorted=False).indices
    parts = torch.zeros_like(flat).index_copy(0, rows, flat[rows]).split([t.numel() for t in vector.values()])
    return {name: part.view_as(tensor) for (name, tensor), part in zip(vector.items(), parts, strict=True)}


def dare(vector: Weights, *, drop: float = 0.9, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch. Yu, Yu, Yu, Huang &
    Li, ICML 2024, https://arxiv.org/abs/2311.03099

    Drop each entry with the probability `drop` and divide the others by 1 - drop, so that the expected vector stays as
    it is and several vectors rarely meet in one place. The results are averaged or merged by `ties`.

    Args:
        vector: a task vector. drop: at least 0 and below 1. generator: of the draws.

    Raises:
        EverlearnError: `drop` is out of its range.

    >>> kept = dare({"w": torch.ones(1000)}, drop=0.75, generator=torch.Generator().manual_seed(0))["w"]
    >>> kept.unique().tolist(), 0.9 < kept.mean() < 1.1
    ([0.0, 4.0], tensor(True))
    """
    _check_share("drop", drop)
    if drop == 1:
        raise EverlearnError("merge: drop=1 would leave nothing: give a number below 1")
    keep = 1 - drop
    return {name: tensor * torch.bernoulli(torch.full_like(tensor, keep), generator=generator) / keep
            for name, tensor in vector.items()}  # fmt: skip


def rows_by_class(rows: Tensor, names: Sequence[str], all_names: Sequence[str]) -> Tensor:
    """The rows (classes, …) of a head in the order of `all_names`, NaN where it has no such class.

    >>> rows_by_class(torch.tensor([1.0, 2.0]), ["tea", "sofa"], ["sofa", "lamp", "tea"]).tolist()
    [2.0, nan, 1.0]
    """
    ordered = rows.new_full((len(all_names), *rows.shape[1:]), math.nan)
    places = {name: place for place, name in enumerate(all_names)}
    ordered[torch.tensor([places[name] for name in names], dtype=torch.long, device=rows.device)] = rows
    return ordered


def _by_name(models: Sequence[Weights], one_shape: bool = False) -> dict[str, list[Tensor]]:
    """The tensors of each name, one of each model; only their numbers of rows may differ, and not in `one_shape`."""
    for model in models[1:]:
        if differing := sorted(model.keys() ^ models[0].keys()):
            raise EverlearnError(f"merge: only some of the models have {differing[0]}: merge models of one kind")
    tensors = {name: [model[name] for model in models] for name in models[0]}
    for name, several in tensors.items():
        if len({tensor.shape if one_shape else (tensor.dim(), tensor.shape[1:]) for tensor in several}) > 1:
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in several)
            raise EverlearnError(f"merge: {name} has the shapes {shapes}: merge models of one kind")
        if not all(tensor.is_floating_point() for tensor in several):
            raise EverlearnError(f"merge: {name} holds whole numbers, which have no average: leave it out")
    return tensors


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(k, …) of at least float32; NaN in the rows that a tensor does not have."""
    longest = max((tensor.shape for tensor in tensors), key=lambda shape: shape[:1])
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack([_rows(tensor.detach().to(dtype), longest, math.nan) for tensor in tensors])


def _rows(tensor: Tensor, shape: Sequence[int], fill: float = 0.0) -> Tensor:
    """The tensor with as many rows as `shape` says; a single number stands for all places."""
    if tensor.dim() == 0:
        return tensor.expand(shape)
    return pad(tensor, [0, 0] * (tensor.dim() - 1) + [0, shape[0] - len(tensor)], value=fill)


def _beside(factors: Tensor, values: Tensor) -> Tensor:
    """The k factors, in a shape that multiplies (k, …) values."""
    return factors.to(values).view(-1, *[1] * (values.dim() - 1))


def _checked(weights: Sequence[float] | None, models: int) -> Tensor:
    given = [1.0] * models if weights is None else list(weights)
    if len(given) != models or not all(0 <= w < math.inf for w in given) or sum(given) <= 0:
        raise EverlearnError(f"merge: the weights {given} do not fit {models} models: give one number of at least 0 "
                             "for each, and not only zeros")  # fmt: skip
    return torch.tensor(given, dtype=torch.float64)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise EverlearnError(f"merge: {name}={value} is not between 0 and 1")
