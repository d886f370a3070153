"""Folders of SetFit: written with a head that is no pickle, read with equal answers, and refused with a reason."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import everlearn
from everlearn.cli import main
from everlearn.errors import EverlearnError
from everlearn.protocol import run
from everlearn.streams import Record, from_rows, task_from
from everlearn.streams.stream import Stream

sys.path.append(str(Path(__file__).parent / "backbones"))
from small_models import save_model

WORDS = ["word1 word2 word3", "word7 word8 word9 " * 3, "word4"]


def stream(classes: int) -> Stream:
    """Six texts of words of its own for each class, in tasks of two classes."""
    of, number = np.divmod(np.arange(6 * classes), 6)
    texts = [f"word{3 * k + i % 3 + 1} word{3 * k + i % 2 + 1} " * (1 + i % 2) for k, i in zip(of, number, strict=True)]
    return from_rows(texts, [f"class {k}" for k in of], tasks=classes // 2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of SetFit and its export."""
    pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("setfit")
    save_model("bert", folder / "encoder")
    method = {"name": "setfit", "pairs": 2, "lr": 1e-3}
    run(method, stream(4), backbone=str(folder / "encoder"), out=folder / "run")
    assert main(["export", str(folder / "run"), "--to", "setfit", "--out", str(folder / "out")]) == 0
    return folder


def exact(model: everlearn.model.Model) -> everlearn.model.Model:
    next(model.method.backbone.parameters())  # an encoder that is only remembered is loaded
    model.method.backbone.precision = "float32"
    return model


def test_the_folder_answers_as_the_model(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, again = exact(everlearn.load(exported / "run")), exact(everlearn.load(exported / "out"))
    assert again.class_names == model.class_names and len(again.class_names) > 2
    assert np.allclose(again.predict_proba(WORDS), model.predict_proba(WORDS), atol=1e-5)
    assert np.ptp(model.predict_proba(WORDS), axis=0).max() > 1e-3  # they are told apart
    (tmp_path / "asked.txt").write_text("\n".join(WORDS))
    assert main(["predict", str(exported / "out"), "--input", str(tmp_path / "asked.txt"), "--json"]) == 0
    assert [row["prediction"] for row in json.loads(capsys.readouterr().out)] == model.predict(WORDS)
    assert not list((exported / "out").rglob("*.pkl"))
    with pytest.raises(EverlearnError, match=r"keeps no examples.*--method setfit"):
        everlearn.engine.learn(again.method, task_from([Record("a", "new")], again.class_names, index=1))
    with pytest.raises(EverlearnError, match=r"keeps no examples.*--method setfit"):
        again.update([Record("a", "new")])
    assert main(["update", str(exported / "out"), "--data", str(tmp_path / "asked.txt")]) == 2
    assert "keeps no examples" in capsys.readouterr().err
    for asked in ({"version": 2}, {"method": "lda"}):
        with pytest.raises(EverlearnError, match="neither versions nor another method"):
            everlearn.load(exported / "out", **asked)


def test_two_classes_and_a_temperature(exported: Path, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    run("logistic", stream(2), backbone=str(exported / "encoder"), out=tmp_path / "run")
    model = exact(everlearn.load(tmp_path / "run"))
    model.temperature = 0.7
    model.export("setfit", tmp_path / "out")
    expected = model.predict_proba(WORDS)
    assert np.allclose(exact(everlearn.load(tmp_path / "out")).predict_proba(WORDS), expected, atol=1e-5)
    head, held = LogisticRegression(), load_file(tmp_path / "out" / "model_head.safetensors")
    head.coef_, head.intercept_, head.classes_ = held["coef_"].numpy(), held["intercept_"].numpy(), np.arange(2)
    features = torch.nn.functional.normalize(torch.from_numpy(model.embed(WORDS))).numpy()
    assert np.allclose(head.predict_proba(features), expected, atol=1e-5)


def to_pickle(folder: Path) -> None:
    (folder / "model_head.safetensors").unlink()
    (folder / "model_head.pkl").write_bytes(pickle.dumps(Trap(folder.parent / "was-run")))


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def change(**changes: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "config_setfit.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return write


def other_shape(folder: Path) -> None:
    save_file({"coef_": torch.zeros(4, 3), "intercept_": torch.zeros(4)}, folder / "model_head.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (to_pickle, r"model_head.pkl is a pickle, which can run code .*: fit the head again .*--method logistic"),
        (lambda folder: (folder / "model_head.safetensors").unlink(), r"holds no model_head.safetensors: fit the head"),
        (change(labels=["a", "a", "b", "c"]), "labels is .*, not different names"),
        (change(labels=None), "labels is None, not different names"),
        (change(labels=["one"]), "fewer than two classes"),
        (change(normalize_embeddings=False), "not normalised: export it again"),
        (other_shape, r"the tensor 'coef_' has the shape \[4, 3\], but in config_setfit.json it has"),
        (lambda folder: (folder / "config_setfit.json").write_text("{"), "config_setfit.json"),
        (lambda folder: (folder / "model_head.safetensors").write_bytes(b"x"), "damaged or incomplete"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(
    damage: Callable[[Path], None], message: str, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported / "out", tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(EverlearnError, match=message) as raised:
        everlearn.load(tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "was-run").exists()


def test_a_pickled_head_does_not_keep_the_encoder_from_being_read(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "out", tmp_path / "out")
    to_pickle(tmp_path / "out")
    rows = [f"word{number} word{number + label},{label}" for label in (2, 7) for number in range(1, 6)]
    (tmp_path / "examples.csv").write_text("\n".join(["text,label", *rows]))
    command = ["run", "--stream", str(tmp_path / "examples.csv"), "--tasks", "1", "--backbone", str(tmp_path / "out"),
               "--method", "logistic", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(command) == 0
    assert everlearn.load(tmp_path / "run").class_names == ["2", "7"]
    assert not (tmp_path / "was-run").exists()


def test_other_heads_are_not_written(exported: Path, tmp_path: Path) -> None:
    run("lda", stream(2), backbone=str(exported / "encoder"), out=tmp_path / "run")
    with pytest.raises(EverlearnError, match="SetFit's head is logistic regression, and LDA answers by something else"):
        everlearn.load(tmp_path / "run").export("setfit", tmp_path / "out")
    assert not (tmp_path / "out").exists()
