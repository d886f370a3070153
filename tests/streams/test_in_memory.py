"""Rows in memory: lists and tables make the same stream as a file, and a run that can be resumed with the same rows."""

from __future__ import annotations

import numpy as np
import pytest

import everlearn
from everlearn import streams
from everlearn.errors import EverlearnError, shown
from everlearn.session import Session
from everlearn.streams.inputs import listed
from everlearn.testing import case

TEXTS = [f"text {i}" for i in range(40)]
LABELS = ["tea", "sofa", "rose", "gold"] * 10


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(EverlearnError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def content(stream) -> list:
    return [(task.class_names, task.train.inputs, task.train.labels.tolist(), task.test.inputs) for task in stream]


@pytest.fixture
def from_file(write_csv):
    return content(streams.load(write_csv([{"text": t, "label": n} for t, n in zip(TEXTS, LABELS, strict=True)])))


def test_lists_and_arrays_make_the_stream_of_a_file(from_file):
    for texts, labels in ((TEXTS, LABELS), (tuple(TEXTS), LABELS), (np.array(TEXTS), np.array(LABELS))):
        assert content(streams.from_rows(texts, labels)) == from_file
    assert len(streams.from_rows(TEXTS, [LABELS.index(name) for name in LABELS]).class_names) == 4


def test_every_table_makes_the_stream_of_a_file(from_file):
    pandas, datasets, arrow = map(pytest.importorskip, ("pandas", "datasets", "pyarrow"))
    columns = {"text": TEXTS, "label": LABELS}
    frame = pandas.DataFrame(columns)
    for table in (
        columns, frame, frame.astype({"label": "category"}), arrow.table(columns), datasets.Dataset.from_dict(columns),
        [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)],
    ):  # fmt: skip
        assert content(streams.from_table(table)) == from_file, type(table)
    assert content(streams.from_rows(frame["text"], frame["label"])) == from_file


def test_a_data_set_with_splits_and_numbered_classes():
    datasets = pytest.importorskip("datasets")
    classes = datasets.ClassLabel(names=["tea", "sofa"])
    features = datasets.Features({"text": datasets.Value("string"), "label": classes})
    parts = datasets.DatasetDict({
        name: datasets.Dataset.from_dict({"text": TEXTS[:count], "label": [0, 1] * (count // 2)}, features)
        for name, count in (("train", 20), ("test", 6))
    })  # fmt: skip
    stream = streams.from_table(parts, class_order="given")
    assert (len(stream[0].train), len(stream[0].test), stream.class_names) == (20, 6, ("tea", "sofa"))
    picked = streams.from_table(parts["train"].shuffle(seed=1).select(range(12)), class_order="given")
    assert len(picked[0].train) + len(picked[0].test) == 12


def test_domains_and_splits_of_rows():
    stream = streams.from_rows(TEXTS, LABELS, ["shop", "phone"] * 20)
    assert (stream.kind, [task.name for task in stream]) == ("domain-incremental", ["shop", "phone"])
    stream = streams.from_rows(TEXTS, LABELS, splits=["train"] * 30 + ["test"] * 10)
    assert sum(len(task.test) for task in stream) == 10


def test_images_in_memory(png):
    stream = streams.from_rows([png(i) for i in range(40)], LABELS)
    assert (stream.input, len(stream)) == ("image", 2)


def test_the_first_image_may_be_missing(png):
    images = [None, *(png(i) for i in range(39))]
    assert "row 0: there is no image" in refusal(streams.from_rows, images, LABELS)
    stream = streams.from_rows(images, LABELS, skip_bad_rows=True)
    assert (stream.input, stream.notes) == ("image", ("left out 1 bad row: rows, row 0: there is no image",))


def test_a_series_may_be_counted_from_elsewhere():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"text": TEXTS, "label": LABELS}).iloc[1:]
    found = streams.from_rows(table.text, table.label)
    assert found.fingerprint() == streams.from_rows(TEXTS[1:], LABELS[1:]).fingerprint()


def test_a_file_is_named_by_a_path_too(tmp_path):
    file = tmp_path / "first.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(TEXTS, LABELS, strict=True)))
    assert streams.load(file).fingerprint() == streams.load(str(file)).fingerprint()


def test_options_are_those_of_load():
    assert len(streams.from_rows(TEXTS, LABELS, tasks=4)) == 4
    assert "unknown setting of the stream 'task': did you mean 'tasks'" in refusal(
        streams.from_rows, TEXTS, LABELS, task=4
    )
    assert "stream.tasks: 0 is out of range" in refusal(streams.from_table, {"text": TEXTS, "label": LABELS}, tasks=0)


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda: streams.from_rows(TEXTS, LABELS[:3]), "(40 in text, 3 in label): give one value per row"),
        (lambda: streams.from_rows("text", LABELS), "the values of inputs are a str: give a list"),
        (
            lambda: streams.from_rows((text for text in TEXTS), LABELS),
            "the values of inputs are a generator: give a list",
        ),
        (lambda: streams.from_rows({}, LABELS), "the values of inputs are a dict: give a list"),
        (lambda: streams.from_rows(None, LABELS), "the values of inputs are a NoneType: give a list"),
        (lambda: streams.load(5), "stream: 5 is neither a name nor a mapping"),
        (lambda: streams.load(None), "stream: None is neither a name nor a mapping"),
        (lambda: streams.from_rows([], []), "rows: there are no rows: give at least one"),
        (lambda: streams.from_rows([*TEXTS[:7], None, *TEXTS[8:]], LABELS), "rows, row 7: the text is empty"),
        (lambda: streams.from_table([{"text": "a"}, 5]), "table, row 1: the row is a int, not a dict"),
        (lambda: streams.from_table("shop.csv"), "table: a str that is empty or no table: give a DataFrame"),
        (lambda: streams.from_table({"words": TEXTS}), "table: no text or image column; the columns are words"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(call, told):
    assert told in refusal(call)


def test_a_missing_value_of_a_table_is_named_by_its_row():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": [*TEXTS[:5], float("nan"), *TEXTS[6:]], "label": LABELS})
    assert "shop, row 5: the text is empty" in refusal(streams.from_table, frame, name="shop")
    assert "left out 1 bad row" in streams.from_table(frame, skip_bad_rows=True).notes[0]


def test_a_list_of_records_is_no_stream_and_is_not_quoted_in_full():
    records = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)] * 500
    for call in (everlearn.run, everlearn.compare):
        with pytest.raises(EverlearnError) as error:
            call("simplecil", records)
        assert len(repr(error.value)) < 700, call
    assert "everlearn.streams.from_table" in refusal(everlearn.run, "simplecil", records)
    assert "everlearn.streams.from_table" in refusal(everlearn.compare, "simplecil", records)
    assert len(shown(records)) <= 203


