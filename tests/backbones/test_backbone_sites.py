"""Every delta on every site of every backbone: nothing changes at first, then only what should."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import KINDS, TEXTS

from everlearn.errors import EverlearnError
from everlearn.peft.adapter import Adapter
from everlearn.peft.lora import LoRA
from everlearn.peft.prompt import PromptTokens

SITES = ("query", "key", "value", "attention", "mlp", "output")
FUSED = ("modernbert", "timm", "vit-tiny")


@pytest.fixture(params=KINDS)
def loaded(request, load_kind):
    """A backbone of each kind, and two inputs."""
    return load_kind(request.param)


@pytest.fixture(params=[kind for kind in KINDS if kind != "modernbert"])
def takes_prompts(request, load_kind):
    """The same, of the kinds whose positions are not rotary."""
    return load_kind(request.param)


def put(backbone, cls, name, index=None):
    """A new delta on a site of the last block."""
    site = getattr(backbone.block(backbone.depth - 1 if index is None else index), name)
    size = {"rank": 2} if cls is LoRA else {"bottleneck": 4}
    return backbone.attach(cls(site.width, site.out_width, **size), site)


def randomise(delta):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.normal_(generator=generator)


def test_a_new_delta_changes_no_bit_a_trained_one_does_and_it_comes_off(loaded):
    backbone, inputs = loaded
    before = backbone.infer(inputs)
    for name in SITES:
        for cls in (LoRA, Adapter):
            delta = put(backbone, cls, name)
            assert torch.equal(backbone.infer(inputs), before), (name, cls)
            randomise(delta)
            assert not torch.allclose(backbone.infer(inputs), before, rtol=1e-4), (name, cls)
            with backbone.pretrained():
                assert torch.equal(backbone.infer(inputs), before), (name, cls)
            backbone.detach(delta)
            assert torch.equal(backbone.infer(inputs), before) and backbone.attached == [], (name, cls)


def test_a_delta_receives_gradient_and_the_backbone_none(loaded):
    backbone, inputs = loaded
    deltas = [put(backbone, LoRA, name, index=0) for name in ("query", "value")]
    for delta in deltas:
        randomise(delta)
    assert not backbone.is_frozen
    backbone(inputs).square().sum().backward()
    for delta in deltas:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in delta.parameters())
    assert all(p.grad is None for p in backbone.parameters())


def test_a_copy_with_deltas_is_independent(loaded):
    backbone, inputs = loaded
    delta = put(backbone, LoRA, "value")
    randomise(delta)
    before = backbone.infer(inputs)
    twin = copy.deepcopy(backbone)
    assert torch.equal(twin.infer(inputs), before)
    (own,) = twin.attached
    assert own is not delta
    with torch.no_grad():
        own.b.zero_()
    with twin.pretrained():
        plain = twin.infer(inputs)
    assert torch.equal(twin.infer(inputs), plain) and not torch.allclose(plain, before, rtol=1e-3)
    assert torch.equal(backbone.infer(inputs), before)
    twin.detach(own)
    assert torch.equal(backbone.infer(inputs), before)


def test_prompts_widen_the_sequence_and_are_seen_by_the_example(takes_prompts):
    backbone, inputs = takes_prompts
    before, plain = backbone.infer(inputs), backbone.hidden(backbone.prepare(inputs))
    prompts = backbone.attach(PromptTokens(), backbone.tokens)
    assert torch.equal(backbone.infer(inputs), before)
    tokens = torch.randn(2, 3, backbone.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with prompts.given(tokens):
        hidden = backbone.hidden(backbone.prepare(inputs))
        features = backbone.pool(hidden)
    assert plain.prompts == 0 and hidden.prompts == 3
    assert hidden.states.shape == (2, plain.states.shape[1] + 3, backbone.width)
    assert hidden.mask.shape == hidden.states.shape[:2] and hidden.mask[:, -3:].all()
    assert features.shape == before.shape and not torch.allclose(features, before, rtol=1e-3)
    features.square().sum().backward() if not backbone.settings.get("normalize") else features.sum().backward()
    assert (tokens.grad.abs().sum((1, 2)) > 0).all()
    assert torch.equal(backbone.infer(inputs), before)


def test_rotary_positions_take_no_prompts_and_say_so(load_kind):
    backbone, _ = load_kind("modernbert")
    with pytest.raises(EverlearnError, match="rotary positions"):
        backbone.attach(PromptTokens(), backbone.tokens)
    assert backbone.infer(TEXTS).shape == (2, 32)


def test_prompts_of_one_example_leave_the_others_alone(takes_prompts):
    backbone, inputs = takes_prompts
    prompts = backbone.attach(PromptTokens(), backbone.tokens)
    tokens = torch.randn(2, 3, backbone.width, generator=torch.Generator().manual_seed(0))
    other = torch.stack([tokens[0], -tokens[1]])
    features = []
    for given in (tokens, other):
        with prompts.given(given), torch.no_grad():
            features.append(backbone(inputs))
    assert torch.allclose(features[0][0], features[1][0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(features[0][1], features[1][1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_a_delta_on_a_fused_projection_changes_its_own_columns_only(kind, name, load_kind):
    backbone, inputs = load_kind(kind)
    site = getattr(backbone.block(0), name)
    assert site.columns is not None
    seen = []
    delta = put(backbone, LoRA, name, index=0)
    site.leave.register_forward_hook(lambda module, args, output: seen.append(output))
    backbone.infer(inputs)
    randomise(delta)
    backbone.infer(inputs)
    changed = (seen[0] != seen[1]).flatten(0, -2).any(0)
    expected = torch.zeros(3 * backbone.width, dtype=torch.bool)
    expected[site.columns] = True
    assert torch.equal(changed, expected)
