"""Data that are lost, or results that are wrong without a word: what users did to get there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import everlearn
from everlearn import labelling, streams
from everlearn.comparison import compare
from everlearn.errors import DataError, EverlearnError
from everlearn.model import merge
from everlearn.streams import Record

WORDS = [f"word{number}" for number in range(12)]


def rows(*classes: str, words: Sequence[str] = WORDS) -> list[str]:
    return [f"{word} {name},{name}" for name in classes for word in words]


def table(file: Path, lines: Sequence[str], head: str = "text,label") -> str:
    file.write_text("\n".join([head, *lines]) + "\n")
    return str(file)


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    data = table(tmp_path / "may.csv", rows("tea", "sofa"))
    everlearn.run("simplecil", {"name": data, "tasks": 2}, backbone="tiny", out=tmp_path / "run")
    return tmp_path / "run"


def test_an_update_reads_the_column_of_splits_that_the_run_read(tmp_path: Path) -> None:
    for month, name in (("may", "tea"), ("june", "garden")):
        lines = [f"{line},{'test' if number % 2 else 'train'}" for number, line in enumerate(rows(name, "sofa"))]
        table(tmp_path / f"{month}.csv", lines, "text,label,part")
    stream = {"name": str(tmp_path / "may.csv"), "split_column": "part", "tasks": 2}
    everlearn.run("simplecil", stream, backbone="tiny", out=tmp_path / "run")
    _, version = everlearn.model.update(tmp_path / "run", tmp_path / "june.csv")
    assert (version.learned, version.new["examples"]) == (12, 12)
    _, without = everlearn.model.update(tmp_path / "run", table(tmp_path / "july.csv", rows("lamp")))
    assert without.learned == 10  # a fifth is held out, as the file says nothing


def test_an_update_of_records_takes_their_tests_and_splits(learned: Path, tmp_path: Path) -> None:
    model = everlearn.load(learned)
    records = [Record(f"{word} garden", "garden", split="Train") for word in WORDS]
    version = model.update(records, test=table(tmp_path / "tests.csv", rows("garden", words=["a", "b", "c"])))
    assert (version.learned, version.new["examples"]) == (12, 3)
    with pytest.raises(DataError, match=r"record 1: .*tset.*train, validation or test"):
        model.update([records[0], Record("a garden", "garden", split="tset")])
    with pytest.raises(DataError, match="record 0: the text is empty"):
        model.update([Record("", "garden"), *records])
    assert model.update([Record("", "garden"), *records], skip_bad_rows=True).notes[0].startswith("left out 1 bad row")
    with pytest.raises(DataError, match="the data are a int"):
        model.update(5)  # type: ignore[arg-type]


def test_an_update_says_what_a_run_would_say_of_the_data(learned: Path, tmp_path: Path) -> None:
    model = everlearn.load(learned)
    again = model.update(table(tmp_path / "new.csv", rows("garden")), test=table(tmp_path / "test.csv", rows("garden")))
    assert any("test inputs also occur in train" in note for note in again.notes)
    both = [f"{word},{name}" for word in WORDS for name in ("garden", "lamp")]
    with pytest.raises(DataError, match="have an input with several labels"):
        model.update(table(tmp_path / "both.csv", both))
    other = model.update(table(tmp_path / "other.csv", rows("Tea ", "  SOFA")))
    assert "2 new classes may be known ones in another spelling, such as 'Tea' beside 'tea'" in other.notes[0]


def test_a_comparison_does_not_take_the_results_of_another_run(learned: Path, tmp_path: Path) -> None:
    learned.rename(tmp_path / "compared")
    (tmp_path / "out").mkdir()
    (tmp_path / "compared").rename(tmp_path / "out" / "simplecil")
    with pytest.raises(EverlearnError, match="holds a run that is not of this comparison: give another folder"):
        compare("simplecil,lda", str(tmp_path / "may.csv"), backbone="tiny", out=tmp_path / "out")


def test_runs_name_files_and_encoders_so_that_they_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "may.csv", rows("tea", "sofa"))
    monkeypatch.chdir(tmp_path)
    result = compare("simplecil", {"name": "may.csv", "tasks": 2}, backbone="tiny", out="out")[0]
    assert result["config"]["stream"]["name"] == str(tmp_path / "may.csv")
    (tmp_path / "encoder").mkdir()
    for name, whole in (("encoder@layers=2", f"{tmp_path}/encoder@layers=2"), ("minilm+encoder", None), ("no", "no")):
        assert everlearn.backbones.absolute(name) == (whole or f"minilm+{tmp_path}/encoder")


def test_a_merge_says_that_data_count_twice_and_copies_no_folder_into_itself(learned: Path, tmp_path: Path) -> None:
    everlearn.model.update(learned, table(tmp_path / "june.csv", rows("garden")))
    everlearn.run("simplecil", streams.from_rows(WORDS, ["lamp", "chair"] * 6), backbone="tiny", out=tmp_path / "b")
    everlearn.model.update(tmp_path / "b", tmp_path / "june.csv")
    _, version = merge([learned, tmp_path / "b"], tmp_path / "merged")
    assert "have learned some of the same data, which count twice" in version.notes[0]
    with pytest.raises(EverlearnError, match=r"is inside .*, which it would be a copy of"):
        merge([learned, tmp_path / "b"], learned / "merged")


def test_rows_to_label_are_chosen_beside_the_file_that_the_run_learned(tmp_path: Path) -> None:
    data = table(tmp_path / "klasse.csv", rows("tea", "sofa"), "text,Klasse")
    everlearn.run("simplecil", {"name": data, "label_column": "Klasse"}, backbone="tiny", out=tmp_path / "run")
    table(tmp_path / "new.csv", [line.partition(",")[0] for line in rows("garden")], "text")
    asked = labelling.ask(
        everlearn.load(tmp_path / "run"), tmp_path / "new.csv", tmp_path / "out.csv", 3, labelled=[data]
    )
    assert asked.rows == 3