# -- runs --------------------------------------------------------------------------------------
def test_a_run_of_rows_in_memory_and_its_model(tmp_path):
    result = everlearn.run("simplecil", streams.from_rows(TEXTS, LABELS), backbone="tiny", out=tmp_path / "run")
    assert result.results["stream"] == "rows"
    model = everlearn.load(tmp_path / "run")
    answers = model.predict(TEXTS[:5])
    assert model.predict(np.array(TEXTS[:5])) == model.predict(tuple(TEXTS[:5])) == answers
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS[:5], "n": range(5)})
    assert model.predict(frame["text"]) == answers
    assert model.embed(frame["text"]).shape == model.embed(TEXTS[:5]).shape
    assert "a DataFrame is a whole table: give one of its columns" in refusal(model.predict, frame)
    assert "input 0 is 0, of type int" in refusal(model.predict, frame["n"])
    assert "this is a single one: give [input]" in refusal(model.predict, "text")


def test_a_stopped_run_of_rows_in_memory_goes_on_with_the_same_rows(tmp_path, monkeypatch):
    stream, folder = streams.from_rows(TEXTS, LABELS), tmp_path / "run"
    whole = everlearn.run("simplecil", stream, backbone="tiny", out=tmp_path / "whole")
    monkeypatch.setattr(Session, "_stop_if_asked", lambda self: case.expect(False, "stopped"))
    with pytest.raises(EverlearnError, match="stopped"):
        everlearn.run("simplecil", stream, backbone="tiny", out=folder, save_steps=1)
    monkeypatch.undo()
    told = refusal(everlearn.resume, folder)
    assert "learned rows in memory" in told and "everlearn.resume(DIR, stream=" in told
    other = streams.from_rows(TEXTS[::-1], LABELS)
    assert "began with other rows or options" in refusal(everlearn.resume, folder, stream=other)
    other = streams.from_rows(TEXTS, LABELS, tasks=4)
    assert "began with other rows or options" in refusal(everlearn.resume, folder, stream=other)
    resumed = everlearn.resume(folder, stream=streams.from_rows(TEXTS, LABELS))
    assert case.lasting(resumed) == case.lasting(whole)


def test_a_comparison_of_rows_in_memory(tmp_path):
    stream = streams.from_rows(TEXTS, LABELS)
    results = everlearn.compare("simplecil,lda", stream, backbone="tiny", out=tmp_path / "both")
    assert all("final_accuracy" in result for result in results)


def test_listed_takes_columns_and_refuses_tables():
    arrow = pytest.importorskip("pyarrow")
    assert listed(arrow.array(["a", "b"])) == listed(np.array(["a", "b"])) == listed(("a", "b")) == ["a", "b"]
    assert "whole table" in refusal(listed, arrow.table({"text": ["a"]}))
    assert "input 1 is None, of type NoneType" in refusal(listed, ["a", None])
