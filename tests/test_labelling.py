"""What to label next is written to a file, read back, learned, and the user is told when to stop."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import everlearn
from everlearn import active, backbones, labelling
from everlearn.backbones.backbone import Backbone
from everlearn.cli import main
from everlearn.errors import DataError, EverlearnError
from everlearn.protocol import run
from everlearn.streams import from_rows
from everlearn.streams.records import BadRows, Record
from everlearn.testing.toy import toy_stream


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture(scope="module")
def pool() -> list[tuple[str, str]]:
    """Texts of 4 classes, each once."""
    parts = [task.train for task in toy_stream("text", tasks=2, per_class=24)]
    return list({text: f"class {k}" for part in parts
                 for text, k in zip(part.inputs, part.labels.tolist(), strict=True)}.items())  # fmt: skip


@pytest.fixture
def unlabelled(pool: list[tuple[str, str]], tmp_path: Path) -> Path:
    return write(tmp_path / "pool.csv", [{"id": f"r{n}", "text": text} for n, (text, _) in enumerate(pool)])


def fill(file: Path, pool: list[tuple[str, str]], first: int | None = None) -> list[dict[str, str]]:
    truth = dict(pool)
    rows = rows_of(file)
    for row in rows[:first]:
        row["label"] = truth[row["text"]]
    write(file, rows)
    return rows


def test_from_no_label_at_all_to_a_model_that_asks_learns_and_says_when_to_stop(
    unlabelled: Path, pool: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, labelled, folder = tmp_path / "first.csv", tmp_path / "labelled.csv", tmp_path / "run"
    assert main(["label", "--backbone", "tiny", "--data", str(unlabelled), "--budget", "24", "--out", str(first)]) == 0
    told = capsys.readouterr().out
    assert f"24 of {len(pool)} unlabelled rows, chosen by typical" in told and "should be right" not in told
    rows = rows_of(first)
    assert list(rows[0]) == ["id", "text", "guess", "probability", "label"] and len(rows) == 24
    assert all(row["guess"] == row["label"] == "" and row["text"] == pool[int(row["id"][1:])][0] for row in rows)
    fill(first, pool, 20)  # the person stopped early
    assert main(["label", "--read", str(first), "--out", str(labelled)]) == 0
    assert "20 labelled rows of" in capsys.readouterr().out
    run({"name": "logistic"}, {"name": str(labelled), "tasks": 1}, backbone="tiny", out=folder)
    ask = ["label", str(folder), "--data", str(unlabelled), "--json", "--labelled", str(first)]
    for round_ in range(2):
        second = tmp_path / f"round {round_}.csv"
        assert main([*ask, "--budget", "6", "--out", str(second)]) == 0, capsys.readouterr().err
        asked = json.loads(capsys.readouterr().out)
        assert asked["pool"] == len(pool) - 20 - 6 * round_, "what is labelled is not asked for again"
        assert 0 < asked["expected_accuracy"] <= 1 and asked["stop"] is False
        rows = fill(second, pool)
        assert all(row["guess"] in {name for _, name in pool} and 0 < float(row["probability"]) <= 1 for row in rows)
        assert main(["label", str(folder), "--read", str(second), "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["version"] == 2 + round_ and record["learned"] + record["held_out"] == 6
        ask.append(str(second))
    ask.remove("--json")
    assert main([*ask, "--out", str(tmp_path / "third.csv")]) == 0
    assert "its last versions agree with a kappa of" in capsys.readouterr().out
    model = everlearn.load(folder)
    texts = [text for text, _ in pool]
    expected = active.agreement(*(everlearn.load(folder, version=number).predict(texts) for number in (1, 2)))
    assert labelling._agreements(model, texts, model.predict(texts))[0] == expected and model.version == 3


def test_a_model_reads_what_is_unlabelled_twice_and_earlier_versions_once(
    pool: list[tuple[str, str]], unlabelled: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    stream = from_rows(*zip(*pool[:32], strict=True), tasks=1)
    run({"name": "lora", "epochs": 1}, stream, backbone="tiny", out=tmp_path / "run")
    everlearn.load(tmp_path / "run").update([Record(*row) for row in pool[32:48]])
    model, read, infer = everlearn.load(tmp_path / "run"), [], Backbone.infer
    monkeypatch.setattr(
        Backbone, "infer", lambda self, inputs, *rest: read.append(inputs) or infer(self, inputs, *rest)
    )
    assert labelling.ask(model, unlabelled, tmp_path / "ask.csv", 4).agreements
    assert len(read) == 3, "features, probabilities, and the guesses of the version before"


def test_labels_that_cannot_be_are_one_line_with_the_row(
    unlabelled: Path, pool: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "to label.csv"
    base = ["label", "--backbone", "tiny", "--data", str(unlabelled), "--out", str(out)]
    assert main([*base, "--budget", "5"]) == 0
    rows = rows_of(out)
    with pytest.raises(DataError, match=r"to label.csv: no row has a label; write the class into the column label"):
        labelling.read(out)
    rows[0]["label"], rows[3]["label"] = "class 1", "clas 2"
    write(out, rows)
    with pytest.raises(DataError, match=r"to label.csv, line 3: the label is missing, and later rows have one; write"):
        labelling.read(out)
    assert len(labelling.read(out, bad=BadRows(skip=True))) == 2
    capsys.readouterr()
    told = "left out 2 bad rows: the first is " + f"{out}, line 3: the label is missing, and later rows have one"
    skipping = ["label", "--read", str(out), "--out", str(tmp_path / "some rows.csv"), "--skip-bad-rows", "--overwrite"]
    assert main(skipping) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == told
        and lines[2] == f"  everlearn run --stream '{tmp_path / 'some rows.csv'}' --tasks 1 --out model"
    )
    assert main([*skipping, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [told]
    (tmp_path / "gaps.csv").write_text('text\na cup\n""\na sofa\n')
    asked = labelling.ask(backbones.load("tiny"), tmp_path / "gaps.csv", tmp_path / "asked.csv", 2, labelled=[out],
                          skip_bad_rows=True)  # fmt: skip
    assert "left out 3 bad rows" in asked.describe() and asked.notes[0] in asked.describe()
    rows[1]["label"] = rows[2]["label"] = "class 1"
    write(out, rows)
    with pytest.raises(DataError, match=r"line 5: 'clas 2' is no class of the model; did you mean 'class 2'\? correct"):
        labelling.read(out, known=["class 1", "class 2"])
    assert [record.label for record in labelling.read(out)] == ["class 1"] * 3 + ["clas 2"]
    capsys.readouterr()
    for argv, cause in (
        ([*base, "--budget", "5"], "exists already: give another file with --out, or add --overwrite"),
        ([*base, "--overwrite", "--budget", "0"], "--budget: 0 is out of range"),
        ([*base, "--overwrite", "--strategy", "margin"], "the strategy margin asks a model, and there is none yet"),
        ([*base[:-1], str(unlabelled), "--overwrite"], "is what is read: give another"),
        ([*base[:-1], str(tmp_path / "nodir" / "l.csv")], "its folder does not exist: make it first"),
        (["label", "--data", str(unlabelled)], "--out FILE is missing"),
        (["label"], "give --data FILE to choose what to label, or --read FILE"),
        (["label", str(tmp_path / "no run"), "--read", str(out)], "no such run folder"),
        ([*base, "--overwrite", "--labelled", str(unlabelled)], "no column label; give a file that"),
    ):
        assert main(argv) == 2, argv
        error = capsys.readouterr().err.strip().splitlines()
        assert cause in error[-1], error
    assert rows_of(out) == rows, "nothing was written over the labels"
    with pytest.raises(EverlearnError, match="has no example left that is not labelled yet"):
        everything = write(tmp_path / "all.csv", [{"text": text, "label": name} for text, name in pool])
        labelling.ask(everlearn.backbones.load("tiny"), unlabelled, out, 5, labelled=[everything])


def test_columns_are_named_once_for_every_file(
    pool: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"message": text, "intent": name} for text, name in pool]
    data, tests, labelled = (write(tmp_path / f"{name}.csv", part) for name, part in
                             (("data", rows[::2]), ("tests", rows[1::4]), ("labelled", rows[3::4])))  # fmt: skip
    stream = {"name": str(data), "tasks": 1, "text_column": "message", "label_column": "intent"}
    run({"name": "simplecil"}, stream, backbone="tiny", out=tmp_path / "run")
    ask = ["label", str(tmp_path / "run"), "--data", str(labelled), "--budget", "4", "--out", str(tmp_path / "ask.csv")]
    assert main(ask) == 0
    fill(tmp_path / "ask.csv", pool)
    learn = ["label", str(tmp_path / "run"), "--read", str(tmp_path / "ask.csv"), "--json"]
    capsys.readouterr()
    assert main([*learn, "--test", str(tests)]) == 0
    assert json.loads(capsys.readouterr().out)["held_out"] == len(rows[1::4])
    rows_with_labels = [{"message": row["message"], "label": row["intent"]} for row in rows[:5]]
    asked = labelling.ask(backbones.load("tiny"), data, tmp_path / "first.csv", 2, column="message",
                          labelled=[write(tmp_path / "given.csv", rows_with_labels)])  # fmt: skip
    assert asked.pool == len(rows[::2]) - 3


@pytest.mark.parametrize("option", [["--test", "there is no such file.csv"], ["--new-classes"]])
def test_options_that_would_do_nothing_are_refused(
    option: list[str], unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out.csv"), *option]
    for argv in (["label", "--backbone", "tiny", "--data", str(unlabelled), *out],
                 ["label", "--read", str(unlabelled), *out]):  # fmt: skip
        assert main(argv) == 2
        assert f"{option[0]} is for labels that a run learns: give DIR and --read FILE" in capsys.readouterr().err


def test_texts_that_a_spreadsheet_would_compute_come_back_as_they_were(tmp_path: Path) -> None:
    texts = ["=1+1", "=1+1", "'=1+1", "-5", "'tis tea", 'a "quoted"; cell', "two\nlines", "@home"]
    data, out = write(tmp_path / "pool.csv", [{"text": text} for text in texts]), tmp_path / "out.csv"
    labelling.ask(everlearn.backbones.load("tiny"), data, out, 9, strategy="random")
    assert not any(row["text"].startswith(("=", "@", "-")) for row in rows_of(out))
    write(out, [{**row, "label": "a"} for row in rows_of(out)])
    assert sorted(record.input for record in labelling.read(out)) == sorted(set(texts)), "and a copy is asked for once"


def test_images_are_named_from_the_folder_of_the_table(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    (tmp_path / "lists").mkdir()
    for n in range(3):
        image.new("RGB", (8, 8), (80 * n, 0, 0)).save(tmp_path / "photos" / f"{n}.png")
    out = tmp_path / "lists" / "to_label.csv"
    tiny = everlearn.backbones.load("tiny")
    assert "image" in tiny.reads
    labelling.ask(tiny, tmp_path / "photos", out, 2, strategy="k-center", column=None)
    rows = rows_of(out)
    assert len(rows) == 2 and all((out.parent / row["image"]).is_file() for row in rows)
    write(out, [{**row, "label": "red"} for row in rows])
    assert all(Path(record.input).is_file() for record in labelling.read(out))


@pytest.mark.parametrize(("options", "cause"), [({"budget": 2, "strategy": "badge"}, "asks a model"),
                                                ({"budget": 0}, "chooses nothing")])  # fmt: skip
def test_what_cannot_be_chosen_is_refused_before_anything_is_encoded(
    options: dict[str, Any], cause: str, unlabelled: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Backbone, "encode", lambda *given: pytest.fail("encoded"))
    with pytest.raises(EverlearnError, match=cause):
        labelling.ask(backbones.load("tiny"), unlabelled, tmp_path / "ask.csv", **options)


def test_images_in_no_files_are_refused_before_they_are_encoded(tmp_path: Path, monkeypatch: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    table = pytest.importorskip("pyarrow").table({"image": [(tmp_path / "one.png").read_bytes()]})
    parquet.write_table(table, tmp_path / "images.parquet")
    monkeypatch.setattr(labelling, "_features", lambda *_: pytest.fail("encoded"))
    with pytest.raises(DataError, match="a table cannot hold the images themselves"):
        labelling.ask(backbones.load("tiny"), tmp_path / "images.parquet", tmp_path / "ask.csv", 1)
    assert not (tmp_path / "ask.csv").exists()


STRATEGIES = (*active.BY_FEATURES, *active.BY_MODEL)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_each_row_once_and_the_same_again(strategy: active.Strategy) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=draw)
    features[40:50] = features[40]  # copies
    probabilities = torch.randn(60, 5, generator=draw).softmax(1)
    probabilities[50:] = torch.tensor([1.0, 0, 0, 0, 0])  # certain
    for budget, labelled in ((7, None), (60, features[:3]), (90, features[:0])):
        rows = active.choose(budget, features, probabilities, labelled, strategy=strategy, seed=3)
        assert rows.dtype == torch.long and len(rows) == min(budget, 60) == len(set(rows.tolist())), strategy
        again = active.choose(budget, 4 * features, probabilities, labelled, strategy=strategy, seed=3)
        assert torch.equal(rows, again), "the length of a feature does not matter"
    assert not len(active.choose(5, features[:0], probabilities[:0], None, strategy=strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_takes_every_seed(strategy: active.Strategy) -> None:
    torch.manual_seed(0)
    features, probabilities = torch.randn(30, 8), torch.rand(30, 3).softmax(1)
    assert len(active.choose(5, features, probabilities, strategy=strategy, seed=2**63 - 1)) == 5


def test_strategies_choose_what_they_say() -> None:
    draw = torch.Generator().manual_seed(1)
    centres = torch.nn.functional.normalize(torch.randn(6, 16, generator=draw), dim=1)
    cluster = torch.arange(6).repeat_interleave(torch.tensor([40, 20, 10, 5, 3, 2]))
    features = centres[cluster] + 0.05 * torch.randn(80, 16, generator=draw)
    for strategy in ("typical", "k-center", "facility"):
        rows = active.choose(6, features, strategy=strategy)
        assert sorted(cluster[rows].tolist()) == list(range(6)), f"{strategy} finds each of the clusters"
    assert cluster[active.choose(6, features, strategy="typical")].tolist() == list(range(6)), "large ones first"
    known = features[cluster == 0]
    assert 0 not in cluster[active.choose(5, features, labelled=known, strategy="typical")].tolist()
    probabilities = torch.full((80, 2), 0.5)
    probabilities[cluster > 2] = torch.tensor([0.99, 0.01])
    for strategy in ("margin", "entropy", "badge"):
        assert (cluster[active.choose(10, features, probabilities, strategy=strategy)] <= 2).all(), strategy
    spread = active.choose(3, features, probabilities, strategy="badge")
    assert sorted(cluster[spread].tolist()) == [0, 1, 2], "badge takes uncertain rows that differ"


def test_greedy_choices_are_those_of_the_definitions() -> None:
    features = torch.nn.functional.normalize(torch.randn(30, 16, generator=torch.Generator().manual_seed(2)), dim=1)
    cosines = (features @ features.T).clamp_min(0)
    chosen: list[int] = []
    for _ in range(8):  # facility location without being lazy
        gains = [cosines[:, [*chosen, row]].max(1).values.sum() if row not in chosen else -1 for row in range(30)]
        chosen.append(int(torch.tensor(gains).argmax()))
    assert active.facility(features, features[:0], 8).tolist() == chosen
    far = active.k_center(features, features[:1], 5).tolist()
    for k, row in enumerate(far):
        near = (features @ features[[0, *far[:k]]].T).max(1).values
        assert near[row] == near.min()


def test_when_to_stop() -> None:
    assert active.agreement(list("aabb"), list("aabb")) == 1.0 and active.agreement(list("aa"), list("aa")) == 1.0
    assert active.agreement(list("abab"), list("aabb")) == pytest.approx(0.0)
    assert not active.is_stable([1.0, 1.0]) and active.is_stable([0.2, 0.99, 0.99, 0.99])
    assert not active.is_stable([0.99, 0.99, 0.98])
    asked = labelling.Asked(5, 9, "margin", 0.93, (0.99, 0.995, 0.999))
    assert asked.stop and "you may stop" in asked.describe() and "93.0 %" in asked.describe()
