"""A penalty on the weights that is added to the gradients, beside the loss."""

from __future__ import annotations

import pytest
import torch

from everlearn.errors import EverlearnError
from everlearn.memory.per_parameter import PerParameter
from everlearn.optimizer_step import OptimizerStep


def step_of(layer: torch.nn.Module) -> OptimizerStep:
    return OptimizerStep(torch.optim.AdamW, [{"params": list(layer.parameters())}], lr=0.1, clip=None)


def test_a_penalty_and_its_gradient_are_those_of_autograd() -> None:
    layer = torch.nn.Linear(3, 2)
    anchor, importance = PerParameter(), PerParameter()
    for kept in (anchor, importance):
        kept.grow(layer.named_parameters())
    for name, value in layer.named_parameters():
        anchor[name], importance[name] = torch.randn_like(value), torch.rand_like(value)
    layer.extra = torch.nn.Parameter(torch.ones(1))  # learned later: free
    trained, step = dict(layer.named_parameters()), step_of(layer)
    of_loss = layer(torch.ones(1, 3)).square().sum()
    of_weights = sum((importance[name] * (trained[name] - anchor[name]).square()).sum() for name in anchor)
    expected = torch.autograd.grad(of_loss + 1.5 * of_weights, [layer.weight, layer.bias], retain_graph=True)
    step.backward(of_loss)
    penalty = step.add_penalty(1.5, trained, anchor, importance)
    torch.testing.assert_close(penalty, 1.5 * of_weights.detach())
    torch.testing.assert_close((layer.weight.grad, layer.bias.grad), expected)
    assert layer.extra.grad is None


def test_a_penalty_gives_no_gradient_to_what_it_does_not_pull() -> None:
    layer = torch.nn.Linear(3, 2)
    trained, step = dict(layer.named_parameters()), step_of(layer)
    anchor = {name: value.detach().clone() for name, value in trained.items()}
    assert step.add_penalty(1.0, trained, anchor) == 0  # nothing has moved
    assert layer.weight.grad is None and layer.bias.grad is None
    with torch.no_grad():
        layer.weight += 2
        layer.bias += 2
    step.add_penalty(0.0, trained, anchor)
    assert layer.weight.grad is None and layer.bias.grad is None
    importance = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    assert step.add_penalty(1.0, trained, anchor, importance) == pytest.approx(24)
    assert torch.allclose(layer.weight.grad, torch.full((2, 3), 4.0)) and layer.bias.grad is None


def test_a_penalty_without_bound_is_refused_before_a_weight_has_changed() -> None:
    layer = torch.nn.Linear(3, 2)
    trained, step = dict(layer.named_parameters()), step_of(layer)
    before = layer.weight.detach().clone()
    step.backward(layer(torch.ones(1, 3)).sum())
    with pytest.raises(EverlearnError, match="the loss is inf"):
        step.add_penalty(1.0, trained, {"weight": torch.full((2, 3), 1e30)})
    assert torch.equal(layer.weight, before)
