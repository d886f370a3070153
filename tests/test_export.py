"""Exports: another library gives equal answers, or the export is refused with the reason and nothing is written."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import everlearn
from everlearn import backbones
from everlearn import export as exports
from everlearn.cli import main
from everlearn.errors import EverlearnError
from everlearn.protocol import run
from everlearn.streams.stream import Stream
from everlearn.testing.toy import toy_stream

sys.path.append(str(Path(__file__).parent / "backbones"))
from small_models import save_model

WORDS = [f"word{a} word{b} word{c} " * n for a, b, c, n in ((1, 2, 3, 1), (7, 8, 9, 2), (4, 4, 5, 4), (11, 2, 20, 9))]
"""Texts of different lengths, the last longer than the encoder reads."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    save_model("bert", folder)
    return folder


def learned(method: object, encoder: Path | str, folder: Path, stream: Stream | None = None) -> everlearn.model.Model:
    run(method, stream or toy_stream(tasks=2), backbone=str(encoder), out=folder)
    model = everlearn.load(folder)
    next(model.method.backbone.parameters())  # an encoder that is only remembered is loaded
    model.method.backbone.precision = "float32"
    return model


def cosines(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)


SENTENCES = [("lda", "classes"), ({"name": "er", "epochs": 1, "lr": 0.01}, "classes"),
             ({"name": "er", "train": "lora", "epochs": 2, "lr": 0.05}, "classes"),
             ({"name": "finetune", "train": "lora", "epochs": 2, "lr": 0.05}, "ranking")]  # fmt: skip


