"""Insertions as a setting, what is trained, and the weights under a site."""

from __future__ import annotations

import os

import pytest
import torch

from everlearn.backbones.tiny import TinyBackbone
from everlearn.errors import EverlearnError
from everlearn.peft.adapter import Adapter
from everlearn.peft.delta import Site
from everlearn.peft.lora import LoRA
from everlearn.peft.prefix import Prefix
from everlearn.peft.prompt import Prompt
from everlearn.peft.unified import INSERTIONS, Point, insert, read_insertion, train_part

TEXTS = ["one two three", "four"]


# -- an insertion in a text --------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, expected",
    [
        ("lora", ("lora", {})), ("lora()", ("lora", {})), (" lora ", ("lora", {})),
        ("lora(size=4)", ("lora", {"size": 4})), ("lora( size = 4 , scale=.5 )", ("lora", {"size": 4, "scale": 0.5})),
        ("relu(sites=('mlp',), blocks=(0, -1))", ("relu", {"sites": ("mlp",), "blocks": (0, -1)})),
        ("mine(a=None, b='x', c=[1, {'d': 2}])", ("mine", {"a": None, "b": "x", "c": [1, {"d": 2}]})),
    ],
)  # fmt: skip
def test_a_name_and_its_settings_are_read(text, expected):
    assert read_insertion(text) == expected


def test_settings_in_the_text_reach_the_deltas():
    def inserted(what):
        return insert(TinyBackbone(), what)

    lora = inserted("lora(size=4, scale=0.5, sites=('key',))")
    assert [(delta.site_name, len(delta.a), delta.scale) for delta in lora] == [
        ("block 0 key", 4, 0.5), ("block 1 key", 4, 0.5)
    ]  # fmt: skip
    assert [delta.site_name for delta in inserted("lora(blocks=(1,))")] == ["block 1 query", "block 1 value"]
    assert [len(delta.a) for delta in inserted("lora")] == [8] * 4
    assert [delta.site_name for delta in inserted("relu(sites='mlp')")] == ["block 0 mlp", "block 1 mlp"]
    assert [delta.site_name for delta in inserted("relu(sites='mlp', blocks=1)")] == ["block 1 mlp"]
    for text, cls, count, tokens in (("prompt(length=3)", Prompt, 1, 3), ("deep_prompt(length=7)", Prompt, 2, 7),
                                     ("prompt", Prompt, 1, 5), ("prefix(size=6)", Prefix, 2, 6)):  # fmt: skip
        deltas = inserted(text)
        assert len(deltas) == count and all(isinstance(delta, cls) for delta in deltas)
        assert all(len(delta.vectors) == tokens for delta in deltas)
    written = inserted("gelu(sites=('attention', 'mlp'), size=16, form='sequential')")
    named = inserted(Point("gelu", ("attention", "mlp"), size=16, form="sequential"))
    for one, other in zip(written, named, strict=True):
        assert isinstance(one, Adapter) and one.site_name == other.site_name
        assert (one.function, one.form, one.scale, one.down.weight.shape) == ("gelu", "sequential", 1.0, (16, 32))


