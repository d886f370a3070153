"""`everlearn merge`: runs that learned different data become one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import everlearn
from everlearn import versions
from everlearn.cli import main
from everlearn.errors import EverlearnError
from everlearn.merge import average
from everlearn.model import merge, update
from everlearn.protocol import run
from everlearn.streams import Record, from_rows
from everlearn.testing.toy import toy_text

SMALL = {"epochs": 6, "batch_size": 8, "lr": 0.01}


def texts(label: int, count: int = 20, seed: int = 7) -> list[str]:
    import random

    draw = random.Random(seed)
    return [f"{toy_text(label, draw)} {seed}{n}" for n in range(count)]


def learned(folder: Path, labels: tuple[int, ...], method: dict | str = "simplecil", seed: int = 0, **options) -> Path:
    """A run that has learned these classes, two a task."""
    found = [(text, f"class {label}") for label in labels for text in texts(label, seed=label)]
    stream = from_rows([text for text, _ in found], [name for _, name in found], tasks=2, **options)
    run(method, stream, backbone="tiny", out=folder, seed=seed)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    lora = {"name": "lora", **SMALL}
    full = {"name": "finetune", **SMALL, "lr": 1e-3}
    return {
        "sums": learned(place / "sums", (0, 1, 2, 3)),
        "sums too": learned(place / "sums-too", (3, 5, 1, 4)),
        "lora": learned(place / "lora", (0, 1, 2, 3), lora, validation=0.2),
        "lora too": learned(place / "lora-too", (3, 5, 1, 4), lora, validation=0.2),
        "full": learned(place / "full", (0, 1, 2, 3), full), "full too": learned(place / "full-too", (3, 4), full),
        "other seed": learned(place / "seed", (0, 1), lora, seed=1), "er": learned(place / "er", (0, 1), "er"),
    }  # fmt: skip


def union(*folders: Path) -> list[str]:
    """The names of the classes of these runs: those of the first in its order, then the new ones of the next."""
    return list(dict.fromkeys(name for folder in folders for name in everlearn.load(folder).class_names))


def test_sums_merge_as_if_one_run_had_learned_all(runs, tmp_path: Path) -> None:
    model, version = merge([runs["sums"], runs["sums too"]], tmp_path / "both")
    names = union(runs["sums"], runs["sums too"])
    assert model.class_names == names and len(names) == 6 and version.new_classes == names[4:]
    assert (version.version, version.merged) == (2, {"how": "exact", "weights": None})
    assert version.old["after"] > 0.8 and version.new["after"] > version.new["before"]
    loaded = everlearn.load(tmp_path / "both")
    asked = [text for label in range(6) for text in texts(label, 5, 99)]
    assert np.array_equal(loaded.predict_proba(asked), model.predict_proba(asked))
    right = np.mean([name == f"class {k // 5}" for k, name in enumerate(loaded.predict(asked))])
    assert right > 0.8
    counts = dict(zip(loaded.class_names, loaded.method.head.counts.tolist(), strict=True))
    single = [everlearn.load(runs[name]) for name in ("sums", "sums too")]
    for name in names:
        own = [dict(zip(one.class_names, one.method.head.counts.tolist(), strict=True)).get(name, 0) for one in single]
        assert counts[name] == sum(own) > 0


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("how", ["average", "ties", "dare", "fisher"])
def test_trained_weights_are_averaged_and_rows_belong_to_classes(runs, tmp_path: Path, kind: str, how: str) -> None:
    if (kind, how) == ("full", "fisher"):
        with pytest.raises(EverlearnError, match="keeps no validation examples"):
            merge([runs["full"], runs["full too"]], tmp_path / "both", how=how)
        assert not (tmp_path / "both").exists()
        return
    folders = [runs[kind], runs[f"{kind} too"]]
    options = {"weights": [3, 1]} if how == "average" else {"density": 1.0, "drop": 0.5}
    model, version = merge(folders, tmp_path / "both", how=how, **options)
    one, two = (everlearn.load(folder) for folder in folders)
    loaded = everlearn.load(tmp_path / "both")
    first, second = (dict(each.method.trained()) for each in (one, two))
    for name, found in loaded.method.trained().items():
        if name.startswith("head."):
            for place, class_name in enumerate(loaded.class_names):
                rows = [part[name][each.class_names.index(class_name)]
                        for part, each in ((first, one), (second, two)) if class_name in each.class_names]  # fmt: skip
                assert len(rows) == 2 or torch.equal(found[place], rows[0])
        elif how == "average":
            torch.testing.assert_close(found, average([first, second], [3, 1])[name])
        elif how == "fisher":
            low, high = torch.minimum(first[name], second[name]), torch.maximum(first[name], second[name])
            assert ((found >= low - 1e-5) & (found <= high + 1e-5)).all()
    assert version.merged["how"] == how and set(loaded.class_names) == {*one.class_names, *two.class_names}
    assert version.old["examples"] > 0 and version.new["examples"] > 0
    asked = texts(0, 5, 99)
    assert np.array_equal(loaded.predict_proba(asked), model.predict_proba(asked))


@pytest.mark.parametrize("target", [0.0, 0.9, 1.0])
def test_interpolation_keeps_the_target(runs, tmp_path: Path, target: float) -> None:
    asked = [(text, f"class {label}") for label in range(4) for text in texts(label, 12, 55)]
    data = tmp_path / "validation.csv"
    data.write_text("\n".join(["text,label", *(f"{text},{name}" for text, name in asked)]))
    command = ["merge", str(runs["lora"]), str(runs["lora too"]), "--out", str(tmp_path / "both")]
    assert main([*command, "--how", "interpolate", "--target-old", str(target), "--data", str(data)]) == 0
    first, both = everlearn.load(runs["lora"]), everlearn.load(tmp_path / "both")

    def score(model: everlearn.model.Model) -> float:
        found = model.predict([text for text, _ in asked])
        return float(np.mean([one == name for one, (_, name) in zip(found, asked, strict=True)]))

    weight = versions.versions(tmp_path / "both")[0].merged["weights"][1]
    if target == 0:
        assert weight == 1
        return
    assert score(both) >= target * score(first) > 0.4
    if weight < 1:  # a little more of the second would be too much
        more, _ = merge([runs["lora"], runs["lora too"]], tmp_path / "more", weights=[0.9 - weight, weight + 0.1])
        assert score(more) < target * score(first)


def test_a_target_that_no_weight_reaches_is_refused(tmp_path: Path) -> None:
    """The rows of new classes are taken as they are, and take answers of old ones even at a weight of 0."""
    method = {"name": "lora", **SMALL, "epochs": 40, "head_lr": 1.0}
    for folder, labels in (("one", (0, 1, 2, 3)), ("two", (4, 5))):
        found = [(text, f"class {label}") for label in labels for text in texts(label, seed=label)]
        run(method, from_rows(*zip(*found, strict=True), tasks=1), backbone="tiny", out=tmp_path / folder)
    data = tmp_path / "validation.csv"
    asked = [f"{text},class {label}" for label in range(4) for text in texts(label, 12, 55)]
    data.write_text("\n".join(["text,label", *asked]))
    folders = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(EverlearnError, match=r"however small the weight of the second run: give a smaller"):
        merge(folders, tmp_path / "both", how="interpolate", target=1.0, data=data)
    assert not (tmp_path / "both").exists()


def test_the_merged_model_learns_on_and_goes_back(runs, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    merge([runs["lora"], runs["lora too"]], folder)
    before = everlearn.load(folder)
    model, version = update(folder, [Record(text, "class 9") for text in texts(9)])
    assert (version.version, version.previous, model.class_names[-1]) == (3, 2, "class 9")
    versions.rollback(folder)
    assert everlearn.load(folder).class_names == before.class_names
    assert versions.rollback(folder) == (2, 1)
    assert everlearn.load(folder).class_names == everlearn.load(runs["lora"]).class_names


def test_an_updated_run_and_three_runs_merge(runs, tmp_path: Path) -> None:
    newer = Path(shutil.copytree(runs["sums"], tmp_path / "newer"))
    update(newer, [Record(text, "class 8") for text in texts(8)])
    third = learned(tmp_path / "third", (6, 7))
    model, version = merge([newer, runs["sums too"], third], tmp_path / "all")
    assert (version.version, version.previous) == (3, 2)
    assert model.class_names == union(newer, runs["sums too"], third) and len(model.class_names) == 9
    assert everlearn.load(tmp_path / "all").predict(texts(6, 20, 99)).count("class 6") > 12


def test_the_command(runs, tmp_path: Path, capsys) -> None:
    out = tmp_path / "both"
    assert main(["merge", str(runs["lora"]), str(runs["lora too"]), "--out", str(out), "--weights", "0.7,0.3"]) == 0
    told = capsys.readouterr().out
    assert "made from version 1: merged (average) with" in told and "the first run " in told and "rollback" in told
    data = tmp_path / "ask.txt"
    data.write_text("\n".join(texts(0, 3, 99)))
    assert main(["predict", str(out), "--input", str(data)]) == 0
    assert main(["versions", str(out), "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said[said.index("{") :])["versions"][0]["merged"] == {"how": "average", "weights": [0.7, 0.3]}
    again = ["merge", str(runs["sums"]), str(runs["sums too"]), "--out", str(tmp_path / "sums"), "--json"]
    assert main(again) == 0 and json.loads(capsys.readouterr().out)["merged"]["how"] == "exact"


@pytest.mark.parametrize(
    ("which", "options", "message"),
    [
        (["lora"], {}, "at least two"), (["lora", "lora"], {}, "at least two"),
        (["lora", "full"], {}, "have different methods"), (["lora", "sums"], {}, "have different methods"),
        (["sums", "sums too"], {"how": "ties"}, "keeps sums, which merge exactly"),
        (["lora", "other seed"], {}, r"other random weights \(seeds 0 and 1\)"),
        (["lora", "lora too"], {"weights": [1.0]}, "do not fit 2 models"),
        (["lora", "lora too"], {"how": "ties", "density": 2.0}, "density"),
        (["lora", "lora too"], {"how": "tie"}, "did you mean 'ties'"),
        (["lora", "lora too"], {"how": "interpolate"}, "a target for the first one"),
        (["lora", "lora too"], {"target": 0.9}, "are for --how interpolate"),
        (["er", "er too"], {}, "er keeps more than the weights that it trains"),
        (["lora", "settings"], {}, "have different settings"), (["lora", "nothing"], {}, "holds no finished run"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_written(runs, tmp_path: Path, which, options, message) -> None:
    folders = {**runs, "nothing": tmp_path}
    if "er too" in which:
        folders["er too"] = shutil.copytree(runs["er"], tmp_path / "er-too")
    if "settings" in which:
        folders["settings"] = learned(tmp_path / "settings", (0, 1), {"name": "lora", **SMALL, "train": "lora(size=4)"})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(EverlearnError, match=message):
        merge([folders[name] for name in which], tmp_path / "both", **options)
    assert set(tmp_path.rglob("*")) == before


def test_runs_that_keep_nothing_merge_and_keep_nothing(tmp_path: Path) -> None:
    for name, label in (("one", 0), ("two", 1)):
        inputs = [text for k in (label, 2) for text in texts(k)]
        rows = from_rows(inputs, [f"class {label}"] * 20 + ["class 2"] * 20, tasks=1)
        run("lda", rows, backbone="tiny", out=tmp_path / name, keep=0)
    first = everlearn.load(tmp_path / "one")
    model, version = merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert version.old == version.new == {"examples": 0, "before": None, "after": None}
    assert model.temperature == first.temperature == everlearn.load(tmp_path / "both").temperature
    assert sorted(model.class_names) == ["class 0", "class 1", "class 2"]
    for file in (tmp_path / "both").rglob("*.safetensors"):
        assert texts(0)[0].encode() not in file.read_bytes()


def test_a_folder_that_is_there_stays(runs, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(EverlearnError, match="exists already"):
        merge([runs["sums"], runs["sums too"]], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
