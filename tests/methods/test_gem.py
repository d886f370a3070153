"""A-GEM and GEM: the projection, against an independent solver, and which gradients it is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from everlearn import backbones, methods
from everlearn.engine import learn
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.optimizer_step import OptimizerStep
from everlearn.projection import TABLE, compact, products, project
from everlearn.streams.stream import Examples
from everlearn.testing import toy_stream

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 1e-3}
MEMORY: dict[str, Any] = {"memory_size": 30, "replay_batch_size": 8}
STREAM = toy_stream()


def drawn(others: int, seed: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=generator, dtype=torch.float64),
            torch.randn(others, size, generator=generator, dtype=torch.float64))  # fmt: skip


def projected(gradient: Tensor, others: Tensor, margin: float = 0.0) -> Tensor:
    """The same, with the gradient in two tensors of other shapes."""
    parts = [part.clone() for part in (gradient[:4].view(2, 2), gradient[4:])]
    project(parts, [[row[:4].view(2, 2), row[4:]] for row in others], margin)
    return torch.cat([part.flatten() for part in parts])


# -- the projection ------------------------------------------------------------------------------
@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("others", [1, 3, 8, 11])
def test_the_projected_gradient_agrees_with_all_others(others: int, margin: float) -> None:
    changed = 0
    for seed in range(40):
        gradient, rows = drawn(others, seed)
        found = projected(gradient, rows, margin)
        assert (rows @ found).min() > -1e-9
        changed += not torch.equal(found, gradient)
    assert changed > 10


def nearest(gradient: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """By a general solver of constrained problems."""
    agree = {"type": "ineq", "fun": lambda z: rows @ z, "jac": lambda z: rows}
    return minimize(lambda z: 0.5 * np.square(z - gradient).sum(), np.zeros(len(gradient)), jac=lambda z: z - gradient,
                    constraints=agree, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500}).x  # fmt: skip


@pytest.mark.parametrize("others", [1, 2, 4])
def test_it_is_the_nearest_such_gradient(others: int) -> None:
    for seed in range(15):
        gradient, rows = drawn(others, seed)
        expected = nearest(gradient.numpy(), rows.numpy())
        np.testing.assert_allclose(projected(gradient, rows).numpy(), expected, atol=1e-5)


def test_others_that_repeat_or_vanish_or_are_tiny_do_no_harm() -> None:
    gradient, rows = drawn(3, seed=2)
    rows[0] = -gradient
    expected = projected(gradient, rows)
    odd = torch.cat([rows, rows[:1], torch.zeros_like(rows[:1]), 3 * rows[1:2]])
    torch.testing.assert_close(projected(gradient, odd), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(projected(1e-8 * gradient, rows), 1e-8 * expected, atol=1e-16, rtol=0)
    torch.testing.assert_close(projected(gradient, torch.tensor([[1.0], [1e-9], [1e6]]) * rows), expected)


def test_one_other_gives_the_formula_of_a_gem() -> None:
    for seed in range(20):
        gradient, (other,) = drawn(1, seed)
        expected = gradient - min(float(gradient @ other), 0.0) / (other @ other) * other
        torch.testing.assert_close(projected(gradient, other[None]), expected)


def test_the_margin_is_the_least_weight_of_each_other_and_counts_only_where_one_is_opposed() -> None:
    gradient, rows = drawn(3, seed=1)
    agreeing = rows * (rows @ gradient).sign()[:, None]
    assert torch.equal(projected(gradient, agreeing, margin=0.5), gradient)
    opposed = agreeing * torch.tensor([-1.0, 1.0, 1.0])[:, None]
    moved = projected(gradient, opposed, margin=0.5) - gradient
    weights = torch.linalg.lstsq(opposed.T, moved).solution
    torch.testing.assert_close(opposed.T @ weights, moved)
    assert weights.min() > 0.5 - 1e-9


def test_the_products_are_those_of_the_whole_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [[torch.randn(300, 500, generator=generator), torch.randn(7, generator=generator)] for _ in range(4)]
    whole = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients]).double()
    np.testing.assert_allclose(products(gradients), (whole @ whole.T).numpy(), rtol=1e-4, atol=0.05)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(EverlearnError, match="not finite: lower the learning rate"):
        project([torch.ones(2)], [[torch.tensor([1.0, torch.nan])]])


@pytest.mark.parametrize("is_last_full", [False, True])
def test_of_a_table_of_words_only_the_rows_of_a_batch_are_kept_and_the_result_is_the_same(is_last_full: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def gradient(words: int) -> list[Tensor]:
        table = torch.zeros(TABLE, 3)
        rows = torch.randperm(TABLE, generator=generator)[:words]
        table[rows] = torch.randn(words, 3, generator=generator)
        return [table, torch.randn(7, generator=generator)]

    mine, others = gradient(50), [gradient(words) for words in (0, 60, 80, TABLE if is_last_full else 40)]
    before, expected = mine[1].clone(), [part.clone() for part in mine]
    project(expected, others, margin=0.3)
    assert not torch.equal(expected[1], before)
    kept = [[compact(part) for part in other] for other in others]
    assert [table.is_sparse for table, _ in kept] == [True, True, True, not is_last_full]
    project(mine, kept, margin=0.3)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [1e-40, -1e-40, torch.nan])
def test_no_row_that_holds_anything_is_left_out(value: float) -> None:
    table = torch.zeros(TABLE, 2)
    table[3, 1] = value
    assert compact(table).indices().tolist() == [[3]]
    torch.testing.assert_close(compact(table).to_dense(), table, equal_nan=True, atol=0, rtol=0)


# -- the methods ---------------------------------------------------------------------------------
def built(name: str, **settings: Any) -> Method:
    return methods.get(name)(backbones.load("tiny"), **{**SMALL, **settings})


def begun(name: str, tasks: int, goal: str = "classes", **settings: Any) -> tuple[Any, Any, OptimizerStep]:
    """A method that has learned some tasks and begun the next one, a batch of that, and an optimizer."""
    stream = toy_stream(goal=goal, kind="class-incremental" if goal == "classes" else "domain-incremental")
    method = built(name, **{**MEMORY, **settings})
    for task in stream.tasks[:tasks]:
        learn(method, task)
    method.begin_task(stream[tasks].sealed())
    return method, stream[tasks].train[range(8)], OptimizerStep(torch.optim.AdamW, method.param_groups(), 1e-3, None)


def flat(gradients: Any) -> Tensor:
    return torch.cat([torch.zeros(0) if g is None else g.flatten() for g in gradients]).double()


def contradicting(examples: Examples) -> Examples:
    """The same inputs as examples of a new class, or with each other's documents."""
    if examples.positives is None:
        return replace(examples, labels=torch.full_like(examples.labels, 4))
    return replace(examples, positives=examples.positives[::-1])


