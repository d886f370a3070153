"""Adapters in PEFT's format: the peft library and everlearn compute the same from the same folder."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.errors import EverlearnError, EverlearnWarning
from everlearn.peft.folder import CONFIG, PICKLED, WEIGHTS
from everlearn.peft.interop import load, save
from everlearn.peft.lora import LoRA
from everlearn.peft.unified import DeltaSet, Point, insert

peft = pytest.importorskip("peft")

LAYERS = {
    "bert": ("query", "intermediate.dense"),
    "roberta": ("value", "attention.output.dense"),
    "distilbert": ("q_lin", "lin2"),
    "vit": ("v_proj", "fc1"),
    "modernbert": ("Wqkv", "Wo"),
}
UNEQUAL = (Point("linear", ("query", "value"), size=3, scale=0.5, blocks=(0,)),
           Point("linear", ("key",), size=5, scale=2.0, blocks=(1,)))  # fmt: skip
PREFIXED = ("bert", "roberta")


def model_of(kind, model_folder):
    """The encoder as users of the peft library load it."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(model_folder(kind)).eval()


def randomize(deltas):
    """As if trained: nothing is zero, nothing is the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        [p.normal_(std=0.3, generator=generator) for p in deltas.parameters()]
    return deltas


@torch.no_grad()
def ours(backbone, inputs):
    return backbone.hidden(backbone.prepare(inputs)).states


@torch.no_grad()
def theirs(model, backbone, inputs):
    prepared = backbone.prepare(inputs)
    prepared = {"pixel_values": prepared} if isinstance(prepared, torch.Tensor) else prepared
    return model(**prepared).last_hidden_state


@pytest.mark.parametrize("what", ["lora", UNEQUAL], ids=["lora", "unequal"])
@pytest.mark.parametrize("kind", LAYERS)
def test_peft_computes_the_same_from_our_lora(kind, what, load_kind, model_folder, tmp_path):
    backbone, inputs = load_kind(kind)
    before = ours(backbone, inputs)
    deltas = randomize(insert(backbone, what))
    expected = ours(backbone, inputs)
    save(deltas, backbone, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(model_of(kind, model_folder), tmp_path / "adapter")
    assert not torch.allclose(expected, before, atol=0.01)
    assert torch.allclose(theirs(model, backbone, inputs), expected, atol=1e-5)
    deltas.detach(backbone)
    load(backbone, tmp_path / "adapter")
    assert torch.allclose(ours(backbone, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_we_compute_the_same_from_a_lora_of_peft(kind, rslora, load_kind, model_folder, tmp_path):
    backbone, inputs = load_kind(kind)
    before, (first, second) = ours(backbone, inputs), LAYERS[kind]
    if kind == "vit" and not any(name.endswith(first) for name, _ in backbone.model.named_modules()):
        first, second = "value", "intermediate.dense"  # their names in older releases of transformers
    config = peft.LoraConfig(
        target_modules=[first, second], r=3, lora_alpha=7, init_lora_weights=False, use_rslora=rslora,
        rank_pattern={second: 5}, alpha_pattern={f"0.*{first}": 11},
    )  # fmt: skip
    model = peft.get_peft_model(model_of(kind, model_folder), config).eval()
    randomize(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad))
    model.save_pretrained(tmp_path)
    deltas = load(backbone, tmp_path)
    assert sorted({len(delta.a) for delta in deltas}) == [3, 5] and len({delta.scale for delta in deltas}) == 3
    assert not torch.allclose(ours(backbone, inputs), before, atol=0.01)
    assert torch.allclose(ours(backbone, inputs), theirs(model, backbone, inputs), atol=1e-5)


def test_our_folder_says_which_encoder_it_is_for(load_kind, model_folder, tmp_path):
    backbone, inputs = load_kind("bert")
    save(randomize(insert(backbone, "lora")), backbone, tmp_path)
    model = peft.AutoPeftModel.from_pretrained(tmp_path).eval()
    assert torch.allclose(theirs(model, backbone, inputs), ours(backbone, inputs), atol=1e-5)


def test_a_lora_comes_back_as_it_was(load_kind, tmp_path):
    backbone, _ = load_kind("bert")
    saved = randomize(insert(backbone, UNEQUAL))
    save(saved, backbone, tmp_path)
    saved.detach(backbone)
    loaded = load(backbone, tmp_path)
    assert [delta.site_name for delta in loaded] == [delta.site_name for delta in saved]
    assert [delta.scale for delta in loaded] == pytest.approx([delta.scale for delta in saved])
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), saved.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_parts_of_a_fused_projection_of_timm_add_up_to_one_lora(load_kind, tmp_path):
    backbone, inputs = load_kind("timm")
    points = (Point("linear", ("query",), size=2, scale=3.0), Point("linear", ("value",), size=4, scale=0.5))
    deltas = randomize(insert(backbone, points))
    expected = ours(backbone, inputs)
    save(deltas, backbone, tmp_path)
    deltas.detach(backbone)
    loaded = load(backbone, tmp_path)
    assert len(loaded) == backbone.depth and torch.allclose(ours(backbone, inputs), expected, atol=1e-5)
    loaded.detach(backbone)
    peft.PeftModel.from_pretrained(backbone.model, tmp_path)  # puts its layers into this very model
    assert torch.allclose(ours(backbone, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("what", ["prefix", "prefix_mlp"])
@pytest.mark.parametrize("kind", PREFIXED)
def test_peft_has_our_prefix_and_computes_the_same_but_for_the_positions(
    kind, what, load_kind, model_folder, tmp_path
):  # fmt: skip
    backbone, inputs = load_kind(kind)
    before = ours(backbone, inputs)
    deltas = randomize(insert(backbone, what))
    expected = ours(backbone, inputs)
    with pytest.warns(EverlearnWarning, match=r"positions of the text by the length of the prefix \(10\)"):
        save(deltas, backbone, tmp_path)
    model = peft.PeftModel.from_pretrained(model_of(kind, model_folder), tmp_path).eval()
    cache = model.get_prompt(batch_size=1)
    for layer, delta in zip(cache.layers, deltas, strict=True):
        for found, wanted in zip((layer.keys, layer.values), delta.keys_values(), strict=True):
            assert torch.equal(found[0].transpose(0, 1).reshape(10, 32), wanted[0])
    assert not torch.allclose(expected, before, atol=0.01)
    assert not torch.allclose(theirs(model, backbone, inputs), expected, atol=0.01)
    positions = model.base_model.embeddings.position_embeddings.weight
    with torch.no_grad():
        positions[10:] = positions[:-10].clone()  # what PEFT moves up by ten is moved back
    assert torch.allclose(theirs(model, backbone, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("projection", [False, True])
def test_we_have_the_prefix_of_peft(projection, load_kind, model_folder, tmp_path):
    backbone, inputs = load_kind("bert")
    config = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=4, prefix_projection=projection, encoder_hidden_size=16
    )
    model = peft.get_peft_model(model_of("bert", model_folder), config).eval()
    randomize(model.prompt_encoder)
    model.save_pretrained(tmp_path)
    with pytest.warns(EverlearnWarning, match=r"by the length of the prefix \(4\)"):
        deltas = load(backbone, tmp_path)
    rows = torch.cat([delta.vectors for delta in deltas], dim=1)
    assert torch.allclose(rows, model.prompt_encoder["default"](torch.arange(4)), atol=1e-6)
    positions = model.base_model.embeddings.position_embeddings.weight
    with torch.no_grad():
        positions[4:] = positions[:-4].clone()
    assert torch.allclose(theirs(model, backbone, inputs), ours(backbone, inputs), atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "vit"])
@pytest.mark.filterwarnings("ignore::everlearn.errors.EverlearnWarning")
def test_a_prefix_comes_back_as_it_was(kind, load_kind, tmp_path):
    backbone, inputs = load_kind(kind)
    saved = randomize(insert(backbone, "prefix"))
    expected = ours(backbone, inputs)
    save(saved, backbone, tmp_path)
    saved.detach(backbone)
    loaded = load(backbone, tmp_path)
    assert all(torch.equal(a.vectors, b.vectors) for a, b in zip(loaded, saved, strict=True))
    assert torch.equal(ours(backbone, inputs), expected)


# -- what is refused -------------------------------------------------------------------------------
def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def rename(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)


def drop_half(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(name for name in tensors if "lora_A" in name))
    save_file(tensors, folder / WEIGHTS)


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / PICKLED).write_bytes(pickle.dumps({}))


WRONG = {
    "unknown kind": (lambda f: edit(f, peft_type="LOHA"), "unknown peft_type 'LOHA'"),
    "no kind": (lambda f: edit(f, peft_type=["LORA"]), "unknown peft_type"),
    "dora": (lambda f: edit(f, use_dora=True), "everlearn does not support use_dora"),
    "bias": (lambda f: edit(f, bias="lora_only"), "everlearn does not support bias"),
    "lora bias": (lambda f: edit(f, lora_bias=True), "everlearn does not support lora_bias"),
    "modules to save": (lambda f: edit(f, modules_to_save=["pooler"]), "everlearn does not support modules_to_save"),
    "of a later peft": (lambda f: edit(f, use_news={"a": 1}), "everlearn does not support use_news"),
    "pissa": (lambda f: edit(f, init_lora_weights="pissa"), "'pissa' also changed"),
    "rank": (lambda f: edit(f, r=4), "has the shape [8, 32], but in layer"),
    "rank of a layer": (lambda f: edit(f, rank_pattern={"query": 4}), "query' of rank 4 in backbone"),
    "alpha": (lambda f: edit(f, lora_alpha="16"), "value that cannot be used"),
    "pattern": (lambda f: edit(f, alpha_pattern={"(": 1}), "value that cannot be used"),
    "half": (drop_half, "1 of 2 tensors are missing, such as 'lora_A'"),
    "other module": (lambda f: rename(f, lambda n: n.replace("query", "q_proj")), "has a linear layer 'encoder"),
    "other tensor": (lambda f: rename(f, lambda n: n.replace("lora_A", "lora_C")), "is not a LoRA"),
    "pickle": (pickled, "never reads it"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "cannot be read"),
    "no config": (lambda f: (f / CONFIG).unlink(), "no such file"),
    "no json": (lambda f: (f / CONFIG).write_text("{"), "broken JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "unknown peft_type"),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 100), "cannot be read"),
    "renamed pickle": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({})), "cannot be read"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(wrong, load_kind, tmp_path):
    backbone, _ = load_kind("bert")
    deltas = insert(backbone, "lora")
    save(deltas, backbone, tmp_path)
    deltas.detach(backbone)
    spoil, told = WRONG[wrong]
    load(backbone, tmp_path).detach(backbone)
    spoil(tmp_path)
    with pytest.raises(EverlearnError, match=told.replace("[", r"\[")) as refusal:
        load(backbone, tmp_path)
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value) and not backbone.attached


def test_an_adapter_of_another_encoder_is_refused(load_kind, tmp_path):
    (bert, _), (distilbert, _) = load_kind("bert"), load_kind("distilbert")
    save(insert(bert, "lora"), bert, tmp_path / "lora")
    with pytest.raises(EverlearnError, match="linear layer 'encoder"):
        load(distilbert, tmp_path / "lora")
    with pytest.warns(EverlearnWarning):
        save(insert(bert, "prefix"), bert, tmp_path / "prefix")
    edit(tmp_path / "prefix", num_virtual_tokens=9)
    with pytest.raises(EverlearnError, match=r"has the shape \[10, 128\], but in a prefix of 9 tokens"):
        load(bert, tmp_path / "prefix")


@pytest.mark.parametrize("what", ["parallel_adapter", "mam", "deep_prompt"])
def test_what_the_format_has_no_place_for_is_not_saved(what, load_kind, tmp_path):
    backbone, _ = load_kind("bert")
    with pytest.raises(EverlearnError, match="LoRA alone or prefixes alone"):
        save(insert(backbone, what), backbone, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_lora_around_attention_and_an_incomplete_prefix_are_not_saved(load_kind, tmp_path):
    backbone, _ = load_kind("bert")
    around = insert(backbone, Point("linear", ("attention",)))
    with pytest.raises(EverlearnError, match="single linear layers only, and 'block 0 attention'"):
        save(around, backbone, tmp_path)
    with pytest.raises(EverlearnError, match="single linear layers only"):
        save(DeltaSet([LoRA(32, 32)]), backbone, tmp_path)
    first, shorter = Point("softmax", ("heads",), blocks=(0,)), Point("softmax", ("heads",), size=2, blocks=(1,))
    for wrong in (first, (first, shorter)):
        with pytest.raises(EverlearnError, match="one prefix of one length on every block"):
            save(insert(backbone, wrong), backbone, tmp_path)
    timm, _ = load_kind("timm")
    with pytest.raises(EverlearnError, match="not a model of transformers"):
        save(insert(timm, "prefix"), timm, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_kind_is_left_as_it_is(load_kind, tmp_path):
    backbone, _ = load_kind("bert")
    (tmp_path / "model.safetensors").write_text("theirs")
    (tmp_path / CONFIG).write_text("theirs")
    with pytest.raises(EverlearnError, match=r"holds 'model.safetensors'"):
        save(insert(backbone, "lora"), backbone, tmp_path)
    with pytest.raises(EverlearnError, match="is a file"):
        save(insert(backbone, "lora"), backbone, tmp_path / CONFIG)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "model.safetensors": "theirs", CONFIG: "theirs"
    }  # fmt: skip


def test_a_save_that_fails_keeps_the_old_adapter_and_one_that_works_replaces_it(load_kind, tmp_path, monkeypatch):
    backbone, _ = load_kind("bert")
    first = insert(backbone, "lora")
    save(first, backbone, tmp_path / "adapter")
    before = (tmp_path / "adapter" / WEIGHTS).read_bytes()
    randomize(first)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    rename = os.replace

    def last_rename(source, target):
        if Path(target).name == "adapter" and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    for name, fails in (("fsync", full), ("replace", last_rename)):
        with monkeypatch.context() as patch, pytest.raises(EverlearnError, match="No space left"):
            patch.setattr(os, name, fails)
            save(first, backbone, tmp_path / "adapter")
        assert (tmp_path / "adapter" / WEIGHTS).read_bytes() == before
    save(first, backbone, tmp_path / "adapter")
    assert (tmp_path / "adapter" / WEIGHTS).read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_lora_is_saved_and_loaded_without_a_warning(load_kind, tmp_path):
    backbone, _ = load_kind("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(insert(backbone, "lora"), backbone, tmp_path)
        load(backbone, tmp_path)
