"""Scores of a saved model on labelled examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import everlearn
from everlearn.cli import main
from everlearn.errors import DataError, EverlearnError
from everlearn.streams import Record
from everlearn.testing import toy_stream

WORDS = ("red", "green", "blue", "grey", "white", "black")


def table(file: Path, lines: list[str], head: str = "message,intent") -> Path:
    file.write_text("\n".join([head, *lines]) + "\n")
    return file


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = table(folder / "may.csv", [f"{word} {name} {n},{name}" for name in ("tea", "sofa")
                                      for n, word in enumerate(WORDS * 2)])  # fmt: skip
    stream = {"name": str(data), "text_column": "message", "label_column": "intent", "tasks": 2}
    everlearn.run("simplecil", stream, backbone="tiny", out=folder / "run")
    return folder / "run"


def test_the_scores_are_those_of_the_answers(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{word} tea,tea" for word in WORDS] + [f"{word} sofa,sofa" for word in WORDS] + ["white sofa now,tea"]
    data = table(tmp_path / "june.csv", lines)  # the columns are those of the run
    model = everlearn.load(learned)
    texts, truth = zip(*(line.split(",") for line in lines), strict=True)
    answers, probabilities = model.predict(texts), model.predict_proba(texts)
    assert main(["evaluate", str(learned), "--data", str(data), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    right = [answer == label for answer, label in zip(answers, truth, strict=True)]
    assert scores["accuracy"] == sum(right) / 13 and (scores["examples"], scores["version"]) == (13, 1)
    of_tea = [answer == "tea" for answer, label in zip(answers, truth, strict=True) if label == "tea"]
    assert next(each for each in scores["per_class"] if each["name"] == "tea")["recall"] == sum(of_tea) / 7
    # With few examples, the error is the mean over 15 intervals of |confidence - accuracy|.
    places = [min(int(15 * sure - 1e-12), 14) for sure in probabilities.max(1)]
    parts = [[n for n, place in enumerate(places) if place == k] for k in set(places)]
    error = sum(abs(sum(probabilities[n].max() - right[n] for n in part)) for part in parts) / 13
    assert scores["expected_calibration_error"] == pytest.approx(error, abs=1e-4)
    assert main(["evaluate", str(learned), "--data", str(data)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{100 * sum(right) / 13:.1f} % of 13 examples are right" in said and "most often taken for" in said
    assert not any(path.name == "versions" for path in learned.iterdir())  # nothing was learned


def test_rows_of_the_split_test_alone_are_scored_where_there_are_some(learned: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "all.csv", ["red sofa,tea,train", "red tea,tea,test", "red sofa,sofa,test"],
                 "message,intent,split")  # fmt: skip
    scores = everlearn.load(learned).evaluate(data)
    assert scores["examples"] == 2 and scores["notes"] == ["of 3 rows, the 2 of the split test are scored"]


def test_a_class_that_the_model_does_not_know_counts_as_wrong(learned: Path) -> None:
    scores = everlearn.load(learned).evaluate([Record("red tea", "tea"), Record("a tall lamp", "lamp")])
    assert scores["accuracy"] == 0.5 and "does not know their classes: 'lamp'" in scores["notes"][0]
    lamp = scores["per_class"][-1]
    assert (lamp["name"], lamp["recall"]) == ("lamp", 0.0) and lamp["confused_with"] in ("tea", "sofa")


def test_what_cannot_be_scored_is_told_in_a_line(learned: Path, tmp_path: Path) -> None:
    model = everlearn.load(learned)
    bad = table(tmp_path / "bad.csv", ["red tea,tea", ",sofa"])
    with pytest.raises(DataError, match="line 3: the text is empty"):
        model.evaluate(bad)
    assert model.evaluate(bad, skip_bad_rows=True)["examples"] == 1
    with pytest.raises(DataError, match="no row is left that could be scored"):
        model.evaluate([])
    with pytest.raises(EverlearnError, match="tasks is not a setting of an evaluation"):
        model.evaluate(bad, tasks="3")
    with pytest.raises(DataError, match="part"):  # a column that is asked for has to be there
        model.evaluate(bad, skip_bad_rows=True, split_column="part")
    with pytest.raises(EverlearnError, match="holds images, but the model learned texts: give texts"):
        model.evaluate(toy_stream("image"))


def test_a_retriever_says_where_its_scores_are(tmp_path: Path) -> None:
    everlearn.run("frozen", toy_stream(goal="ranking", tasks=2), backbone="tiny", out=tmp_path / "run")
    with pytest.raises(EverlearnError, match="evaluate scores the answers of a classifier"):
        everlearn.load(tmp_path / "run").evaluate([Record("a", "b")])


def test_a_line_stays_one_line_in_a_pipe(learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a class of a long name that the model has never seen " * 3
    data = table(tmp_path / f"{'june' * 30}.csv", ["red tea,tea", f"a lamp,{name}"])
    assert main(["evaluate", str(learned), "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" % of 2 examples are right") and str(data) in lines[0]
    assert lines[-1].startswith("note: 1 of 2 examples count as wrong") and lines[-1].endswith("never seen'")