@pytest.mark.parametrize("goal", ["classes", "ranking"])
@pytest.mark.parametrize(("name", "constraints"), [("a_gem", 1), ("gem", 2)])
def test_a_step_opposes_the_gradient_of_no_old_loss(name: str, constraints: int, goal: str) -> None:
    method, _, optimizer_step = begun(name, tasks=2, goal=goal)
    batch, draws = contradicting(method.memory.examples()), int(method.memory.draws)
    trained = list(method.trained().values())
    old = [flat(torch.autograd.grad(loss, trained, allow_unused=True)) for loss in method.old_losses(batch)]
    own = flat(torch.autograd.grad(method.losses(batch).mean(), trained, allow_unused=True))
    method.memory.draws.fill_(draws)
    method.step(batch, optimizer_step)
    found = flat(parameter.grad for parameter in trained)
    assert len(old) == constraints
    lengths = [float(own.norm() * g.norm()) for g in old]
    assert min(float(g @ own) / length for g, length in zip(old, lengths, strict=True)) < -0.01
    assert min(float(g @ found) / length for g, length in zip(old, lengths, strict=True)) > -1e-5


def test_gem_has_a_constraint_for_each_earlier_task_from_its_own_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch, _ = begun("gem", tasks=2, memory_size=200)
    asked = []
    monkeypatch.setattr(method, "losses", lambda old: asked.append(old) or torch.zeros(len(old)))
    list(method.old_losses(batch))
    assert [sorted(set(old.labels.tolist())) for old in asked] == [[0, 1], [2, 3]]
    assert [len(old) for old in asked] == [8, 8]


