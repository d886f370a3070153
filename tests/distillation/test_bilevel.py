"""The bilevel gradient is that of the loss on real data through the training steps, and no real model changes."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from everlearn import backbones
from everlearn.distillation.bilevel import Soft, distil, trained_on
from everlearn.distillation.soft import Learner, OnEncoder, OnHead, OnPairs, called, differentiable_twice, embedded

TEXTS = ["a cup of tea", "green tea please", "a sofa", "two chairs and a sofa", "tea for two", "the red chair"]
LABELS = torch.tensor([0, 0, 1, 1, 0, 1])


def learner_of(train, classes=2, dtype=torch.float64):
    return Learner(backbones.load("tiny"), train, classes=classes).to(dtype)


def soft_of(learner, steps=2, learn_labels=True):
    width = learner.backbone.hidden_width
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, width, generator=generator, dtype=torch.float64)
    return Soft({"inputs": inputs}, steps=steps, rate=0.3, learn_labels=learn_labels,
                targets=2 * one_hot(torch.tensor([0, 1]), 2).double())  # fmt: skip


def problem_of(learner, train):
    if train == "head":
        return OnHead(learner, learner.features(TEXTS).detach(), LABELS, at_once=2)
    return OnEncoder(learner, TEXTS, LABELS)


def outer(problem, soft):
    weights = trained_on(problem.inner(soft, 0), problem.start(1), soft.rates())
    return problem.outer(weights, torch.arange(len(TEXTS)))


@pytest.mark.parametrize("train", ["head", "lora(size=2)", "full"])
def test_finite_differences_agree_with_the_bilevel_gradient(train):
    learner = learner_of(train)
    problem, soft = problem_of(learner, train), soft_of(learner)
    with differentiable_twice(learner.backbone):
        outer(problem, soft).backward()
        for parameter in soft.parameters():
            flat = parameter.data.view(-1)
            for place in range(0, len(flat), max(1, len(flat) // 7)):
                before, sides = float(flat[place]), []
                for move in (1e-5, -1e-5):
                    flat[place] = before + move
                    sides.append(float(outer(problem_of(learner, train), soft)))
                flat[place] = before
                numeric = (sides[0] - sides[1]) / 2e-5
                assert numeric == pytest.approx(float(parameter.grad.view(-1)[place]), abs=1e-8, rel=1e-4)
        assert soft.raw_rates.grad.abs().max() > 1e-6 and soft.targets.grad.abs().max() > 1e-6


def test_the_gradient_is_that_of_the_real_loss_and_not_of_the_synthetic_one():
    """A published implementation multiplies the gradient of the synthetic loss by the real loss as a number: where the
    real labels are exchanged it points the same way. The true one turns round."""
    learner = learner_of("head")
    gradients = []
    for labels in (LABELS, 1 - LABELS):
        problem, soft = OnHead(learner, learner.features(TEXTS).detach(), labels), soft_of(learner, steps=1)
        outer(problem, soft).backward()
        gradients.append(soft.sequences["inputs"].grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) < -0.5
    # At a step size of nothing no weight is updated, so the real loss says nothing about the synthetic data.
    soft = soft_of(learner, steps=1)
    soft.raw_rates.data.fill_(-60.0)
    outer(problem_of(learner, "head"), soft).backward()
    assert soft.sequences["inputs"].grad.abs().max() < 1e-20


@pytest.mark.parametrize("train", ["head", "lora(size=2)", "full"])
def test_distilling_leaves_the_real_model_as_it_was(train):
    """A published implementation keeps live tensors as what to restore, and steps an optimizer of the real model."""
    learner = learner_of(train, dtype=torch.float32)
    identity = learner.backbone.identity()
    before = copy.deepcopy(learner.state_dict())
    problem, soft = problem_of(learner, train), soft_of(learner).float()
    with differentiable_twice(learner.backbone):
        distil(problem, soft, steps=2, lr=0.1, batch_size=4, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
    learner.close()
    assert learner.backbone.identity() == backbones.load("tiny").identity()
    assert not learner.backbone.attached and learner.backbone.is_frozen
    assert train != "head" or identity == learner.backbone.identity()


def test_distilling_lowers_the_loss_of_training_on_the_set():
    learner = learner_of("head", dtype=torch.float32)
    problem, soft = problem_of(learner, "head"), soft_of(learner, steps=5).float()
    fresh = outer(problem_of(learner, "head"), soft).item()
    losses = distil(problem, soft, steps=40, lr=0.05, batch_size=6, seed=0)
    assert outer(problem_of(learner, "head"), soft).item() < 0.6 * fresh
    assert losses[-1] < losses[0]
    again = soft_of(learner, steps=5).float()
    assert distil(problem_of(learner, "head"), again, steps=40, lr=0.05, batch_size=6, seed=0) == losses


def test_a_set_of_several_blocks_is_judged_by_the_features_that_it_has_at_last():
    learner = learner_of("head", dtype=torch.float32)
    soft, real = soft_of(learner).float(), learner.features(TEXTS).detach()
    problem = OnHead(learner, real, LABELS, at_once=1)
    distil(problem, soft, steps=10, lr=0.1, batch_size=6, seed=0)
    problem.inner(soft, 0)  # as the set is judged, from a start of its own
    assert torch.allclose(problem.known, learner.features(soft.sequences["inputs"]), atol=1e-6)


def test_the_gradient_of_pairs_agrees_too():
    learner = learner_of("lora(size=2)", classes=None)
    width = learner.backbone.hidden_width
    torch.manual_seed(0)
    soft = Soft({name: torch.randn(2, 3, width).double() for name in ("queries", "documents")}, steps=2, rate=0.3)
    problem = OnPairs(learner, TEXTS[:3], ["tea", "tea leaves", "furniture"])

    def loss():
        weights = trained_on(problem.inner(soft, 0), problem.start(1), soft.rates())
        return problem.outer(weights, torch.arange(3))

    with differentiable_twice(learner.backbone):
        loss().backward()
        for name in ("queries", "documents"):
            flat, sides = soft.sequences[name].data.view(-1), []
            for move in (1e-5, -1e-5):
                flat[7] += move
                sides.append(float(loss()))
                flat[7] -= move
            assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(float(soft.sequences[name].grad.view(-1)[7]), rel=1e-4)
    with_texts = OnPairs(learner, TEXTS[:3], ["tea", "tea leaves", "furniture"], given=["tea", "a sofa"])
    with differentiable_twice(learner.backbone):
        weights = trained_on(with_texts.inner(soft, 0), with_texts.start(1), soft.rates())
    assert all(weight.requires_grad for weight in weights.values())


def test_soft_sequences_stand_where_embedded_tokens_stand():
    backbone = backbones.load("tiny")
    learner = Learner(backbone, "head", classes=2)
    text = "one two three four"
    sequences = embedded(backbone, [text], 4)
    assert torch.allclose(learner.features(sequences), backbone([text]), atol=1e-6)
    assert cross_entropy(learner(sequences), torch.tensor([0])).isfinite()
    learner.close()
    assert torch.equal(called(learner, {}, [text]), learner.head(backbone([text])))