@pytest.mark.parametrize(
    "text, told",
    [
        ("lroa", "unknown insertion 'lroa': did you mean 'lora'"),
        ("lroa(size=4)", "unknown insertion 'lroa': did you mean 'lora'"),
        ("full", "unknown insertion 'full'"),
        ("lora(rank=4)", "the insertion 'lora' .*'rank'(?=.* blocks)(?=.* form)(?=.* hidden)(?=.* scale)(?=.* size)"),
        ("lora(scal=4)", "the insertion 'lora' .*'scal'(?=.* scale)"),
        ("lora(function='gelu')", "the insertion 'lora' .*'function'(?!.* function)"),
        ("relu(sites=('mlp',), length=4)", "the insertion 'relu' .*'length'(?=.* size)"),
        ("ssf(size=4)", "the insertion 'ssf' .*'size'.* none"),
        ("prompt(size=4)", "the insertion 'prompt' .*'size'"),
        ("houlsby(form='both')", "^insertion.form: 'both' .*: give one of 'parallel', 'sequential'"),
        ("houlsby(scale='x')", "^insertion.scale: 'x' is not of type float: give a number from 1e-06 to 1,000,000"),
        ("lora(sites=5)", r"^insertion.sites: \(5,\) is not of type .*: give a list of texts"),
        ("lora(blocks=(5,))", "^insertion.blocks: backbone 'tiny' has no block 5: its blocks are 0 to 1"),
        ("lora(blocks=(0, 2))", "^insertion.blocks: backbone 'tiny' has no block 2: its blocks are 0 to 1"),
        ("lora(blocks=())", "puts nothing into backbone 'tiny'"),
        ("lora(blocks=-1)", r"^insertion.blocks: \(-1,\) is out of range: give a list of whole numbers from 0 to 999"),
        ("lora(blocks=(1, 1))", "^insertion.blocks: .* give each once"),
        ("relu(sites=('mlp', 'mlp'))", "^insertion.sites: .* give each once"),
        ("lora(size=4, size=5)", "has the setting size twice"),
        ("lora(size=True)", "^insertion.size: True is not of type int"),
        ("lora(size=10001)", "^insertion.size: 10001 is out of range: give a whole number from 1 to 10,000"),
        ("prefix(hidden=-1)", "^insertion.hidden: -1 is out of range: give a whole number from 0 to 10,000"),
        ("lora(scale=1e999)", "^insertion.scale: inf is out of range: give a number from 1e-06 to 1,000,000"),
        ("lora(scale=-1.0)", "^insertion.scale: -1.0 is out of range"),
        ("lora" + 1000 * " " + "(size=4)", "is not an insertion"),
        ("lora(size=" + 300 * "(" + "4" + 300 * ")" + ")", "is not an insertion"),
        ("deep_prompt(length=0)", "^insertion.length: 0 is out of range: give a whole number from 1 to 10,000"),
        ("prompt(length=-1)", "^insertion.length: -1 is out of range: give a whole number from 1 to 10,000"),
        ("prompt(length='a')", "^insertion.length: 'a' is not of type int: give a whole number from 1 to 10,000"),
        ("lora(size=0)", "^insertion.size: 0 is out of range: give a whole number from 1 to 10,000"),
        ("lora(size=-1)", "^insertion.size: -1 is out of range: give a whole number from 1 to 10,000"),
        ("lora(size=2.5)", "^insertion.size: 2.5 is not of type int: give a whole number from 1 to 10,000"),
        ("lora(size='four')", "^insertion.size: 'four' is not of type int"),
        ("lora(sites=('mlpp',))", "unknown site 'mlpp': did you mean 'mlp'"),
        ("gelu(size=16)", "unknown site ''"),
        ("linear", "unknown site ''"),
        ("softmax(sites=('mlp',))", "the function softmax goes with the site 'heads'"),
        ("linear(sites=('mlp',), form='sequential')", "a linear function in sequential form is not supported"),
    ],
)
def test_an_unknown_name_or_setting_is_refused_in_one_line(text, told):
    backbone = TinyBackbone()
    with pytest.raises(EverlearnError, match=told) as refusal:
        insert(backbone, text)
    assert "\n" not in str(refusal.value) and backbone.attached == []


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "lora(size=4", "lora(4)", "lora size=4", "lora; ssf", "lora\nssf", "a.lora", "lora(size=4)(size=5)",
        "lora[0]", "'lora'", "lora, ssf", "lora(size=x)", "lora(size=2**3)", "lora(size=len('abcd'))", "not lora",
    ],
)  # fmt: skip
def test_a_text_of_another_form_is_refused_with_the_names_and_an_example(text):
    with pytest.raises(EverlearnError) as refusal:
        read_insertion(text)
    message = str(refusal.value)
    assert message.startswith(f"{text!r} is not an insertion: ") and message.endswith("as lora(size=4)")
    assert all(name in message for name in INSERTIONS) and "\n" not in message


@pytest.mark.parametrize(
    "code",
    [
        "{call}", "lora(size={call})", "lora(size=[{call}])", "lora({call})", "lora(**{call})",
        "lora(size=4) or {call}", "(lambda: {call})()", "lora(size=f'{{{call}}}')", "lora(size=(x := {call}))",
        "[{call} for x in (1,)]",
    ],
)  # fmt: skip
def test_code_in_the_text_is_never_run(code, tmp_path):
    spoiled = tmp_path / "spoiled"
    text = code.format(call=f"__import__('os').mkdir('{spoiled}')")
    for read in (read_insertion, lambda text: insert(TinyBackbone(), text),
                 lambda text: train_part(TinyBackbone(), text, seed=0)):  # fmt: skip
        with pytest.raises(EverlearnError, match="is not an insertion"):
            read(text)
    assert os.listdir(tmp_path) == []


