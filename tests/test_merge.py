"""Merging equals what its papers define, and what peft computes."""

from __future__ import annotations

import pytest
import torch

from everlearn.errors import EverlearnError
from everlearn.merge import (
    add,
    average,
    dare,
    ema_step,
    fisher_average,
    interpolate,
    rows_by_class,
    task_vector,
    ties,
    trimmed,
)


def random_models(count: int = 3, rows: tuple[int, ...] = (4, 4, 4)) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [{"encoder": torch.randn(5, 3, generator=draw), "head": torch.randn(rows[k], 3, generator=draw)}
            for k in range(count)]  # fmt: skip


def test_equal_fisher_is_the_plain_average_and_lonely_rows_keep_their_bits() -> None:
    models = random_models(rows=(2, 4, 6))
    fishers = [{name: torch.full_like(tensor, 0.3) for name, tensor in model.items()} for model in models]
    plain, weighed = average(models, [1, 2, 3]), fisher_average(models, fishers, [1, 2, 3])
    for name in plain:
        torch.testing.assert_close(weighed[name], plain[name])
    expected = (models[0]["encoder"] + 2 * models[1]["encoder"] + 3 * models[2]["encoder"]) / 6
    torch.testing.assert_close(plain["encoder"], expected)
    pair = (2 * models[1]["head"][2:4] + 3 * models[2]["head"][2:4]) / 5  # the first model has no such rows
    torch.testing.assert_close(plain["head"][2:4], pair)
    for merged in (plain, weighed, fisher_average(models, random_models(rows=(2, 4, 6)))):
        assert torch.equal(merged["head"][4:], models[2]["head"][4:])


def test_fisher_decides_in_each_place() -> None:
    models = [{"w": torch.tensor([0.0, 0.0, 2.0])}, {"w": torch.tensor([4.0, 4.0, 4.0])}]
    fishers = [{"w": torch.tensor([1.0, 0.0, 0.0])}, {"w": torch.tensor([3.0, 1e-30, 0.0])}]
    assert fisher_average(models, fishers)["w"].tolist() == [3.0, 4.0, 3.0]
    assert fisher_average(models, fishers, [3, 1])["w"].tolist() == [2.0, 4.0, 2.5]


def test_models_in_low_precision_are_averaged_in_a_higher_one() -> None:
    models = [{"w": torch.tensor([1.0]).bfloat16()}] * 300  # a sum in bfloat16 stops at 256
    merged = average(models)["w"]
    assert merged.dtype == torch.bfloat16 and merged.item() == 1.0


def test_ema_is_its_closed_form() -> None:
    states = [model["encoder"] for model in random_models()]
    slow = {"encoder": states[0].clone()}
    for state in states:
        ema_step(slow, {"encoder": state}, decay=0.9)
    closed = 0.9**3 * states[0] + sum(0.1 * 0.9 ** (2 - k) * state for k, state in enumerate(states))
    torch.testing.assert_close(slow["encoder"], closed)


def test_interpolation_is_a_weighted_average() -> None:
    old, new = random_models(2, rows=(3, 5))
    for weight in (0.0, 0.3, 1.0):
        mixed = interpolate(old, new, weight)
        torch.testing.assert_close(mixed["encoder"], (1 - weight) * old["encoder"] + weight * new["encoder"])
        assert torch.equal(mixed["head"][3:], new["head"][3:])
    assert torch.equal(interpolate(old, new, 1.0)["head"], new["head"])
    assert torch.equal(interpolate(new, old, 0.0)["head"], new["head"])


def test_a_task_vector_leads_back() -> None:
    base, model = random_models(2)
    torch.testing.assert_close(add(base, task_vector(model, base)), model)


