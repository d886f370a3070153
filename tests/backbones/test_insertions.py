"""Every kind of insertion on every backbone: the identity at first, trainable, on and off as a set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import KINDS

from everlearn.backbones.tiny import TinyBackbone
from everlearn.errors import EverlearnError
from everlearn.peft.prefix import KeysValues, Prefix
from everlearn.peft.unified import INSERTIONS, POINTS, Point, insert

IDENTITY_AT_FIRST = ("houlsby", "parallel_adapter", "adaptformer", "scaled_parallel_adapter", "lora", "ssf")
UNABLE = {"modernbert": ("prompt", "deep_prompt"), "mpnet": ("prefix", "prefix_mlp", "mam")}
"""Rotary positions take no added token; MPNet adds a bias of its own to attention and does not use torch's."""


@pytest.mark.parametrize("what", INSERTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_insertion_is_the_identity_at_first_learns_and_comes_off(kind, what, load_kind):
    backbone, inputs = load_kind(kind)
    before, weights = backbone(inputs), backbone.digests()
    if what in UNABLE.get(kind, ()):
        with pytest.raises(EverlearnError):
            insert(backbone, what)
            backbone(inputs)
        return
    deltas = insert(backbone, what)
    changed = backbone(inputs)
    assert torch.equal(changed, before) == (what in IDENTITY_AT_FIRST)
    (changed * torch.arange(1.0, changed.shape[1] + 1)).sum().backward()
    reached = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in delta.parameters()) for delta in deltas]
    # The last block's keys and values may serve tokens alone that pooling drops; all else is reached.
    assert sum(reached) >= len(reached) * 0.7, f"{reached.count(False)} deltas of {len(reached)} get no gradient"
    with torch.no_grad():
        for parameter in deltas.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    moved = backbone(inputs)
    assert not torch.allclose(moved, before, atol=1e-3)
    with deltas.only(active=False):
        assert torch.equal(backbone(inputs), before)
    deltas.detach(backbone)
    assert torch.equal(backbone(inputs), before)
    deltas.attach(backbone)
    assert torch.equal(backbone(inputs), moved) and backbone.digests() == weights


def test_two_sets_swap(load_kind):
    backbone, inputs = load_kind("tiny")
    first, second = insert(backbone, "mam"), insert(backbone, "mam")
    with torch.no_grad():
        [p.add_(0.1) for p in first.parameters()]
        [p.sub_(0.2) for p in second.parameters()]
    answers = []
    for on, off in ((first, second), (second, first), (first, second)):
        on.switch(True)
        off.switch(False)
        answers.append(backbone(inputs))
    assert torch.equal(answers[0], answers[2]) and not torch.allclose(answers[0], answers[1], atol=1e-3)


def explicit(tiny, x, mask, keys, values):
    """The attention of tiny's first block with more keys and values, spelled out."""
    attention = tiny.blocks[0].attention
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    key = torch.cat([keys.expand(len(x), -1, -1), key], 1)
    value = torch.cat([values.expand(len(x), -1, -1), value], 1)
    mask = F.pad(mask, (keys.shape[1], 0), value=1)
    heads = []
    for part in range(attention.heads):
        at = slice(part * 8, part * 8 + 8)
        scores = query[..., at] @ key[..., at].transpose(1, 2) / 8**0.5
        heads.append(scores.masked_fill(mask[:, None] == 0, float("-inf")).softmax(-1) @ value[..., at])
    return attention.dense(torch.cat(heads, -1))


