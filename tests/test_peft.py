"""Deltas on the tiny backbone: the forms they have in their papers, and how they come and go."""

from __future__ import annotations

import copy

import pytest
import torch

from everlearn.backbones.tiny import TinyBackbone
from everlearn.peft.adapter import Adapter
from everlearn.peft.delta import Delta, Site, only
from everlearn.peft.lora import LoRA
from everlearn.peft.prompt import PromptTokens

TEXTS = ["one two three", "four"]


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def filled(delta):
    with torch.no_grad():
        for number, parameter in enumerate(delta.parameters()):
            parameter.copy_(drawn(*parameter.shape) + number)
    return delta


class Plus(Delta):
    """Adds a number: order and number of deltas show in the output."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x, y):
        return y * 2 + self.number


def test_lora_is_its_formula_and_equals_the_merged_weight():
    delta, layer, x = filled(LoRA(6, 4, rank=2, alpha=3.0)), torch.nn.Linear(6, 4), drawn(5, 6)
    merged = layer.weight + 1.5 * delta.b @ delta.a
    assert torch.allclose(delta(x, layer(x)), torch.nn.functional.linear(x, merged, layer.bias), atol=1e-4)
    assert sum(p.numel() for p in delta.parameters()) == 2 * (6 + 4)


def test_parallel_adapter_is_its_formula():
    delta, x, y = filled(Adapter(6, 4, bottleneck=3, scale=0.5)), drawn(5, 6), drawn(5, 4)
    inner = torch.clamp(x @ delta.down.weight.T + delta.down.bias, min=0)
    assert torch.allclose(delta(x, y), y + 0.5 * (inner @ delta.up.weight.T + delta.up.bias), atol=1e-5)


@pytest.mark.parametrize("make", [lambda: LoRA(6, 4, rank=2), lambda: Adapter(6, 4, bottleneck=3)])
def test_a_new_delta_is_the_identity_and_can_learn(make):
    delta, x, y = make(), drawn(5, 6), drawn(5, 4)
    assert torch.equal(delta(x, y), y)
    delta(x, y).sum().backward()
    assert sum(p.grad.abs().sum() for p in delta.parameters() if p.grad is not None) > 0


def test_a_delta_sees_the_input_and_the_output_of_its_site():
    layer, seen = torch.nn.Linear(6, 4), []

    class Look(Delta):
        def forward(self, x, y):
            seen.append((x, y))
            return y

    x = drawn(5, 6)
    Look().attach(Site("here", layer, layer, 6, 4))
    assert torch.equal(layer(x), seen[0][1]) and seen[0][0] is x


def test_a_site_may_enter_and_leave_at_different_modules_and_keeps_the_rest_of_a_tuple():
    class Two(torch.nn.Module):
        def forward(self, x):
            return x + 1, "attention weights"

    first, second, x = torch.nn.Linear(6, 6), Two(), drawn(5, 6)

    class Difference(Delta):
        def forward(self, x, y):
            return y - x

    delta = Difference().attach(Site("here", first, second, 6, 6))
    found, rest = second(first(x))
    assert torch.allclose(found, first(x) + 1 - x) and rest == "attention weights"
    delta.detach()
    assert torch.equal(second(first(x))[0], first(x) + 1)


def test_columns_are_changed_alone_and_the_layer_output_is_not_written_to():
    layer, x = torch.nn.Linear(6, 9), drawn(5, 6)
    plain = layer(x).detach()
    Plus(1.0).attach(Site("middle", layer, layer, 6, 3, slice(3, 6)))
    found = layer(x)
    assert torch.equal(found[:, 3:6], plain[:, 3:6] * 2 + 1)
    assert torch.equal(found[:, :3], plain[:, :3]) and torch.equal(found[:, 6:], plain[:, 6:])
    found.sum().backward()
    assert torch.allclose(layer.bias.grad, torch.tensor([5.0] * 3 + [10.0] * 3 + [5.0] * 3))


def test_deltas_on_one_site_act_in_the_order_attached_and_each_comes_off():
    backbone = TinyBackbone()
    site, before = backbone.block(1).value, backbone.infer(TEXTS)
    layer, x = site.leave, drawn(2, 32)
    plain = layer(x)
    one, two = backbone.attach(Plus(1.0), site), backbone.attach(Plus(10.0), site)
    assert torch.allclose(layer(x), (plain * 2 + 1) * 2 + 10)
    backbone.detach(one)
    assert torch.allclose(layer(x), plain * 2 + 10) and backbone.active == [two]
    backbone.detach(two)
    assert torch.equal(layer(x), plain) and torch.equal(backbone.infer(TEXTS), before)
    backbone.attach(one, backbone.block(0).mlp)
    assert one.site_name == "block 0 mlp"


def test_a_delta_sits_on_one_site_at_a_time():
    backbone = TinyBackbone()
    delta = backbone.attach(Plus(1.0), backbone.block(0).value)
    with pytest.raises(RuntimeError, match="already sits on block 0 value"):
        delta.attach(backbone.block(1).value)


def test_only_switches_deltas_and_switches_back_after_an_error():
    backbone = TinyBackbone()
    before = backbone.infer(TEXTS)
    deltas = [backbone.attach(Plus(float(i)), backbone.block(i).value) for i in range(2)]
    changed = backbone.infer(TEXTS)
    deltas[1].is_active = False
    with only(deltas, active=True):
        assert torch.equal(backbone.infer(TEXTS), changed)
    assert [delta.is_active for delta in deltas] == [True, False] and backbone.active == deltas[:1]
    with pytest.raises(ZeroDivisionError), backbone.pretrained():
        assert torch.equal(backbone.infer(TEXTS), before)
        raise ZeroDivisionError
    assert [delta.is_active for delta in deltas] == [True, False]


def test_a_copy_made_after_a_pass_with_gradient_is_independent():
    backbone = TinyBackbone()
    delta = backbone.attach(filled(LoRA(32, 32, rank=2)), backbone.block(0).query)
    backbone(TEXTS).sum().backward()
    twin = copy.deepcopy(backbone)
    expected = backbone.infer(TEXTS)
    with torch.no_grad():
        delta.b.zero_()
    assert torch.equal(twin.infer(TEXTS), expected) and not torch.equal(backbone.infer(TEXTS), expected)


def test_prompts_act_only_while_given_and_reach_the_output():
    backbone = TinyBackbone()
    prompts, before = backbone.attach(PromptTokens(), backbone.tokens), backbone.infer(TEXTS)
    tokens = drawn(2, 3, 32).requires_grad_()
    with pytest.raises(ZeroDivisionError), prompts.given(tokens):
        assert backbone.active == [prompts] and prompts.added_tokens == 3
        raise ZeroDivisionError
    assert backbone.active == [] and torch.equal(backbone.infer(TEXTS), before)
    with prompts.given(tokens):
        hidden = backbone.hidden(backbone.prepare(TEXTS))
    assert hidden.states.shape == (2, 1 + 3 + 3, 32) and hidden.mask.tolist() == [[1] * 7, [1, 1, 0, 0, 1, 1, 1]]
    # The plain sum of a normalised feature is the same for every feature: no gradient comes from it but rounding.
    (backbone.pool(hidden) * torch.arange(32.0)).sum().backward()
    assert (tokens.grad.abs().sum((1, 2)) > 1e-2).all()


def test_a_delta_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Delta must define forward"):
        Delta()(torch.zeros(1), torch.zeros(1))
