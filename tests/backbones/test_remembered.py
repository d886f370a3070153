"""Encoders that are loaded only where they must encode: never a feature of other weights, never an answer made up."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from small_models import TEXTS

from everlearn import backbones, methods, streams
from everlearn.backbones import load_when_needed, remembered
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.remembered import KNOWN, Remembered, facts_of
from everlearn.cli import main
from everlearn.errors import EverlearnError
from everlearn.model import load
from everlearn.protocol import resume, run


@pytest.fixture
def folder(model_folder, tmp_path, monkeypatch):
    """The folder of a small encoder, which is not remembered yet."""
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(model_folder("bert"), tmp_path / "bert")


@pytest.fixture
def known(folder):
    """The encoder in the folder, remembered and not loaded."""
    assert load_when_needed(str(folder)).is_loaded
    backbone = load_when_needed(str(folder))
    assert type(backbone) is Remembered and not backbone.is_loaded
    return backbone


def test_what_is_known_is_what_the_encoder_would_answer(folder, known):
    encoder = backbones.load(str(folder))
    for name in (
        "name",
        "reads",
        "width",
        "depth",
        "precision",
        "training_precision",
        "settings",
        "is_frozen",
        "device",
    ):
        assert getattr(known, name) == getattr(encoder, name), name
    assert known.identity() == encoder.identity() and known.digests() == encoder.digests()
    assert known.encoders() == [known] and known.active == [] and not known.eval().training
    assert not known.is_loaded


def test_stored_features_are_read_without_the_encoder_and_new_ones_are_those_of_it(folder, known):
    truth = backbones.load(str(folder)).encode(TEXTS)
    assert torch.equal(known.encode(TEXTS), truth) and not known.is_loaded
    assert torch.equal(known.encode(["word3 word9"]), backbones.load(str(folder)).encode(["word3 word9"]))
    assert known.is_loaded and type(known) is type(backbones.load(str(folder)))


@pytest.mark.parametrize("ask", [
    lambda b: list(b.parameters()), lambda b: list(b.named_parameters()), lambda b: list(b.modules()),
    lambda b: list(b.named_modules()), lambda b: list(b.children()), lambda b: b.state_dict(), lambda b: b.block(0),
    lambda b: b.tokens, lambda b: b.model, lambda b: b.requires_grad_(True), lambda b: b.lengths(TEXTS),
    lambda b: b(TEXTS), lambda b: b.infer(TEXTS), lambda b: setattr(b, "precision", "float32"),
    lambda b: list(b.buffers()), lambda b: b.get_parameter("model.embeddings.word_embeddings.weight"),
])  # fmt: skip
def test_every_other_question_is_answered_by_the_encoder(folder, known, ask):
    encoder = backbones.load(str(folder))
    wanted, found = ask(encoder), ask(known)
    assert known.is_loaded and type(known) is type(encoder)
    if isinstance(wanted, list | dict | torch.Tensor):
        assert len(wanted) == len(found) > 0
    assert len(list(known.parameters())) == len(list(encoder.parameters()))
    assert {p.requires_grad for p in known.parameters()} == {p.requires_grad for p in encoder.parameters()}


def test_only_what_is_listed_is_answered_without_the_encoder():
    public = {name for name in dir(Backbone) if not name.startswith("_")}
    assert {"forward", "infer", "parameters", "modules", "children", "block", "lengths", "to"} <= public - KNOWN
    own = {name for name in vars(Remembered) if not name.startswith("_")}
    inherited = {"active", "attached", "depth", "encode", "encoders", "eval", "identity", "layers", "name", "origin",
                 "place", "precision", "pretrained", "reads", "settings", "training", "training_precision", "width",
                 "doubt", "class_features", "is_image_text", "rounding", "together"}  # fmt: skip
    assert own | inherited == KNOWN


def test_a_copy_of_one_that_is_not_loaded_is_one_too(known):
    twin = copy.deepcopy(known)
    assert len(list(twin.parameters())) > 0 and twin.is_loaded and not known.is_loaded


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "tokenizer.json", "modules.json"])
def test_a_file_that_changes_has_the_encoder_loaded_again(folder, known, changed):
    """Also with the same length, and with the times of the file as they were."""
    file = folder / changed
    before = file.stat() if file.exists() else None
    if changed == "model.safetensors":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1  # the last belong to the pooler, which is not used
    else:
        data = file.read_bytes() + b" " if before else b"[]"
    file.write_bytes(data)
    if before:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = load_when_needed(str(folder))
    assert again.is_loaded
    if changed == "model.safetensors":
        assert again.identity() != known.identity()


def test_other_libraries_or_code_have_the_encoder_loaded_again(folder, known, monkeypatch):
    monkeypatch.setattr(remembered, "_version", lambda library: "other")
    assert load_when_needed(str(folder)).is_loaded


def test_weights_that_change_before_they_are_needed_are_one_clear_line(folder, known):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(EverlearnError, match="were changed while they were in use: start again") as error:
        known.encode(TEXTS)
    assert "\n" not in str(error.value) and not list(remembered.cache_root().glob("*/*.f32"))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"sha256": "0", "facts": {}}', None])
def test_a_damaged_memory_is_dropped_with_a_line(folder, known, data, caplog):
    (file,) = (remembered.cache_root().parent / "backbones").iterdir()
    if data is None:  # well formed, with one digit changed
        kept = json.loads(file.read_text())
        kept["facts"]["width"] += 1
        data = json.dumps(kept).encode()
    file.write_bytes(data)
    with caplog.at_level("WARNING", "everlearn"):
        assert load_when_needed(str(folder)).is_loaded
    assert "is damaged and was dropped" in caplog.text and len(caplog.records) == 1
    assert not load_when_needed(str(folder)).is_loaded


def test_a_memory_that_cannot_be_written_is_done_without(folder, monkeypatch):
    monkeypatch.setattr(remembered, "write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert load_when_needed(str(folder)).is_loaded and load_when_needed(str(folder)).is_loaded


RUN = """
import sys
from everlearn.cli import main
code = main(sys.argv[1:])
assert "transformers" not in sys.modules, "the encoder was loaded"
sys.exit(code)
"""


def rows(tmp_path):
    file = tmp_path / "rows.csv"
    lines = [f"word{i % 25 + 25 * (i % 2)} word{i},{'ab'[i % 2]}" for i in range(48)]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("method", ["simplecil", "lda", "klda", "fecam", "logistic", "ranpac"])
def test_a_run_whose_features_are_stored_needs_no_encoder(folder, tmp_path, method, monkeypatch):
    settings = {"ranpac": {"width": 64, "first_session": False}, "klda": {"rff": 32}}.get(method, {})
    stream = {"name": str(rows(tmp_path)), "tasks": 1}
    cold = run({"name": method, **settings}, stream, backbone=str(folder), out=tmp_path / "cold")
    monkeypatch.setattr(Remembered, "_become", lambda self: pytest.fail("the encoder was loaded"))
    warm = run({"name": method, **settings}, stream, backbone=str(folder), out=tmp_path / "warm")
    assert warm.accuracy_matrix == cold.accuracy_matrix and warm.stored_bytes == cold.stored_bytes
    one, two = load(tmp_path / "cold"), load(tmp_path / "warm")
    texts = streams.load(**stream)[0].test.bare()
    assert (one.predict_proba(texts) == two.predict_proba(texts)).all()
    assert resume(tmp_path / "warm").final_accuracy == cold.final_accuracy


def trains_on_classes(name: str) -> bool:
    tags = methods.get(name).tags
    return tags.trains != "nothing" and "classes" in tags.goals and "text" in tags.inputs


@pytest.mark.parametrize("method", [name for name in methods.names() if trains_on_classes(name)])
def test_methods_that_train_get_the_encoder(folder, tmp_path, method):
    """With the same result as from an encoder that was loaded at once."""
    cls = methods.get(method)
    settings = {"epochs": 1} if "epochs" in cls.__signature__.parameters else {}
    settings |= {"width": 64} if method == "ranpac" else {}
    stream = streams.load(str(rows(tmp_path)), tasks=1)
    outcomes = []
    for make in (backbones.load, load_when_needed, load_when_needed):
        result = run(cls(make(str(folder)), **settings), stream)
        outcomes.append((result.accuracy_matrix, result.trainable_parameters, result.stored_bytes))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_warm_command_imports_no_library_of_encoders(folder, tmp_path):
    arguments = [
        "run",
        "--method",
        "simplecil",
        "--stream",
        str(rows(tmp_path)),
        "--backbone",
        str(folder),
        "--tasks",
        "1",
    ]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    command = [sys.executable, "-c", RUN, *arguments, "--out", str(tmp_path / "b")]
    warm = subprocess.run(command, capture_output=True, text=True)
    assert warm.returncode == 0, warm.stderr


def test_facts_are_equal_to_themselves(folder):
    one, two = backbones.load(str(folder)), backbones.load(str(folder))
    assert facts_of(one) == facts_of(two)
