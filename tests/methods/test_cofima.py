"""What CoFiMA claims and the contract cannot know."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from everlearn import backbones, methods
from everlearn.checkpoint import method_state
from everlearn.engine import learn
from everlearn.method import Method
from everlearn.methods.cofima import CoFiMA
from everlearn.streams.stream import Task
from everlearn.testing import toy_stream

SMALL = {"epochs": 2, "batch_size": 8, "lr": 1e-4, "head_lr": 0.1, "samples": 8, "fisher_examples": 6}
Weights = dict[str, torch.Tensor]


def built(**settings) -> Method:
    return methods.get("cofima")(backbones.load("tiny"), **{**SMALL, **settings})


def weights(method: Method) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in method.trained().items()}


@dataclass
class Average:
    """What went into an average and came out of it."""

    before: Weights
    trained: Weights
    averaged: Weights
    old_fisher: Weights
    new_fisher: Weights


def averages(monkeypatch: pytest.MonkeyPatch, method: Method, tasks: int = 3) -> list[Average]:
    """Those of a stream that the method learns."""
    made: list[Average] = []
    average = CoFiMA.average

    def recorded(self: CoFiMA, task: Task) -> None:
        trained, old = weights(self), dict((self.fisher or {}).items())
        average(self, task)
        made.append(Average(before, trained, weights(self), old, dict((self.fisher or {}).items())))

    monkeypatch.setattr(CoFiMA, "average", recorded)
    for task in toy_stream(tasks=tasks):
        before = weights(method)
        learn(method, task)
    return made


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("fisher", [True, False])
def test_weights_are_the_average_of_before_and_after_the_task(monkeypatch, train: str, fisher: bool) -> None:
    first, *later = averages(monkeypatch, built(train=train, weight=0.3, fisher=fisher))
    assert all(torch.equal(value, first.trained[name]) for name, value in first.averaged.items())  # nothing before it
    for made in later:
        moved = 0
        for name, old in made.before.items():
            new, found = made.trained[name], made.averaged[name]
            rows = len(old)
            share = torch.full_like(old, 0.3)
            if fisher:
                f_old, f_new = 0.7 * made.old_fisher[name][:rows], 0.3 * made.new_fisher[name][:rows]
                share = torch.where(f_old + f_new > 0, f_new / (f_old + f_new), share)
            torch.testing.assert_close(found[:rows], old + share * (new[:rows] - old), rtol=1e-4, atol=1e-6)
            moved += not torch.equal(found[:rows], old)
            if name.startswith("head."):  # a new class has no old row: it is taken as it was trained
                assert len(found) == rows + 2 and torch.equal(found[rows:], new[rows:])
        assert moved > 2


def test_with_equal_fisher_the_average_is_plain(monkeypatch) -> None:
    def equal(method: Method, *rest) -> Weights:
        return {name: torch.full_like(parameter, 0.2) for name, parameter in method.trained().items()}

    monkeypatch.setattr("everlearn.methods.cofima.diagonal_fisher", equal)
    made = averages(monkeypatch, built(weight=0.5))[-1]
    for name, old in made.before.items():
        found, new = made.averaged[name], made.trained[name]
        torch.testing.assert_close(found[: len(old)], (old + new[: len(old)]) / 2)
        assert torch.equal(found[len(old) :], new[len(old) :])


def test_weights_that_matter_to_old_classes_alone_stay(monkeypatch) -> None:
    made = averages(monkeypatch, built(weight=0.5), tasks=2)[-1]
    assert not made.new_fisher["head.bias"][:2].any() and made.new_fisher["head.bias"][2:].all()
    torch.testing.assert_close(made.averaged["head.bias"][:2], made.before["head.bias"], rtol=0, atol=0)


def test_the_head_is_aligned_with_the_averaged_encoder(monkeypatch) -> None:
    done: list[str] = []
    for verb in ("average", "embed", "align"):
        plain = getattr(CoFiMA, verb)
        monkeypatch.setattr(CoFiMA, verb, lambda *given, plain=plain, verb=verb: [done.append(verb), plain(*given)][1])
    learn(built(), toy_stream()[0])
    assert done == ["average", "embed", "align"]


def test_with_all_weight_on_the_new_it_is_slca() -> None:
    one = built(weight=1.0, fisher=False)
    two = methods.get("slca")(backbones.load("tiny"), **{k: v for k, v in SMALL.items() if k != "fisher_examples"})
    for method in (one, two):
        for task in toy_stream(tasks=2):
            learn(method, task)
    assert all(torch.equal(one.state_dict()[name], value) for name, value in two.state_dict().items())


@pytest.mark.parametrize("input", ["text", "image"])
def test_more_tasks_of_the_same_classes_store_nothing_more(input: str) -> None:
    method, sizes = built(train="lora"), []
    for task in toy_stream(input, kind="domain-incremental", tasks=4):
        learn(method, task)
        state = {name: t.numel() * t.element_size() for name, t in method_state(method).items()}
        rows = state.pop("memory.rows")  # of the Gaussians: as many as the examples, and at most the width of features
        assert rows == 4 * method.backbone.width * int(method.memory.counts.clamp(max=method.backbone.width).sum())
        sizes.append(sum(state.values()))
    assert len(set(sizes)) == 1