def test_ties_of_a_case_by_hand() -> None:
    #                 both +  elected -  only one  elected +  sum 0
    one = torch.tensor([3.0, 1.0, 0.0, 5.0, 2.0, 0.1])
    two = torch.tensor([1.0, -4.0, 6.0, -2.0, -2.0, 0.1])
    three = torch.tensor([2.0, -2.0, 0.0, 1.0, 0.0, 0.1])
    vectors = [{"w": vector} for vector in (one, two, three)]
    assert ties(vectors, density=5 / 6)["w"].tolist() == pytest.approx([2.0, -3.0, 6.0, 3.0, 0.0, 0.1])
    weighted = ties(vectors, density=5 / 6, weights=[9, 1, 1])["w"]
    assert weighted[:2].tolist() == pytest.approx([30 / 11, 1.0]) and float(weighted[4]) == 2.0


def test_trimming_ranks_the_whole_vector_and_not_each_tensor() -> None:
    vector = {"large": torch.tensor([9.0, -8.0]), "small": torch.tensor([0.1, 0.2, 0.3, -0.4])}
    kept = trimmed(vector, 0.5)
    assert kept["large"].tolist() == [9.0, -8.0] and kept["small"].tolist() == pytest.approx([0, 0, 0, -0.4])
    assert not any(tensor.any() for tensor in trimmed(vector, 0.0).values())


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_and_dare_are_those_of_peft(density: float) -> None:
    theirs = pytest.importorskip("peft.utils.merge_utils")
    vectors = [model["encoder"] for model in random_models()]
    mine = ties([{"w": vector} for vector in vectors], density=density)["w"]
    torch.testing.assert_close(mine, theirs.ties(vectors, torch.ones(3), density=density))
    weights = torch.tensor([0.5, 0.3, 0.2])
    torch.manual_seed(7)
    expected = theirs.dare_linear(vectors, weights, density=density)
    draw = torch.Generator().manual_seed(7)
    dropped = [dare({"w": vector}, drop=1 - density, generator=draw) for vector in vectors]
    torch.testing.assert_close(average(dropped, weights.tolist())["w"], expected)
    torch.manual_seed(7)
    draw.manual_seed(7)
    dropped = [dare({"w": vector}, drop=1 - density, generator=draw) for vector in vectors]
    expected = theirs.dare_ties(vectors, torch.ones(3), density=density)
    torch.testing.assert_close(ties(dropped, density=1.0)["w"], expected)


def test_heads_with_other_orders_of_classes() -> None:
    one, two = torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0], [20.0]])
    names = ["tea", "sofa", "lamp"]
    heads = [{"head": rows_by_class(one, ["tea", "sofa"], names)}, {"head": rows_by_class(two, ["lamp", "tea"], names)}]
    assert average(heads)["head"].flatten().tolist() == [10.5, 2.0, 10.0]


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (lambda a, b: average([a, {"encoder": a["encoder"]}]), "only some of the models have head"),
        (lambda a, b: average([a, {**b, "head": torch.ones(4, 2)}]), r"head has the shapes \(4, 3\) and \(4, 2\)"),
        (lambda a, b: average([{"n": torch.tensor([1])}] * 2), "whole numbers"),
        (lambda a, b: average([a, b], [1.0]), "do not fit 2 models"),
        (lambda a, b: average([a, b], [1.0, -1.0]), "at least 0"),
        (lambda a, b: average([a, b], [0.0, 0.0]), "not only zeros"),
        (lambda a, b: task_vector(a, {**b, "head": b["head"][:2]}), "merge models of one kind"),
        (lambda a, b: ties([a, b], density=1.5), "not between 0 and 1"),
        (lambda a, b: dare(a, drop=1.0), "below 1"),
        (lambda a, b: fisher_average([a, b], [a]), "one dictionary for each model"),
        (lambda a, b: fisher_average([a, b], [a, {"head": b["head"]}]), "one dictionary for each model"),
    ],
)
def test_what_cannot_be_merged_is_refused(merge, message: str) -> None:
    with pytest.raises(EverlearnError, match=message):
        merge(*random_models(2))