# -- what is trained ---------------------------------------------------------------------------
def test_full_trains_every_weight_and_head_none():
    backbone = TinyBackbone()
    assert len(train_part(backbone, "full", seed=0)) == 0
    assert all(parameter.requires_grad for parameter in backbone.parameters()) and backbone.attached == []
    assert len(train_part(backbone, "head", seed=0)) == 0
    assert not any(parameter.requires_grad for parameter in backbone.parameters()) and backbone.attached == []


@pytest.mark.parametrize("what", [*INSERTIONS, "lora(size=2)"])
def test_an_insertion_trains_its_own_weights_drawn_from_the_seed(what):
    def values(seed, ambient):
        torch.manual_seed(ambient)
        backbone = TinyBackbone()
        state = torch.get_rng_state()
        deltas = train_part(backbone, what, seed=seed)
        assert torch.equal(state, torch.get_rng_state())  # the draws of others go on as before
        assert list(deltas) == backbone.attached and not backbone.is_frozen
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert all(parameter.requires_grad for parameter in deltas.parameters())
        return [parameter.detach().clone() for parameter in deltas.parameters()]

    one, again, other = values(3, 0), values(3, 1), values(4, 0)
    assert len(one) > 0 and all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    if what != "ssf":  # it begins as the identity, without a draw
        assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- the weight under a site -------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["tiny", "bert", "distilbert", "modernbert", "vit", "timm"])
def test_the_weight_of_a_site_computes_its_output(kind, load_kind):
    backbone, inputs = load_kind(kind)
    for index in range(backbone.depth):
        for name in ("query", "key", "value"):
            site = getattr(backbone.block(index), name)
            seen = []
            hook = site.leave.register_forward_hook(lambda _, args, output, seen=seen: seen.append((args[0], output)))
            backbone.infer(inputs)
            hook.remove()
            assert site.weight.shape == (site.out_width, site.width)
            x, y = seen[0]
            columns = site.columns or slice(None)
            bias = None if site.leave.bias is None else site.leave.bias[columns]
            expected = torch.nn.functional.linear(x, site.weight, bias)
            assert torch.allclose(y[..., columns], expected, atol=1e-5), name
            assert not torch.allclose(y[..., columns], 0 * expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["modernbert", "timm"])
def test_of_a_fused_projection_a_site_has_its_own_rows_and_writes_to_them_alone(kind, load_kind):
    backbone, _ = load_kind(kind)
    block = backbone.block(1)
    sites = [block.query, block.key, block.value]
    fused, width = sites[0].leave.weight, backbone.width
    assert fused.shape == (3 * width, width) and all(site.leave is sites[0].leave for site in sites)
    before = fused.detach().clone()
    for part, site in enumerate(sites):
        rows = slice(part * width, (part + 1) * width)
        assert torch.equal(site.weight, before[rows])
        with torch.no_grad():
            site.weight.add_(1.0)
        changed = before.clone()
        changed[rows] += 1.0
        assert torch.equal(fused, changed)
        with torch.no_grad():
            fused.copy_(before)


def test_a_site_without_a_layer_has_no_weight():
    backbone = TinyBackbone()
    block = backbone.block(0)
    assert backbone.tokens.weight is None and block.heads.weight is None and block.output.weight is None
    assert block.attention.weight is backbone.blocks[0].attention.dense.weight
    for site in block.operations:
        assert site.weight is site.leave.weight


def test_a_delta_knows_its_site_while_attached():
    backbone = TinyBackbone()
    site = backbone.block(1).value
    delta = backbone.attach(LoRA(32, 32, rank=2), site)
    assert delta.site is site and delta.site.weight is backbone.blocks[1].attention.value.weight
    backbone.detach(delta)
    layer = torch.nn.Linear(6, 4)
    other = LoRA(6, 4, rank=2)
    other.attach(Site("here", layer, layer, 6, 4))
    before = layer.weight.detach().clone()
    with torch.no_grad():
        other.b.normal_(generator=torch.Generator().manual_seed(0))
    other.merge(other.site)
    assert torch.allclose(layer.weight, before + other.scale * other.b @ other.a) and not other.is_active
