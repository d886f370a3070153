"""Penalties on weights, and distillation of features: what each paper says the penalty is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from everlearn import backbones, methods
from everlearn.engine import END, Learning, Listener, learn
from everlearn.fisher import diagonal_fisher, example_gradients
from everlearn.losses import cross_entropy
from everlearn.method import Method
from everlearn.methods import EWC, MAS, SI, FeatureDistillation
from everlearn.optimizer_step import OptimizerStep
from everlearn.seeds import seeded
from everlearn.streams.stream import Examples
from everlearn.testing import tiny_pair, toy_stream

SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 1e-3}
EXAMPLES = {"ewc": {"fisher_examples": 4}, "mas": {"examples": 4}}
STREAM = toy_stream(tasks=2)


def built(name: str, **settings: Any) -> Method:
    return methods.get(name)(backbones.load("tiny"), **{**SMALL, **EXAMPLES.get(name, {}), **settings})


def learned(name: str, tasks: int = 2, **settings: Any) -> Method:
    method = built(name, **settings)
    for task in STREAM.tasks[:tasks]:
        learn(method, task)
    return method


def weights(method: Method) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in method.named_parameters()}


def same(one: Method, other: Method) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_end_task_has_the_memory_of_gradients_and_optimizer_for_itself() -> None:
    found: list[Any] = []

    class Watch(Listener):
        def fitted(self, learning: Learning) -> None:
            found.append((learning.optimizer_step, [name for name, p in trained.items() if p.grad is not None]))

    method = built("ewc")
    learning = learn(method, STREAM[0])
    trained = method.trained()
    assert learning.step == learning.steps > 0
    learn(method, STREAM[1], Watch())
    assert found == [(None, [])]


# -- the Fisher information ----------------------------------------------------------------------
def logistic() -> tuple[EWC, Examples, Tensor, Tensor]:
    """A linear softmax on fixed features (n, width), whose probabilities (n, classes) are not all alike."""
    method, task = EWC(backbones.load("tiny"), train="head"), STREAM[0]
    method.begin_task(task.sealed())
    with torch.no_grad():
        method.head.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
    features = method.embed(task.train.inputs)
    return method, task.train, features, method.head(features).softmax(1).detach()


def test_the_exact_fisher_is_that_of_logistic_regression() -> None:
    method, train, features, p = logistic()
    found = diagonal_fisher(method, train, most=10**6, labels="exact")
    variance = p * (1 - p)
    torch.testing.assert_close(found["head.bias"], variance.mean(0))
    torch.testing.assert_close(found["head.weight"], variance.T @ features.square() / len(train))
    again = diagonal_fisher(method, train, most=10**6, labels="exact")
    assert all(torch.allclose(again[name], found[name]) for name in found)  # whatever chance says


def test_the_mean_of_many_sampled_fishers_is_the_exact_one() -> None:
    method, train, _, _ = logistic()
    exact = diagonal_fisher(method, train, most=10**6, labels="exact")["head.bias"]
    with seeded(0):
        sampled = torch.stack([diagonal_fisher(method, train, most=10**6)["head.bias"] for _ in range(60)])
    error = sampled.std(0) / 60**0.5
    assert (sampled.std(0) > 0).all() and ((sampled.mean(0) - exact).abs() < 4 * error).all()


def test_the_empirical_fisher_is_the_squared_gradient_of_each_example() -> None:
    method, train, features, p = logistic()
    found = diagonal_fisher(method, train, most=10**6, labels="empirical")
    residual = (p - one_hot(train.labels, 2)).square()
    torch.testing.assert_close(found["head.bias"], residual.mean(0))
    torch.testing.assert_close(found["head.weight"], residual.T @ features.square() / len(train))


def test_single_examples_are_differentiated_in_float32() -> None:
    method, found = built("ewc"), []
    method.begin_task(STREAM[0].sealed())
    method.backbone.training_precision = "bfloat16"

    def scalars(scores: Tensor, row: int) -> list[tuple[float, Tensor]]:
        found.append(method.backbone.training_precision)
        return [(1.0, scores.sum())]

    assert len(list(example_gradients(method, STREAM[0].train, 3, scalars))) == 3
    assert found == ["float32"] * 3 and method.backbone.training_precision == "bfloat16"


def test_a_gradient_of_an_embedding_holds_the_rows_that_were_read() -> None:
    method = built("mas")
    method.begin_task(STREAM[0].sealed())
    tables = [module for module in method.modules() if isinstance(module, torch.nn.Embedding)]
    gradients = example_gradients(method, STREAM[0].train, 3, lambda scores, row: [(1.0, scores.square().sum())])
    with seeded(0):
        found = [of_one for _, of_one in gradients]
    sparse = {name for name, gradient in found[0].items() if gradient.is_sparse}
    assert 0 < len(sparse) == len(tables) < len(found[0]) and not any(table.sparse for table in tables)
    with seeded(0):
        rows = torch.randperm(len(STREAM[0].train))[:3].tolist()
    for row, of_one in zip(rows, found, strict=True):
        scores = method.scores(STREAM[0].train[[row]].inputs)
        trained = method.trained()
        dense = torch.autograd.grad(scores.square().sum(), [trained[name] for name in of_one])
        for (name, gradient), whole in zip(of_one.items(), dense, strict=True):
            torch.testing.assert_close(gradient.to_dense() if name in sparse else gradient, whole)


def test_labels_of_other_classes_are_found_among_the_classes_given() -> None:
    method = built("ewc", train="head")
    for task in STREAM:
        method.begin_task(task.sealed())
    train = STREAM[1].train
    found = diagonal_fisher(method, train, 10**6, STREAM[1].classes, "empirical")["head.bias"]
    p = method.head(method.embed(train.inputs))[:, 2:].softmax(1).detach()
    torch.testing.assert_close(found[2:], (p - one_hot(train.labels - 2, 2)).square().mean(0))
    assert not found[:2].any()


@pytest.mark.parametrize("labels", ["sampled", "exact", "empirical"])
def test_ewc_sums_the_fishers_of_all_tasks_where_nothing_decays(labels: str) -> None:
    method = built("ewc", train="head", fisher=labels, fisher_examples=10**6)
    sums = torch.zeros(4)
    for task in STREAM:
        learn(method, task)
        with seeded(method.seed, task.index, END):
            own = diagonal_fisher(method, task.train, 10**6, labels=labels)["head.bias"]  # type: ignore[arg-type]
        sums[: len(own)] += own
    torch.testing.assert_close(method.importance["head.bias"], sums)


# -- si ------------------------------------------------------------------------------------------
class Quadratic(SI):
    """SI whose loss is a quadratic of the weights of the head, whatever the batch."""

    def losses(self, batch: Examples) -> Tensor:
        curvature = torch.linspace(0.5, 2.0, self.head.weight.numel()).view_as(self.head.weight)
        value = (curvature * (self.head.weight - 1).square()).sum() + (self.head.bias + 2).square().sum()
        return value.expand(len(batch))


def test_the_path_integral_is_the_decrease_of_the_loss() -> None:
    method = Quadratic(backbones.load("tiny"), train="head", strength=0.0)
    method.begin_task(STREAM[0].sealed())
    batch = STREAM[0].train[range(4)]
    first = method.loss(batch).item()
    optimizer_step = OptimizerStep(torch.optim.SGD, method.param_groups(), 1e-3, None)
    for group in optimizer_step.optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(300):
        method.step(batch, optimizer_step)
    decrease = first - method.loss(batch).item()
    found = sum(path.sum().item() for _, path in method.path.items())
    assert decrease > 0.3 * first
    assert found == pytest.approx(decrease, rel=0.01)


def test_the_importance_is_the_path_integral_by_the_squared_change() -> None:
    method = built("si", train="head", xi=0.01)
    seen: dict[str, Tensor] = {}

    class Paths(Listener):
        def fitted(self, learning: Learning) -> None:
            seen.update({name: path.clone() for name, path in method.path.items()})

    before = torch.zeros(0)
    for task in STREAM:
        learn(method, task, Paths())
        change = method.head.bias.detach() - method.anchor["head.bias"]
        old = pad(before, (0, len(change) - len(before)))
        expected = (old + seen["head.bias"] / (change.square() + 0.01)).clamp(min=0)
        torch.testing.assert_close(method.importance["head.bias"], expected)
        assert expected.any() and not method.path["head.bias"].any()
        before = method.importance["head.bias"].clone()


def test_the_penalty_is_no_part_of_the_path_integral() -> None:
    """The first step of a task has no penalty yet, the second one has: its gradient is left out."""
    method = learned("si", tasks=1, train="head", strength=1e4)
    method.begin_task(STREAM[1].sealed())
    batch = STREAM[1].train[range(8)]
    optimizer_step = OptimizerStep(torch.optim.SGD, method.param_groups(), 1e-3, None)
    method.step(batch, optimizer_step)
    path, value = method.path["head.bias"].clone(), method.head.bias.detach().clone()
    (gradient,) = torch.autograd.grad(method.loss(batch), method.head.bias)
    method.step(batch, optimizer_step)
    assert not torch.allclose(method.head.bias.grad, gradient)  # type: ignore[arg-type]
    change = method.head.bias.detach() - value
    torch.testing.assert_close(method.path["head.bias"] - path, -gradient * change)


def test_si_keeps_three_tensors_for_each_trained_weight() -> None:
    method = learned("si", tasks=1)
    trained = sum(parameter.numel() for parameter in method.trained().values())
    kept = sum(part.stored_bytes() for part in (method.importance, method.path, method.anchor))
    assert kept == 3 * 4 * trained


# -- mas -----------------------------------------------------------------------------------------
def test_the_importance_of_mas_is_the_closed_form_of_a_linear_model() -> None:
    """With scores s = W x + b the gradient of ||s||² is 2 s xᵀ for W and 2 s for b."""
    method, train = MAS(backbones.load("tiny"), train="head", examples=10**6, **SMALL), STREAM[0].train
    learn(method, STREAM[0])
    features = method.embed(train.inputs)
    scores = method.head(features).detach()
    torch.testing.assert_close(method.importance["head.bias"], 2 * scores.abs().mean(0))
    torch.testing.assert_close(method.importance["head.weight"], 2 * scores.abs().T @ features.abs() / len(train))
    assert torch.equal(method.anchor["head.weight"], method.head.weight)


def test_mas_uses_no_label() -> None:
    one, other = (built("mas", train="head", examples=10**6) for _ in range(2))
    wrong = Examples(STREAM[0].train.inputs, 1 - STREAM[0].train.labels, STREAM[0].train.ids)
    for method, train in ((one, STREAM[0].train), (other, wrong)):
        method.begin_task(STREAM[0].sealed())
        with torch.no_grad():
            method.head.weight.copy_(torch.linspace(-1, 1, 64).view(2, 32))
        with seeded(0):
            method.end_task(replace(STREAM[0], examples={"train": train}))
    assert one.importance["head.weight"].min() > 0
    assert torch.equal(one.importance["head.weight"], other.importance["head.weight"])


# -- penalties -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mas", "si"])
def test_the_penalty_holds_what_is_important_from_the_second_task_on(name: str) -> None:
    free, held = learned(name, strength=0.0), learned(name, strength=1e4)
    after_first = learned(name, tasks=1)
    importance = held.importance["head.weight"][:2]
    assert importance.min() >= 0 and importance.max() > 0

    def moved(method: Method) -> float:
        change = weights(method)["head.weight"][:2] - weights(after_first)["head.weight"]
        return float((after_first.importance["head.weight"] * change.square()).sum())

    assert moved(held) < 0.2 * moved(free)


@pytest.mark.parametrize("name", ["ewc", "mas", "si"])
def test_in_the_first_task_no_pass_over_the_weights_looks_for_what_is_important(name, monkeypatch) -> None:
    passes, add_penalty = [], OptimizerStep.add_penalty

    def counted(*given):
        passes.append(method.task.index)
        return add_penalty(*given)

    monkeypatch.setattr(OptimizerStep, "add_penalty", counted)
    method = methods.get(name)(backbones.load("tiny"), epochs=1, batch_size=16)
    for task in toy_stream(tasks=2):
        learn(method, task)
    assert set(passes) == {1}


@pytest.mark.parametrize("train", ["full", "lora"])
def test_l2_sp_of_strength_0_is_finetune(train: str) -> None:
    plain = learned("finetune", train=train)
    assert same(learned("l2_sp", train=train, strength=0.0, head_strength=0.0), plain)
    assert not same(learned("l2_sp", train=train, strength=1.0, head_strength=0.0), plain)
    assert not same(learned("l2_sp", train=train, strength=0.0, head_strength=1.0), plain)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_l2_sp_pulls_towards_the_first_weights_in_every_task(train: str) -> None:
    first = weights(built("l2_sp", train=train))
    method = learned("l2_sp", train=train, strength=3.0, head_strength=0.5)
    batch = STREAM[1].train[range(4)]
    apart = [
        parameter.detach() - first[name] for name, parameter in method.trained().items() if not name.startswith("head.")
    ]
    new = list(method.task.classes)  # rows of old classes are not pulled to zero
    head = sum(float(parameter.detach()[new].square().sum()) for parameter in method.head.parameters())
    penalty = 1.5 * sum(float(difference.square().sum()) for difference in apart) + 0.25 * head
    plain = cross_entropy(method.scores(batch.inputs), batch.labels).mean()
    assert penalty > 1e-4
    still = OptimizerStep(torch.optim.SGD, [{"params": list(method.trained().values())}], lr=0.0, clip=None)
    assert (method.step(batch, still) - plain).item() == pytest.approx(penalty, rel=1e-3)


def test_a_stronger_pull_leaves_the_encoder_nearer_to_the_pre_trained_one() -> None:
    first = weights(built("l2_sp"))

    def distance(strength: float) -> float:
        now = weights(learned("l2_sp", strength=strength))
        return sum(float((now[name] - value).square().sum()) for name, value in first.items() if name[:5] != "head.")

    distances = [distance(strength) for strength in (0.0, 1.0, 100.0)]
    assert all(near < far for far, near in pairwise(distances))


@pytest.mark.parametrize("name", ["ewc", "mas", "si", "l2_sp"])
def test_weights_that_no_loss_reaches_stay_as_they_are(name: str) -> None:
    """A stream of images never asks the text encoder of a pair, which zero-shot answers need."""
    method = methods.get(name)(tiny_pair(), **{**SMALL, **EXAMPLES.get(name, {})})
    for task in toy_stream("image", tasks=2):
        learn(method, task)
    moved = {key for key, value in tiny_pair().named_parameters()
             if not torch.equal(value, method.backbone.get_parameter(key))}  # fmt: skip
    assert moved and not any("text" in key for key in moved)


# -- distillation of features --------------------------------------------------------------------
def test_the_distilled_features_are_those_before_the_task() -> None:
    method = learned("feature_distillation", tasks=1)
    assert isinstance(method, FeatureDistillation) and method.teacher is None
    batch = STREAM[1].train[range(8)]
    before = method.embed(batch.inputs)
    method.begin_task(STREAM[1].sealed())
    first = method.losses(batch)
    torch.testing.assert_close(first, cross_entropy(method.scores(batch.inputs), batch.labels, STREAM[1].classes))
    with torch.no_grad():
        next(method.backbone.parameters()).mul_(1.5)
    features = method.features(batch.inputs)
    apart = (features - before).square().sum(1) / before.square().sum(1)
    plain = cross_entropy(method.head(features), batch.labels, STREAM[1].classes)
    assert apart.min() > 1e-4
    torch.testing.assert_close(method.losses(batch), plain + 0.5 * method.strength * apart)


def test_a_strength_serves_features_of_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    method = learned("feature_distillation", tasks=1)
    batch = STREAM[1].train[range(8)]
    method.begin_task(STREAM[1].sealed())
    before = method.embed(batch.inputs)
    for length in (1.0, 55.0):
        monkeypatch.setattr(method.teacher, "features", lambda *_, length=length, **more: length * before)
        monkeypatch.setattr(method, "features", lambda *_, length=length: 1.1 * length * before)
        plain = cross_entropy(method.head(1.1 * length * before), batch.labels, STREAM[1].classes)
        torch.testing.assert_close(method.losses(batch) - plain, torch.full((8,), 0.5 * 0.1**2), atol=1e-4, rtol=1e-3)


def test_distillation_holds_the_features() -> None:
    def drift(strength: float) -> float:
        method = learned("feature_distillation", tasks=1, strength=strength)
        before = method.embed(STREAM[1].train.inputs)
        learn(method, STREAM[1])
        return float((method.embed(STREAM[1].train.inputs) - before).square().sum(1).mean())

    assert drift(100.0) < 0.3 * drift(0.0)


def test_of_strength_0_it_is_training_on_the_tasks_own_classes() -> None:
    method, plain = learned("feature_distillation", strength=0.0), built("finetune")
    plain.masked = True  # type: ignore[misc]
    for task in STREAM:
        learn(plain, task)
    mine = weights(method)
    assert all(torch.equal(value, mine[name]) for name, value in weights(plain).items())