def test_a_prefix_is_explicit_extra_keys_and_values_and_the_gate_of_the_unified_view():
    tiny, torch_random = TinyBackbone(), torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 32, generator=torch_random)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    prefix = tiny.attach(Prefix(32, length=5), tiny.block(0).heads)
    with torch.no_grad():
        prefix.vectors.normal_(generator=torch_random)
    keys, values = prefix.keys_values()
    attention = tiny.blocks[0].attention
    found = attention(x, mask)
    assert torch.allclose(found, explicit(tiny, x, mask, keys, values), atol=1e-5)
    # (1 - λ) · attention + λ · softmax(q Pkᵀ) Pv, head by head, with λ the prefix's share of the weights.
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    gated = []
    for part in range(4):
        at = slice(part * 8, part * 8 + 8)
        own = query[..., at] @ key[..., at].transpose(1, 2) / 8**0.5
        own = own.masked_fill(mask[:, None] == 0, float("-inf"))
        extra = query[..., at] @ keys[..., at].transpose(1, 2) / 8**0.5
        share = torch.sigmoid(extra.logsumexp(-1) - own.logsumexp(-1))[..., None]
        gated.append((1 - share) * (own.softmax(-1) @ value[..., at]) + share * (extra.softmax(-1) @ values[..., at]))
    assert torch.allclose(found, attention.dense(torch.cat(gated, -1)), atol=1e-5)


def test_given_keys_and_values_are_each_examples_own():
    tiny, generator = TinyBackbone(), torch.Generator().manual_seed(0)
    delta, texts = tiny.attach(KeysValues(), tiny.block(1).heads), ["one two", "three four five", "six"]
    keys, values = torch.randn(2, 3, 4, 32, generator=generator)
    with delta.given(keys, values):
        together = tiny(texts)
    for row in range(3):
        with delta.given(keys[[row]], values[[row]]):
            assert torch.allclose(tiny([texts[row]])[0], together[row], atol=1e-5)


def test_an_error_inside_attention_leaves_no_prefix_behind():
    tiny = TinyBackbone()
    before = tiny(["a text"])
    prefix = insert(tiny, "prefix")
    with pytest.raises(RuntimeError):
        tiny.blocks[0].attention(torch.zeros(1, 3, 31), torch.ones(1, 3))
    prefix.switch(False)
    assert torch.equal(tiny(["a text"]), before)


def test_folding_a_reparametrised_prefix_keeps_its_output():
    tiny = TinyBackbone()
    prefix = tiny.attach(Prefix(32, length=4, hidden=16), tiny.block(0).heads)
    before = tiny(["one two", "three"])
    prefix.fold()
    assert torch.allclose(tiny(["one two", "three"]), before, atol=1e-6) and prefix.mlp is None


def test_a_new_point_is_one_line_and_a_contradiction_is_refused():
    tiny = TinyBackbone()
    deltas = insert(tiny, Point(function="gelu", form="sequential", sites=("attention",), size=4, blocks=(1,)))
    assert [delta.site_name for delta in deltas] == ["block 1 attention"]
    for wrong in ({"function": "softmax", "sites": ("mlp",)}, {"function": "relu", "sites": ("heads",)},
                  {"function": "cosine", "sites": ("mlp",)}):  # fmt: skip
        with pytest.raises(EverlearnError):
            Point(**wrong)
    assert {point.composition for point in POINTS["mam"]} == {"gate", "add"}


@pytest.mark.parametrize("kind", ["tiny", "bert", "timm"])
def test_lora_merges_and_unmerges(kind, load_kind):
    backbone, inputs = load_kind(kind)
    deltas, weights = insert(backbone, "lora"), {k: v.clone() for k, v in backbone.state_dict().items()}
    with torch.no_grad():
        [delta.b.normal_(std=0.1, generator=torch.Generator().manual_seed(0)) for delta in deltas]
    sites = [site for i in range(backbone.depth) for site in (backbone.block(i).query, backbone.block(i).value)]
    inserted = backbone(inputs)
    for delta, site in zip(deltas, sites, strict=True):
        delta.merge(site)
    assert torch.allclose(backbone(inputs), inserted, atol=1e-5)
    for delta, site in zip(deltas, sites, strict=True):
        delta.unmerge(site)
    assert all((value - weights[name]).abs().max() <= 1e-6 for name, value in backbone.state_dict().items())
    assert torch.allclose(backbone(inputs), inserted, atol=1e-5)
