"""Maximally interfered retrieval: which old examples are replayed, and what the virtual step leaves behind."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from everlearn import backbones
from everlearn.engine import learn
from everlearn.methods import MIR
from everlearn.optimizer_step import OptimizerStep
from everlearn.streams import Examples
from everlearn.testing.toy import toy_stream

SMALL = {"epochs": 4, "batch_size": 8, "lr": 1e-3, "memory_size": 40, "replay_batch_size": 6, "candidates": 24}


def learned(goal: str = "classes", **settings: object) -> tuple[MIR, OptimizerStep, Examples]:
    """A model that has learned one task and begun another, an optimizer that has made steps, and a new batch."""
    stream = toy_stream(goal=goal)
    method = MIR(backbones.load("tiny"), **{**SMALL, **settings})  # type: ignore[arg-type]
    learn(method, stream[0])
    method.begin_task(stream[1])
    batch = stream[1].train[range(8)]
    optimizer_step = OptimizerStep(torch.optim.AdamW, method.param_groups(), method.lr, None)
    for _ in range(2):
        method.step(batch, optimizer_step)
    return method, optimizer_step, batch


def everything(method: MIR, optimizer_step: OptimizerStep) -> list[Tensor]:
    states = optimizer_step.optimizer.state
    return [tensor.clone() for parameter in method.parameters() if parameter.grad is not None
            for tensor in (parameter, parameter.grad, *states[parameter].values())]  # fmt: skip


def test_the_virtual_step_is_the_one_that_follows_and_leaves_nothing_behind() -> None:
    method, optimizer_step, batch = learned()
    optimizer_step.backward(method.losses(batch).mean())
    before, random = everything(method, optimizer_step), torch.get_rng_state()
    with optimizer_step.ahead():
        ahead = [parameter.detach().clone() for parameter in method.trained().values()]
    assert all(map(torch.equal, before, everything(method, optimizer_step)))
    assert torch.equal(random, torch.get_rng_state())
    optimizer_step.apply()
    assert all(map(torch.equal, ahead, method.trained().values()))
    assert not torch.equal(before[0], everything(method, optimizer_step)[0])


@pytest.mark.parametrize("goal", ["classes", "ranking"])
def test_those_are_replayed_whose_loss_the_step_raises_most(goal: str) -> None:
    method, optimizer_step, batch = learned(goal)
    optimizer_step.backward(method.losses(batch).mean())
    draws = int(method.memory.draws)
    chosen = method.most_interfered(optimizer_step)
    method.memory.draws.fill_(draws)
    candidates = method.memory.sample(24)
    with torch.no_grad():
        before = method.losses(candidates)
        optimizer_step.apply()
        raised = method.losses(candidates) - before
    expected = raised.argsort(descending=True)[:6].tolist()
    assert set(chosen.ids) == {candidates.ids[row] for row in expected}
    assert raised.max() > 1e-4


def test_without_a_step_all_are_raised_by_nothing_and_chance_decides() -> None:
    method, optimizer_step, batch = learned()
    for group in optimizer_step.optimizer.param_groups:
        group["lr"] = 0.0
    counts: Counter[str] = Counter()
    optimizer_step.backward(method.losses(batch).mean())
    candidates = method.memory.sample(24)
    before = method._losses_of(candidates)
    with optimizer_step.ahead():
        assert torch.equal(method._losses_of(candidates), before)
    for _ in range(400):
        counts.update(method.most_interfered(optimizer_step).ids)
    draws, share = 400 * 6, 1 / len(method.memory)
    deviation = (draws * share * (1 - share)) ** 0.5
    assert len(counts) == len(method.memory)
    assert all(abs(count - draws * share) < 5 * deviation for count in counts.values())


def test_the_best_loss_is_that_when_the_example_was_stored() -> None:
    method, optimizer_step, batch = learned(score="from best")
    stored = method.memory.examples()
    assert stored.columns["loss"].shape == (len(stored),)
    optimizer_step.backward(method.losses(batch).mean())
    draws = int(method.memory.draws)
    chosen = method.most_interfered(optimizer_step)
    method.memory.draws.fill_(draws)
    candidates = method.memory.sample(24)
    before = method._losses_of(candidates).minimum(candidates.columns["loss"])
    with optimizer_step.ahead():
        score = method._losses_of(candidates) - before
    assert set(chosen.ids) == {candidates.ids[row] for row in score.argsort(descending=True)[:6].tolist()}


def test_a_step_is_that_of_the_sum_of_both_losses() -> None:
    method, optimizer_step, batch = learned(candidates=6)  # all candidates are replayed: as er with the same draw
    draws = int(method.memory.draws)
    old = method.memory.sample(6)
    method.memory.draws.fill_(draws)
    expected = torch.autograd.grad(method.losses(batch).mean() + method.losses(old).mean(),
                                   list(method.trained().values()), allow_unused=True)  # fmt: skip
    loss = method.step(batch, optimizer_step)
    assert loss.isfinite()
    for parameter, gradient in zip(method.trained().values(), expected, strict=True):
        if gradient is not None:
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)  # type: ignore[arg-type]
