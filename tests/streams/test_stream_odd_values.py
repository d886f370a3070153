"""Odd values in files of every format: converted where the meaning is plain, and otherwise refused in one line."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everlearn import streams
from everlearn.errors import DataError
from everlearn.streams import Record, task_from

GOOD = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(8)]


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(DataError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert message.isprintable() and len(message) < 1300
    return message


# -- JSON Lines and CSV ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "field, value, told",
    [
        ("label", "1" * 5000, "broken JSON|64 bits|digits"),
        ("label", str(10**20), "a whole number does not fit 64 bits"),
        ("label", "1e300", "the label is a number that does not fit 64 bits"),
        ("label", "Infinity", "the label is inf; write it as a string"),
        ("label", "{}", "the label is a dict; give one class per row"),
        ("label", '"a\\u0000b"', r"the label 'a\\x00b' holds a control character"),
        ("label", '"a\\nb"', "the label 'a b' holds a control character"),
        ("label", '"a\\u001b[2Jb"', r"the label 'a\\x1b\[2Jb' holds a control character"),
        ("label", json.dumps("a" * 5000), "the label has 5,000 characters; write at most 4,096"),
        ("label", '"\\ud800"', "half a surrogate pair"),
        ("text", '"\\udfff"', "half a surrogate pair"),
        ("text", '{"text": "x"}', "the text is a dict"),
        ("id", "[1]", "the id is a list"),
        ("id", "true", "the id is a bool"),
        ("id", '"a\\tb"', "the id 'a b' holds a control character"),
        ("split", "1", "unknown split of type int; write train, validation or test"),
        ("split", '"a\\u0007"', r"unknown split 'a\\x07'"),
        ("domain", '["x"]', "the domain is a list"),
        ("domain", "false", "the domain is a bool"),
        ("text", "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("extra", '1, "extra": 2', "the key 'extra' occurs twice"),
    ],
)
def test_odd_values_of_json_are_refused_or_left_out_with_their_row(tmp_path, field, value, told):
    path = tmp_path / "a.jsonl"
    rows = [{**row, "id": f"row {i}", "split": "train" if i < 6 else "test"} for i, row in enumerate(GOOD)]
    odd = {"text": '"x"', "label": '"a"', "id": '"odd"', field: value}
    line = "{" + ", ".join(f'"{key}": {text}' for key, text in odd.items()) + "}"
    path.write_text("\n".join([*map(json.dumps, rows), line]))
    with pytest.raises(DataError, match=f"a.jsonl, line 9: .*({told})") as error:
        streams.load(str(path))
    assert str(error.value).isprintable() and "skip_bad_rows" in str(error.value)
    stream = streams.load(str(path), skip_bad_rows=True)
    assert sum(len(task.train) + len(task.test) for task in stream) == 8
    assert "left out 1 bad row" in stream.notes[0] and stream.notes[0].isprintable()


def test_odd_values_in_columns_that_nobody_uses_do_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    odd = [float("nan"), float("inf"), True, [[1]], {"a": None}, "\0", None, "x" * 10_000]
    path.write_text("\n".join(json.dumps({**row, "note": value}) for row, value in zip(GOOD, odd, strict=True)))
    assert len(streams.load(str(path)).class_names) == 2


def test_texts_may_hold_any_character_and_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = ["\0", "a\nb", "\u202e", "\U0001f600", "\x1b[2J", "e\u0301", "x" * 200_000, "\t."]
    rows = [{"text": text, "label": "ab"[i % 2], "split": "train"} for i, text in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"text": "t", "label": "a", "split": "test"}])))
    assert sorted(streams.load(str(path), tasks=1)[0].train.inputs) == sorted(texts)


def test_the_message_for_a_huge_cell_is_short(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,split\nx,a,train\n" + f"x,a,{'y' * 10**6}\n")
    assert len(refusal(streams.load, str(path))) < 600


# -- Parquet -----------------------------------------------------------------------------------
def stored(tmp_path: Path, label: pa.Array, **columns: pa.Array) -> str:
    table = pa.table({"text": [f"t{i}" for i in range(len(label))], "label": label, **columns})
    pq.write_table(table, tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


DAY = datetime.date(2024, 2, 29)


@pytest.mark.parametrize(
    "values, names",
    [
        (pa.array([DAY, datetime.date(2024, 3, 1)] * 4), {"2024-02-29", "2024-03-01"}),
        (pa.array([0, 1] * 4, pa.timestamp("ns")), {"1970-01-01 00:00:00.000000000", "1970-01-01 00:00:00.000000001"}),
        (pa.array([0, 1] * 4, pa.timestamp("s", "UTC")), {"1970-01-01 00:00:00.000Z", "1970-01-01 00:00:01.000Z"}),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal(2)] * 4), {"1.50", "2.00"}),
        (pa.array([0, 90] * 4, pa.time32("s")), {"00:00:00.000", "00:01:30.000"}),
        (pa.array(["a", "b"] * 4).dictionary_encode(), {"a", "b"}),
        (pa.array(["a", "b"] * 4, pa.large_string()), {"a", "b"}),
        (pa.array([0, 2**64 - 1] * 4, pa.uint64()), {"0", "18446744073709551615"}),
        (pa.array([1.0, 2.5] * 4, pa.float32()), {"1", "2.5"}),
    ],
)
def test_labels_of_other_types_are_named_as_they_are_written(tmp_path, values, names):
    assert set(streams.load(stored(tmp_path, values)).class_names) == names


@pytest.mark.parametrize(
    "values, told",
    [
        (pa.array([2**30] * 4, pa.date32()), "column 'label' cannot be read (ValueError: a date or time value out of"),
        (pa.array([0] * 4, pa.timestamp("s", "Nowhere/City")), "column 'label' cannot be read ("),
        (pa.array([2**62] * 4, pa.duration("s")), "column 'label' cannot be read (OverflowError"),
        (pa.array([1] * 4, pa.duration("s")), "row 1: the label is a timedelta; write it as a string"),
        (pa.array([b"a"] * 4), "row 1: the label is a bytes; write it as a string"),
        (pa.array([{"x": 1}] * 4), "row 1: the label is a dict; give one class per row"),
        (pa.array([["x"]] * 4), "the column 'label' holds lists; name a column with one value per row"),
        (pa.array([[("x", 1)]] * 4, pa.map_(pa.string(), pa.int32())), "the column 'label' holds lists"),
        (pa.nulls(4), "row 1: the label is missing"),
        (pa.array(["a", None, "a", "a"]), "row 2: the label is missing"),
        (pa.array([b"a", b"\xff", b"a", b"a"]).view(pa.string()), "row 2: the label '\\udcff' is not valid Unicode"),
        (pa.array([1.0, float("-inf"), 1, 1]), "row 2: the label is -inf; write it as a string"),
    ],
)
def test_labels_that_are_no_names_are_refused(tmp_path, values, told):
    message = refusal(streams.load, stored(tmp_path, values))
    assert "a.parquet" in message and told in message, message


def test_a_column_of_yes_and_no_is_a_label(tmp_path):
    stream = streams.load(stored(tmp_path, pa.array([True, False, True, False] * 4)))
    assert set(stream.class_names) == {"True", "False"}


def test_texts_that_are_not_utf8_name_their_row(tmp_path):
    texts = pa.array([b"a", b"caf\xe9"] * 2).view(pa.string())
    pq.write_table(pa.table({"text": texts, "label": ["a"] * 4}), tmp_path / "a.parquet")
    for read in (streams.load, streams.read_inputs):
        told = "a.parquet, row 2: the text is not valid Unicode; write it in UTF-8"
        assert told in refusal(read, str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("class_names", '["a", "a"]', "two of them are called 'a'"),
        ("class_names", '["a", " a"]', "two of them are called 'a'"),
        ("class_names", '{"a": 1}', "not a list of texts"),
        ("class_names", '["a", 2]', "not a list of texts"),
        ("class_names", '["a", "b\\u0000"]', "holds a control character"),
        ("domain_names", "5", "not a list of texts"),
        ("class_names", "nope", "broken JSON"),
        ("class_names", "[" * 5000, "nested too deeply"),
        ("class_names", b"\xff", "not UTF-8"),
        ("huggingface", "[", "broken JSON"),
        ("huggingface", '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', "not a list of texts"),
        ("huggingface", '{"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}}', "not a list of"),
    ],
)
def test_declared_names_are_checked(tmp_path, key, value, told):
    table = pa.table({"text": list("wxyz"), "label": [0, 1, 0, 1]}).replace_schema_metadata({key: value})
    pq.write_table(table, tmp_path / "a.parquet")
    message = refusal(streams.load, str(tmp_path / "a.parquet"))
    assert f"a.parquet, {key}" in message and told in message, message


@pytest.mark.parametrize("value", ["{}", "[]", '{"info": 5}', '{"info": {"features": [1]}}'])
def test_metadata_without_features_declares_nothing(tmp_path, value):
    table = pa.table({"text": list("abcdefgh"), "label": ["a", "b"] * 4})
    pq.write_table(table.replace_schema_metadata({"huggingface": value}), tmp_path / "a.parquet")
    assert set(streams.load(str(tmp_path / "a.parquet")).class_names) == {"a", "b"}


def test_a_file_of_which_nothing_is_left_is_one_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,domain\n" + ",a,\n" * 3)
    assert "a.csv: no training examples" in refusal(streams.load, str(path), skip_bad_rows=True)
    path.write_text("text,label,domain\n" + "x,a,\ny,a,\nz,a,\n")
    told = "a.csv: no rows are left to make tasks of; correct those that were left out"
    assert told in refusal(streams.load, str(path), skip_bad_rows=True, kind="domain-incremental")
    path.write_text("text,label\n" + "".join(f"x,alone {i}\n" for i in range(9)))
    for kind in ("class-incremental", "online", "old-then-new"):
        assert told in refusal(streams.load, str(path), skip_bad_rows=True, kind=kind)


# -- tasks of new records ----------------------------------------------------------------------
@pytest.mark.parametrize(
    "record, told",
    [
        (Record("", "a"), "record 1: the text is empty"),
        (Record("\ud800", "a"), "record 1: the text is not valid Unicode"),
        (Record(5, "a"), "record 1: the input is a int; give a text, an encoded image or the path of one"),
        (Record("x", ""), "record 1: the label is missing"),
        (Record("x", None), "record 1: the label is missing"),
        (Record("x", ["a"]), "record 1: the label is a list"),
        (Record("x", b"a"), "record 1: the label is a bytes"),
        (Record("x", 10**30), "record 1: the label is a number that does not fit 64 bits"),
        (Record("x", 10**5000), "record 1: the label is a number that does not fit 64 bits"),
        (Record("x", "a\nb"), "record 1: the label 'a b' holds a control character"),
        (Record("x", "a", id="\0"), "record 1: the id '\\x00' holds a control character"),
    ],
)
def test_new_records_are_checked_as_files_are(record, told):
    assert refusal(task_from, [Record("y", "b"), record]).startswith(told)


def test_new_labels_are_named_as_in_files():
    task = task_from([Record("x", 3), Record("y", " b "), Record("z", 4.0)], known=["b", "3"])
    assert task.class_names == ("b", "3", "4") and task.train.labels.tolist() == [1, 0, 2]


def test_known_classes_differ_and_are_names():
    records = [Record("x", "a")]
    assert "the known class 'a' is given twice" in refusal(task_from, records, known=["a", "b", "a"])
    assert "the known class 'a' is given twice" in refusal(task_from, records, known=["a", "a "])
    assert "known class 1: the label is missing" in refusal(task_from, records, known=["a", ""])
    assert "known is a text: give the names" in refusal(task_from, records, known="ab")
