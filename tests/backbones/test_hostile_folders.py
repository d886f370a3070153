"""Model folders and adapters that somebody has tampered with: refused in one line, and no code from them ever runs."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import TEXTS, png

from everlearn import backbones
from everlearn.backbones.folder import CONFIG, INDEX, WEIGHTS, ModelFolder
from everlearn.errors import EverlearnError, EverlearnWarning
from everlearn.peft import folder as adapters
from everlearn.peft.interop import load, save
from everlearn.peft.targets import matching, of_layer, targets
from everlearn.peft.unified import insert

ADAPTER, ADAPTER_WEIGHTS = adapters.CONFIG, adapters.WEIGHTS


@pytest.fixture
def copy_of(tmp_path, model_folder):
    """`copy_of("bert")`: a folder of that model which the test may change."""

    def make(kind: str) -> Path:
        shutil.copytree(model_folder(kind), tmp_path / kind)
        return tmp_path / kind

    return make


def edit(file: Path, **changes) -> None:
    file.parent.mkdir(exist_ok=True)
    told = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**told, **changes}))


def with_modules(folder: Path, *kinds: str) -> Path:
    """The folder with these modules of sentence-transformers, whose own files it lacks."""
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{number}_{kind}" if number else ""}
               for number, kind in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def change(file: Path, **tensors) -> None:
    """Replace tensors whose name ends with the given one (a double underscore stands for a dot); None removes them."""
    held = load_file(file)
    for end, make in tensors.items():
        name = next(name for name in held if name.endswith(end.replace("__", ".")))
        if make is None:
            del held[name]
        else:
            held[name] = make(held[name]).contiguous()
    save_file(held, file, {"format": "pt"})


def refused(name: Path | str) -> str:
    """The one line with which the backbone is refused, without hanging."""
    started = time.monotonic()
    with pytest.raises(EverlearnError) as error:
        backbones.load(str(name))
    assert time.monotonic() - started < 60  # mostly the import of the libraries
    line = str(error.value)
    assert line.isprintable() and len(line) < 1500
    return line


# -- nothing in a folder runs or is fetched ----------------------------------------------------------
MODULE = """
from pathlib import Path
Path(__file__).with_name("it-ran").touch()
from transformers import BertConfig, BertModel, BertTokenizerFast
class EvilConfig(BertConfig): model_type = "evil"
class EvilModel(BertModel): config_class = EvilConfig
class EvilTokenizer(BertTokenizerFast): pass
"""
AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel",
            "AutoTokenizer": [None, "evil.EvilTokenizer"]}  # fmt: skip


@pytest.fixture
def nobody_is_asked(monkeypatch):
    def asked(*_):
        pytest.fail("a question was asked on the terminal")

    monkeypatch.setattr(builtins, "input", asked)


@pytest.mark.parametrize("kind", ["bert", "evil"])
def test_code_beside_the_weights_never_runs_and_nobody_is_asked_about_it(
    kind, copy_of, load_kind, nobody_is_asked, tmp_path, monkeypatch
):  # fmt: skip
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = copy_of("bert")
    (folder / "evil.py").write_text(MODULE)
    edit(folder / CONFIG, auto_map=AUTO_MAP, model_type=kind)
    edit(folder / "tokenizer_config.json", auto_map=AUTO_MAP)
    if kind == "evil":
        assert "model_type evil" in refused(folder)
    else:
        plain, inputs = load_kind("bert")
        loaded = backbones.load(str(folder))
        loaded.precision = "float32"
        assert torch.equal(loaded.infer(inputs), plain.infer(inputs))
    assert not list(tmp_path.rglob("it-ran"))


def test_what_config_says_about_running_the_model_is_not_followed(copy_of, load_kind):
    folder = copy_of("bert")
    edit(folder / CONFIG, _attn_implementation="nobody/kernel", attn_implementation="nobody/kernel",
         fusion_config={"patch_embeddings": True}, transformers_weights="../other.bin", name_or_path="nobody/other",
         use_kernels=True, dtype="float16")  # fmt: skip
    edit(folder / "tokenizer_config.json", tokenizer_file="/dev/zero", vocab_file="/dev/zero", gguf_file="../x.gguf",
         fast_tokenizer_files=["/dev/zero"], chat_template="{{ 1 / 0 }}", model_max_length=int(1e30))  # fmt: skip
    plain, _ = load_kind("bert")
    loaded = backbones.load(str(folder))
    assert loaded.identity() == backbones.load(plain.name).identity()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_an_adapter_in_the_folder_does_not_lead_to_another_model(copy_of, load_kind):
    folder, (plain, _) = copy_of("bert"), load_kind("bert")
    edit(folder / ADAPTER, peft_type="LORA", base_model_name_or_path="nobody/x")
    assert backbones.load(str(folder)).digests() == plain.digests()
    (folder / CONFIG).unlink()
    assert CONFIG in refused(folder)


SHARDS = {
    "pickle": "pytorch_model-00001-of-00002.bin", "above": "../model.safetensors", "absolute": "/tmp/model.safetensors",
    "windows": "..\\model.safetensors", "null": "model\0.safetensors", "hidden": ".safetensors", "no text": 3,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("shard", SHARDS)
def test_an_index_names_safetensors_files_beside_it_or_nothing_is_read(shard, kind, copy_of, monkeypatch):
    folder = copy_of(kind)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, SHARDS[shard])}))
    torch.save(tensors, folder / SHARDS["pickle"])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    line = refused(folder)
    assert INDEX in line and ("not a safetensors file" in line or "not a mapping" in line)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"a": 1, "a": 2}'])
def test_an_index_without_a_plain_mapping_is_refused(content, copy_of):
    folder = copy_of("bert")
    (folder / INDEX).write_text(content)
    assert INDEX in refused(folder)


def test_weights_in_several_files_are_read(copy_of, load_kind):
    folder, (plain, _) = copy_of("bert"), load_kind("bert")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: file for file in parts for name in parts[file]}}))
    assert backbones.load(str(folder)).digests() == plain.digests()
    (folder / file).unlink()
    assert "no such file" in refused(folder) and file in refused(folder)


def test_pickled_weights_and_their_index_are_never_read(copy_of):
    folder = copy_of("bert")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "pytorch_model.bin"}}))
    assert "never read" in refused(folder)


def test_a_model_of_the_hub_is_checked_like_a_folder(copy_of, monkeypatch):
    folder = copy_of("bert")
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert backbones.load("owner/model").name == "owner/model"
    (folder / WEIGHTS).rename(folder / "model-1.bin")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "model-1.bin"}}))
    assert "not a safetensors file" in refused("owner/model")
    name, patterns = asked[0]
    assert name == "owner/model" and not any(pattern.endswith((".py", ".bin", "*")) for pattern in patterns)


# -- files that are no files -------------------------------------------------------------------------
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json", "modules.json",
                                  "special_tokens_map.json", "vocab.txt", "1_Pooling/config.json",
                                  "2_Dense/config.json", "sentence_bert_config.json"])  # fmt: skip
@pytest.mark.parametrize("what", ["pipe", "device"])
def test_a_pipe_or_device_in_the_folder_is_not_opened(what, name, copy_of):
    file = with_modules(copy_of("bert"), "Transformer", "Pooling", *["Dense"] * ("Dense" in name)) / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    line = refused(tmp := file.parents[name.count("/")])
    assert str(tmp) in line and name in line and "not a regular file" in line


def test_a_timm_file_that_is_a_pipe_is_not_opened(tmp_path):
    pytest.importorskip("timm")
    os.mkfifo(tmp_path / "test_vit.safetensors")
    assert "not a regular file" in refused(tmp_path / "test_vit.safetensors")


# -- configurations ------------------------------------------------------------------------------------
ABSURD = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "vocabulary": ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
    "larger than the weights": ({"vocab_size": 10**6}, "holds 19,232"),
    "wide": ({"intermediate_size": 10**6}, "holds 19,232"),
    "positions": ({"max_position_embeddings": 10**7}, "holds 19,232"),
    "labels": ({"num_labels": 10**9}, "num_labels is 1000000000"),
    "heads": ({"num_attention_heads": 5}, "cannot be divided among 5"),
    "negative": ({"hidden_size": -32}, "hidden_size is -32"),
    "true": ({"num_hidden_layers": True}, "num_hidden_layers is True, not a whole number"),
    "a text": ({"num_hidden_layers": "2"}, "num_hidden_layers is 2, not a whole number"),
    "a fraction": ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0, not a whole number"),
    "nothing": ({"hidden_size": None}, "hidden_size is None, not a whole number"),
    "another number": ({"chunk_size_feed_forward": 10**12}, "chunk_size_feed_forward is 1000000000000"),
    "inside": ({"pruned_heads": {"0": [10**12]}}, "pruned_heads is 1000000000000"),
    "activation": ({"hidden_act": "nothing"}, "cannot be read"),
    "dropout": ({"hidden_dropout_prob": "much"}, "cannot be read"),
    "padding": ({"pad_token_id": 10**6}, "cannot be read"),
    "no type": ({"model_type": None}, "model_type None"),
    "a list as type": ({"model_type": ["bert"]}, "model_type ['bert']"),
    "another type": ({"model_type": "blip"}, "not a single encoder"),
    "a type that fetches": ({"model_type": "timm_wrapper", "architecture": "hf-hub:nobody/x"}, "not a single encoder"),
    "quantised": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
}


@pytest.mark.parametrize("absurd", ABSURD)
def test_a_configuration_that_cannot_be_is_refused_before_anything_is_built(absurd, copy_of):
    folder = copy_of("bert")
    changes, told = ABSURD[absurd]
    edit(folder / CONFIG, **changes)
    line = refused(folder)
    assert told in line and str(folder / CONFIG) in line


def test_the_own_names_of_an_architecture_have_the_same_ranges(copy_of):
    folder = copy_of("distilbert")
    edit(folder / CONFIG, n_layers=10**9)
    assert "n_layers is 1000000000" in refused(folder)


BROKEN = [b"", b"[]", b"{", b"null", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 10**5]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", [CONFIG, "tokenizer_config.json", "tokenizer.json", "modules.json",
                                  "1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json",
                                  "config_sentence_transformers.json"])  # fmt: skip
def test_a_broken_file_is_one_line_that_names_it(name, content, copy_of):
    if (name, content) in (("modules.json", b"[]"), ("tokenizer.json", b"[]")):
        content = b"7"
    file = with_modules(copy_of("bert"), "Transformer", "Pooling", *["Dense"] * ("Dense" in name)) / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    line = refused(file.parents[name.count("/")])
    assert str(file) in line or (name == "tokenizer.json" and f"the tokenizer in {file.parent}" in line)


@pytest.mark.parametrize("length", [-1, 2, "128", 10**9, True])
def test_a_length_that_cannot_be_is_refused(length, copy_of):
    folder = with_modules(copy_of("bert"), "Transformer", "Pooling")
    edit(folder / "sentence_bert_config.json", max_seq_length=length)
    line = refused(folder)
    assert f"max_seq_length is {length!r}" in line and str(folder / "sentence_bert_config.json") in line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean is"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean is"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is"),
        ({"size": {"height": 10**9}}, "size is"),
        ({"size": -4}, "size is"),
        ({"do_center_crop": "yes"}, "do_center_crop is yes"),
        ({"resample": 9}, "resample is 9"),
        ({"do_normalize": 1}, "do_normalize is 1"),
        ({"do_resize": False}, "do_resize is False, and everlearn would compute other pixels than transformers"),
        ({"do_rescale": False}, "do_rescale is False, and everlearn would compute other pixels than transformers"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"size": 16}, "a model that cannot run"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(changes, told, copy_of):
    folder = copy_of("vit")
    edit(folder / "preprocessor_config.json", **changes)
    line = refused(folder)
    assert told in line and str(folder) in line


@pytest.mark.parametrize(
    ("kind", "told"), [("vit_mae", "5 tokens in its last layer for an input of 17"), ("ijepa", "has no class token")]
)
def test_an_image_encoder_of_which_the_first_token_says_nothing_is_refused(kind, told, tmp_path):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(kind, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                  intermediate_size=64, image_size=32, patch_size=8)  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / kind)
    assert told in refused(tmp_path / kind)


def test_a_text_encoder_that_reads_the_padding_is_refused(copy_of):
    from transformers import ConvBertConfig, ConvBertModel

    folder = copy_of("bert")
    torch.manual_seed(0)
    ConvBertModel(ConvBertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                                 vocab_size=55, max_position_embeddings=40)).save_pretrained(folder)  # fmt: skip
    assert "a model of the type convbert gives a text another feature beside a longer text" in refused(folder)


def test_a_text_encoder_that_fails_in_bfloat16_computes_in_float32(copy_of):
    from transformers import DebertaConfig, DebertaModel

    folder = copy_of("bert")
    DebertaModel(DebertaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                               vocab_size=55, max_position_embeddings=40, relative_attention=True,
                               pos_att_type=["c2p", "p2c"])).save_pretrained(folder)  # fmt: skip
    usual = backbones.load(str(copy_of("vit"))).precision
    with pytest.warns(EverlearnWarning, match="computes in float32") if usual == "bfloat16" else nullcontext():
        encoder = backbones.load(str(folder))
    assert encoder.precision == encoder.training_precision == "float32"


# -- weights and tokenizers ----------------------------------------------------------------------------
def with_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[3] = float("nan")
    return tensor


BAD_TENSORS = {
    "nan": (with_nan, "values that are not finite"),
    "too large for float32": (lambda t: t.double() + 1e300, "values that are not finite in float32"),
    "whole numbers": (lambda t: t.long(), "is torch.int64, not floating-point"),
    "shape": (lambda t: t[:16], "has the shape [16, 32], but in config.json it has [32, 32]"),
    "flat": (lambda t: t.reshape(-1), "has the shape [1024]"),
}


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("bad", BAD_TENSORS)
def test_a_tensor_that_cannot_be_used_is_named(bad, kind, copy_of):
    folder, (make, told) = copy_of(kind), BAD_TENSORS[bad]
    change(folder / WEIGHTS, key__weight=make)
    line = refused(folder)
    assert told in line and str(folder / WEIGHTS) in line
    assert "key.weight" in line or "k_proj.weight" in line  # as the file calls it, or as transformers does


@pytest.mark.parametrize("bad", ["nan", "whole numbers", "shape", "missing", "foreign"])
def test_a_tensor_of_a_timm_file_that_cannot_be_used_is_named(bad, timm_file, tmp_path):
    file, name = tmp_path / "test_vit.safetensors", "blocks.1.mlp.fc1.weight"
    tensors = load_file(timm_file)
    if bad == "missing":
        del tensors[name]
    else:
        make = {**BAD_TENSORS, "foreign": (lambda t: t,)}[bad][0]
        tensors["blocks.99.weight" if bad == "foreign" else name] = make(tensors[name]).contiguous().clone()
    save_file(tensors, file)
    line = refused(f"{file}@32")
    assert str(file) in line and ("blocks.99.weight" if bad == "foreign" else name) in line


def test_position_numbers_of_old_models_may_be_whole_numbers(copy_of, load_kind):
    folder, (plain, _) = copy_of("bert"), load_kind("bert")
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "embeddings.position_ids": torch.arange(40)[None]}, folder / WEIGHTS, {"format": "pt"})
    assert backbones.load(str(folder)).digests() == plain.digests()


@pytest.mark.parametrize("number", [99, 2**32 - 1])  # with the largest number, to print the tokenizer takes minutes
def test_a_tokenizer_of_another_model_is_refused(number, copy_of):
    folder = copy_of("bert")
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"]["new"] = number
    (folder / "tokenizer.json").write_text(json.dumps(told))
    line = refused(folder)  # older releases of tokenizers refuse the largest number themselves
    assert f"the numbers up to {number}, but the model has 55 embeddings" in line or (number > 99 and "[UNK]" in line)


def test_a_tokenizer_without_padding_is_refused(copy_of):
    folder = copy_of("bert")
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert "no padding token" in refused(folder)


def test_a_tokenizer_that_panics_is_one_line(copy_of):
    folder = copy_of("bert")
    told = json.loads((folder / "tokenizer.json").read_text())
    told["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    backbone = backbones.load(str(folder))
    with pytest.raises(EverlearnError, match=r"the tokenizer of backbone .* failed"):
        backbone.prepare(["a" * 40 + "b"])


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert", "modernbert"])
def test_a_long_text_has_a_position_for_each_of_its_tokens(kind, load_kind):
    backbone, _ = load_kind(kind)
    assert backbone.infer(["word1 " * 500]).shape == (1, 32)


# -- names ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a\0b/c", "x" * 10_000, "y/" * 9000, "\x1b[2J", "a\nb", "/dev/zero", "./no/where",
                                  "../x", "owner/../model", "hf-hub:a/b", "a_b", "", "@", "@5", "o/m@5", "vit_[a",
                                  "a_\u202eb", "hf-hub:x_y.safetensors", ".safetensors"])  # fmt: skip
def test_an_odd_name_is_one_line(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(name)


@pytest.mark.parametrize("size", ["0", "-1", "999999", "1e3", "²", "٣", " 32", "32 ", "9" * 2000, "", "17"])
def test_an_image_size_that_cannot_be_is_refused(size, timm_file):
    line = refused(f"{timm_file}@{size}")
    assert "after @" in line


def test_a_file_whose_name_leads_timm_elsewhere_is_refused(tmp_path, timm_file, monkeypatch):
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked for it"))
    for name in ("hf-hub:x.safetensors", "local-dir:x.safetensors", "nothing.safetensors"):
        shutil.copy(timm_file, tmp_path / name)
        assert "no model of timm is called" in refused(tmp_path / name)


def test_the_weights_of_a_timm_name_come_from_a_safetensors_file(timm_file, monkeypatch, tmp_path):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(broken if len(asked) > 1 else timm_file)

    broken = tmp_path / "x.safetensors"
    tensors = load_file(timm_file)
    save_file({**tensors, "norm.weight": with_nan(tensors["norm.weight"])}, broken)
    monkeypatch.delenv("EVERLEARN_WEIGHTS", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    by_name, by_file = backbones.load("test_vit.r160_in1k@32"), backbones.load(f"{timm_file}@32")
    assert by_name.digests() == by_file.digests() and asked == [("timm/test_vit.r160_in1k", WEIGHTS)]
    assert "norm.weight" in refused("test_vit.r160_in1k@32")


def test_a_folder_of_weights_that_does_not_exist_is_named(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setenv("EVERLEARN_WEIGHTS", str(tmp_path / "nowhere"))
    assert "EVERLEARN_WEIGHTS" in refused("vit-tiny") and "No such file" in refused("vit-tiny")


def test_the_features_of_a_checked_folder_are_the_same(load_kind, model_folder):
    for kind, inputs in (("bert", TEXTS), ("vit", [png(1)])):
        folder = ModelFolder(str(model_folder(kind)))
        assert folder.reads_images == (kind == "vit")
        assert torch.isfinite(load_kind(kind)[0].infer(inputs)).all()


# -- adapters --------------------------------------------------------------------------------------------
@pytest.fixture
def adapter(load_kind, tmp_path):
    """A backbone, and a folder with a LoRA for it."""
    backbone, _ = load_kind("bert")
    deltas = insert(backbone, "lora")
    save(deltas, backbone, tmp_path / "adapter")
    deltas.detach(backbone)
    return backbone, tmp_path / "adapter"


def spoil_a_tensor(make):
    return lambda f: change(f / ADAPTER_WEIGHTS, **{"1__attention__self__value__lora_B__weight": make})


def without_a_layer(folder):
    change(folder / ADAPTER_WEIGHTS, **{f"1__attention__self__value__lora_{half}__weight": None for half in "AB"})


def named_shortly(**changes):
    def spoil(folder):
        without_a_layer(folder)
        edit(folder / ADAPTER, **changes)

    return spoil


SPOILED = {
    "missing layer": (without_a_layer, "holds 3 of the 4 layers"),
    "missing layer by name": (named_shortly(target_modules=["query", "value"]), "holds 3 of the 4 layers"),
    "missing layer by pattern": (named_shortly(target_modules=r".*\.(query|value)"), "holds 3 of the 4 layers"),
    "missing layer of all": (named_shortly(target_modules="all-linear"), "holds 3 of the 12 layers"),
    "missing layer of blocks": (named_shortly(target_modules=["query", "value"], layers_to_transform=[1],
                                              layers_pattern="layer"), "holds 1 of the 2 layers"),
    "half a layer": (spoil_a_tensor(None), "1 of 2 tensors are missing, such as 'lora_B'"),
    "more layers": (lambda f: edit(f / ADAPTER, target_modules=["query"]), "holds 2 layers that adapter_config.json"),
    "excluded layers": (lambda f: edit(f / ADAPTER, exclude_modules=["value"]), "holds 2 layers"),
    "no targets": (lambda f: edit(f / ADAPTER, target_modules=None), "names no layer"),
    "nan": (spoil_a_tensor(with_nan), "values that are not finite"),
    "whole numbers": (spoil_a_tensor(lambda t: t.long()), "is int64"),
    "shape": (spoil_a_tensor(lambda t: t[:5]), "has the shape [5, 8]"),
    "rank 0": (lambda f: edit(f / ADAPTER, r=0), "r is 0"),
    "rank true": (lambda f: edit(f / ADAPTER, r=True), "r is True"),
    "alpha infinite": (lambda f: (f / ADAPTER).write_text('{"lora_alpha": Infinity}'), "not finite"),
    "rank of a layer": (lambda f: edit(f / ADAPTER, rank_pattern={"query": "8"}), "rank_pattern is"),
    "patterns": (lambda f: edit(f / ADAPTER, rank_pattern=["query"]), "rank_pattern is"),
    "targets": (lambda f: edit(f / ADAPTER, target_modules={"query": 1}), "target_modules is"),
    "look-ahead": (lambda f: edit(f / ADAPTER, target_modules="(?!x).*query"), "cannot be used as a pattern"),
    "back-reference": (lambda f: edit(f / ADAPTER, alpha_pattern={r"(.)\1": 2}), "cannot be used as a pattern"),
    "layers pattern": (lambda f: edit(f / ADAPTER, target_modules=["query"], layers_to_transform=1,
                                      layers_pattern="(a+)+"), "only plain names"),
    "twice": (lambda f: (f / ADAPTER).write_text('{"peft_type": "LORA", "r": 8, "r": 4}'), "'r' occurs twice"),
    "deep": (lambda f: (f / ADAPTER).write_text("[" * 10**5), "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_spoiled_adapter_is_refused_and_nothing_is_attached(spoiled, adapter):
    backbone, folder = adapter
    spoil, told = SPOILED[spoiled]
    load(backbone, folder).detach(backbone)
    spoil(folder)
    with pytest.raises(EverlearnError) as error:
        load(backbone, folder)
    assert told in str(error.value) and str(folder) in str(error.value) and str(error.value).isprintable()
    assert not backbone.attached


@pytest.mark.parametrize("name", [ADAPTER, ADAPTER_WEIGHTS])
def test_a_pipe_in_an_adapter_is_not_opened(name, adapter):
    backbone, folder = adapter
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(EverlearnError, match="not a regular file"):
        load(backbone, folder)


@pytest.mark.parametrize("folder", ["a\0b", "x" * 10_000])
def test_an_odd_name_of_an_adapter_is_one_line(folder, adapter, tmp_path):
    backbone, _ = adapter
    with pytest.raises(EverlearnError):
        load(backbone, folder)
    deltas = insert(backbone, "lora")
    with pytest.raises(EverlearnError):
        save(deltas, backbone, folder)


def test_a_pattern_that_hangs_other_libraries_takes_no_time():
    started = time.monotonic()
    paths = ["encoder.layer." + "a" * 60 + "!"]
    assert matching("(a+)+$|.*(a+)+(a+)+b", paths, Path(ADAPTER)) == []
    assert of_layer({"(.*a){20}b": 4}, paths, 8, Path(ADAPTER)) == {paths[0]: 8}
    assert time.monotonic() - started < 20  # with `re` it would be years


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "value"]}, {"target_modules": "all-linear"},
        {"target_modules": ["query", "dense"], "exclude_modules": ["output.dense"]},
        {"target_modules": r".*\.(query|key)"}, {"target_modules": r".*layer\.1\..*query", "exclude_modules": "no.*"},
        {"target_modules": ["query", "value"], "layers_to_transform": [1]},
        {"target_modules": ["query"], "layers_to_transform": 1, "layers_pattern": "layer"},
        {"target_modules": ["encoder.layer.0.attention.self.key", "intermediate.dense"], "layers_to_transform": [1]},
    ],
)  # fmt: skip
def test_the_layers_that_are_named_are_those_that_peft_chooses(settings, load_kind):
    peft = pytest.importorskip("peft")
    backbone, _ = load_kind("bert")
    named = targets(settings, backbone.model, Path(ADAPTER))
    model = peft.get_peft_model(backbone.model, peft.LoraConfig(**settings))
    chosen = {name.removeprefix("base_model.model.").partition(".lora_A")[0] for name, _ in model.named_parameters()
              if ".lora_A" in name}  # fmt: skip
    assert set(named) == chosen and named