@pytest.mark.parametrize("method, goal", SENTENCES)
def test_sentence_transformers_embeds_as_the_model(method: object, goal: str, bert: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = learned(method, bert, tmp_path / "run", toy_stream(goal=goal, tasks=2))
    assert main(["export", str(tmp_path / "run"), "--to", "sentence-transformers", "--out", str(tmp_path / "out")]) == 0
    loaded = library.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    assert cosines(model.embed(WORDS), loaded.encode(WORDS)).min() > 0.99999
    # Everlearn reads what it has written.
    again = backbones.load(str(tmp_path / "out"))
    again.precision = "float32"
    assert cosines(model.embed(WORDS), again.infer(WORDS).cpu().numpy()).min() > 0.99999
    if method != "lda":  # the test can fail: the trained encoder is another one
        plain = backbones.load(str(bert))
        plain.precision = "float32"
        assert cosines(model.embed(WORDS), plain.infer(WORDS).cpu().numpy()).min() < 0.999
    before = model.embed(WORDS)
    model.export("sentence-transformers", tmp_path / "second")  # the model itself is unchanged
    assert np.array_equal(model.embed(WORDS), before)


# Solved on so few images, a wider head of ranpac would make 0.002 of a rounding of 0.000001.
CLASSIFIERS = [({"name": "ewc", "train": "houlsby", "epochs": 1}, "bert"),
               ({"name": "ranpac", "width": 10, "first_session": False}, "vit")]  # fmt: skip


@pytest.mark.parametrize("method, kind", CLASSIFIERS)
def test_onnx_answers_as_the_model(method: object, kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (tmp_path / "encoder").mkdir()
    save_model(kind, tmp_path / "encoder")
    stream = toy_stream("image" if kind == "vit" else "text", tasks=2)
    model = learned(method, tmp_path / "encoder", tmp_path / "run", stream)
    model.export("onnx", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "everlearn.json").read_text())
    assert told["classes"] == model.class_names and told["temperature"] == model.temperature
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = WORDS if kind == "bert" else stream[1].test.inputs
    for n in (1, 2, 4):
        if kind == "bert":
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
            given = dict(tokenizer(inputs[:n], truncation=True, max_length=told["max_length"], padding=True,
                                   return_tensors="np", return_token_type_ids=False))  # fmt: skip
        else:
            given = {"pixel_values": model.method.backbone.prepare(inputs[:n]).cpu().numpy()}
        scores, probabilities = session.run(["scores", "probabilities"], given)
        with torch.no_grad():
            expected = model.method.head(model.method.backbone.infer(inputs[:n])).float().cpu().numpy()
        assert np.allclose(scores, expected, rtol=1e-3, atol=1e-3)
        assert np.allclose(probabilities, model.predict_proba(inputs[:n]), atol=1e-3)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_onnx_of_the_tiny_encoder(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = learned("lda", "tiny", tmp_path / "run", toy_stream(kind, tasks=2))
    assert (model.export("onnx", tmp_path / "out") / "model.onnx").is_file(), "which compared the answers to 1 and more"


def test_onnx_that_cannot_be_read_or_written_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = learned("lda", "tiny", tmp_path / "run")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.onnx, "export", fail)
    error: Exception = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(EverlearnError, match=r"cannot be written .No space left on device.: free some space"):
        model.export("onnx", tmp_path / "out")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    error = RuntimeError("invalid dimensions")
    with pytest.raises(EverlearnError, match="LDA on 'tiny' computes something that torch cannot write to ONNX"):
        model.export("onnx", tmp_path / "out")


REFUSED = [
    ("l2p", "onnx", "computes the features of each input in its own way"),
    ("l2p", "sentence-transformers", "computes the features of each input in its own way"),
    ("task_adapters", "onnx", "does more for a prediction than its head on a feature"),
    ("knn", "onnx", "compares each input with the features of all examples"),
    ({"name": "ewc", "train": "houlsby", "epochs": 1}, "sentence-transformers", "only LoRA can be merged"),
    ("lda", "pickle", "unknown format 'pickle'"),
]


@pytest.mark.parametrize("method, to, message", REFUSED)
def test_what_cannot_be_equal_is_refused(method: object, to: str, message: str, bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("onnxscript")
    run({"name": method, "epochs": 1} if method in ("l2p", "task_adapters") else method, toy_stream(tasks=2),
        backbone=str(bert), out=tmp_path / "run")  # fmt: skip
    with pytest.raises(EverlearnError, match=message):
        everlearn.load(tmp_path / "run").export(to, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_other_reasons_to_refuse(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    model = learned("lda", "tiny", tmp_path / "tiny")
    with pytest.raises(EverlearnError, match="this run's encoder 'tiny' is none"):
        model.export("sentence-transformers", tmp_path / "out")
    run("lda", toy_stream(tasks=2), backbone=f"{bert}@layers=2", out=tmp_path / "layers")
    with pytest.raises(EverlearnError, match=f"joins the features of 2 layers.*learn with --backbone {bert}$"):
        everlearn.load(tmp_path / "layers").export("sentence-transformers", tmp_path / "out")
    model = learned("lda", bert, tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(EverlearnError, match="exists already"):
        model.export("sentence-transformers", tmp_path / "full")
    ranking = toy_stream(goal="ranking", tasks=2)
    one_side = learned({"name": "lora", "epochs": 1, "side": "query"}, bert, tmp_path / "one side", ranking)
    with pytest.raises(EverlearnError, match=r"documents by the one it began with \(side=query\).*--method.side both$"):
        one_side.export("sentence-transformers", tmp_path / "out")
    monkeypatch.setattr(exports, "LEAST_COSINE", 1.1)  # as if the library gave other embeddings
    with pytest.raises(EverlearnError, match="the embeddings of the export differ"):
        model.export("sentence-transformers", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EverlearnError, match=r"needs the library sentence_transformers: pip install 'everlearn\[retr"):
        model.export("sentence-transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model = learned({"name": "finetune", "epochs": 1}, bert, tmp_path / "ranking", ranking)
    pytest.importorskip("onnxruntime")
    with pytest.raises(EverlearnError, match="an ONNX file holds a classifier, and this run ranks documents"):
        model.export("onnx", tmp_path / "out")