def test_gem_of_one_earlier_task_and_no_margin_is_a_gem() -> None:
    stream = toy_stream(tasks=2)
    both = []
    for name in ("a_gem", "gem"):
        # All of the memory is drawn, so that the order of the draws is all that differs.
        method = built(name, memory_size=30, replay_batch_size=30, **({"margin": 0.0} if name == "gem" else {}))
        for task in stream:
            learn(method, task)
        both.append(torch.cat([parameter.detach().flatten() for parameter in method.parameters()]))
    assert torch.equal(*both)
    plain = built("finetune")
    for task in stream:
        learn(plain, task)
    assert not torch.allclose(both[0], torch.cat([p.detach().flatten() for p in plain.parameters()]))


@pytest.mark.parametrize("name", ["a_gem", "gem"])
def test_where_nothing_is_opposed_the_step_is_that_of_finetune(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, plain = built(name, **MEMORY), built("finetune")
    # The loss of the batch itself stands for that of old examples: its gradient is never opposed.
    monkeypatch.setattr(type(method), "old_losses", lambda self, batch: iter([self.losses(batch).mean()]))
    for task in STREAM:
        learn(method, task)
        learn(plain, task)
    own = dict(method.named_parameters())
    assert all(torch.equal(parameter, own[key]) for key, parameter in plain.named_parameters())


@pytest.mark.parametrize("name", ["a_gem", "gem"])
def test_without_memory_it_is_finetune(name: str) -> None:
    method, plain = built(name, memory_size=0), built("finetune")
    for task in STREAM.tasks[:2]:
        learn(method, task)
        learn(plain, task)
    own = dict(method.named_parameters())
    assert all(torch.equal(parameter, own[key]) for key, parameter in plain.named_parameters())


def test_old_examples_lose_less_than_with_finetune() -> None:
    stream = toy_stream(tasks=2)

    def loss_of_first_task(name: str, **settings: Any) -> float:
        method = built(name, epochs=4, **settings)
        for task in stream:
            learn(method, task)
        with torch.no_grad():
            return float(method.losses(stream[0].train).mean())

    free = loss_of_first_task("finetune")
    assert loss_of_first_task("a_gem", **MEMORY) < free
    assert loss_of_first_task("gem", **MEMORY) < free


def test_the_gradient_is_changed_before_it_is_clipped() -> None:
    method, batch, _ = begun("a_gem", tasks=2)
    gradients = []
    for clip in (None, 1e-3):
        method.memory.draws.fill_(7)
        still = OptimizerStep(torch.optim.SGD, method.param_groups(), 1e-3, clip)
        for group in still.optimizer.param_groups:
            group["lr"] = 0.0
        method.step(batch, still)
        gradients.append(flat(parameter.grad for parameter in method.trained().values()))
    torch.testing.assert_close(gradients[1], gradients[0] * 1e-3 / gradients[0].norm(), rtol=1e-3, atol=1e-9)


def test_memory_of_gem_remembers_the_task_of_each_example() -> None:
    method, _, _ = begun("gem", tasks=2, memory_size=200)
    held = method.memory.examples()
    assert held.columns["origin"].tolist() == [label // 2 for label in held.labels.tolist()]
