"""Bad data: one line with the file, the row, the cause and the remedy."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everlearn import streams
from everlearn.errors import DataError

GOOD = "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(8))


def refusal(path, **options) -> str:
    with pytest.raises(DataError) as error:
        streams.load(str(path), **options)
    message = str(error.value)
    assert "\n" not in message and path.name in message
    return message


CSV_PROBLEMS = {
    "empty file": ("", ["the file is empty"]),
    "header only": ("text,label\n", ["holds no rows"]),
    "no text column": ("words,label\nx,y\n", ["no text or image column", "words, label", "text_column"]),
    "no label column": ("text,note\nx,y\n", ["no label column", "text, note", "label_column"]),
    "column twice": ("text,text\nx,y\n", ["line 1", "two columns are called 'text'"]),
    "no text": (GOOD + ",a\n", ["line 10", "the text is empty", "skip_bad_rows"]),
    "blank text": (GOOD + "  ,a\n", ["line 10", "the text is empty"]),
    "no label": (GOOD + "x,\n", ["line 10", "the label is missing"]),
    "NaN label": (GOOD + "x,NaN\n", ["line 10", "the label is missing"]),
    "too many cells": (GOOD + "x, y,a\n", ["line 10", "3 cells, but the header has 2", "quotes"]),
    "after a cell of two lines": ('text,label\n"x\ny",a\n\n,a\n', ["line 5", "the text is empty"]),
    "open quote": (GOOD + '"x,a\ny,b\n', ["line 10", "close the quotes"]),
    "single example": (GOOD + "x,c\n", ["line 10", "'c' has a single training example"]),
    "unknown split": (
        "text,label,split\nx,a,fold 1\n",
        ["line 2", "unknown split 'fold 1'", "train, validation or test"],
    ),
    "only in test": (
        "text,label,split\n" + "".join(f"t{i},a,{'train' if i else 'test'}\n" for i in range(4)) + "x,c,test\n",
        ["line 6", "'c' has no training example"],
    ),
    "no training examples": ("text,label,split\nx,a,test\n", ["no training examples"]),
    "same id": (
        "id,text,label\n1,x,a\n2,y,a\n1,z,a\n",
        ["line 4", "the id '1' is already used at", "line 2", "id_column"],
    ),
    "no id": ("id,text,label\n1,x,a\n,y,a\n", ["line 3", "the id is missing"]),
}


@pytest.mark.parametrize("problem", CSV_PROBLEMS)
def test_csv_problems(tmp_path, problem):
    content, parts = CSV_PROBLEMS[problem]
    path = tmp_path / "shop.csv"
    path.write_text(content)
    message = refusal(path)
    assert all(part in message for part in parts), message


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_bytes(GOOD.encode() + "café,a\n".encode("latin1"))
    message = refusal(path)
    assert "line 10" in message and "not UTF-8 (byte 0xe9)" in message and "iconv" in message


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert len(streams.load(str(path)).class_names) == 2


@pytest.mark.parametrize(
    "line, parts",
    [
        ('{"text": "x", "label"', ["broken JSON", "column 22"]),
        ("[1, 2]", ["a JSON list, not an object"]),
        ('{"text": 5, "label": "a"}', ["the text is a int", "string"]),
        ('{"label": "a"}', ["the text is empty"]),
        ('{"text": "x", "label": NaN}', ["the label is missing"]),
        ('{"text": "x", "label": null}', ["the label is missing"]),
        ('{"text": "x", "label": ["a", "b"]}', ["the label is a list", "one class per row"]),
    ],
)
def test_json_lines_problems(tmp_path, line, parts):
    path = tmp_path / "shop.jsonl"
    good = [json.dumps({"text": f"t{i}", "label": "ab"[i % 2]}) for i in range(8)]
    path.write_text("\n".join([*good[:4], "", line, *good[4:]]))
    message = refusal(path)
    assert "line 6" in message and all(part in message for part in parts), message
    stream = streams.load(str(path), skip_bad_rows=True)
    assert sum(len(task.train) + len(task.test) for task in stream) == 8
    assert "left out 1 bad row: " in stream.notes[0] and "line 6" in stream.notes[0]


def test_a_column_that_is_both_the_text_and_the_label_is_named(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text(GOOD)
    with pytest.raises(DataError, match="the column 'label' is both the input and the label; the columns are text, la"):
        streams.load(path, text_column="label")


def test_parquet_problems_name_the_row(tmp_path):
    path = tmp_path / "shop.parquet"
    path.write_bytes(b"PAR1 is not enough")
    assert "cannot be read (ArrowInvalid: " in (found := refusal(path)) and "write the Parquet file again" in found
    labels = [0.0, 1.0] * 4 + [float("nan")]
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(9)], "label": labels}), path)
    assert "row 9: the label is missing" in refusal(path)
    table = pa.table({"text": ["a", "b", "c"], "label": [0, 0, 2]})
    pq.write_table(table.replace_schema_metadata({"class_names": '["x", "y"]'}), path)
    assert "row 3: 2 is not the index of one of the 2 declared names" in refusal(path)


def test_skipped_rows_are_counted_and_the_good_ones_stay(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text(GOOD + ",a\nx,\nx,y,z\nlonely,c\n")
    stream = streams.load(str(path), skip_bad_rows=True)
    assert set(stream.class_names) == {"a", "b"}
    assert stream.notes == (f"left out 4 bad rows: the first is {path}, line 12: 3 cells, but the header has 2",)


@pytest.mark.parametrize("damage", ["text", "cut off", "empty"])
def test_images_that_do_not_decode(tmp_path, png, damage):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "set" / name / f"{i}.png").write_bytes(png(i))
    bad = tmp_path / "set" / "dog" / "3.png"
    bad.write_bytes({"text": b"hello", "cut off": png(3)[:45], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"dog/3\.png: the image cannot be decoded \(.*\); replace or remove it"):
        streams.load(str(tmp_path / "set"))
    stream = streams.load(str(tmp_path / "set"), skip_bad_rows=True)
    assert "dog/3.png" in stream.notes[-1]
    with pytest.raises(DataError, match=r"dog/3\.png"):
        streams.read_inputs(tmp_path / "set")


def test_a_class_of_which_no_training_image_can_be_decoded_is_left_out_with_its_tests(tmp_path, png):
    for name in ("cat", "dog", "cow"):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / split / name / f"{i}.png").write_bytes(
                    b"x" if (name, split) == ("cat", "train") else png(i)
                )
    (stream,) = streams.load(tmp_path, tasks=1, skip_bad_rows=True)
    assert set(stream.class_names) == {"dog", "cow"} and len(stream.test) == 6
    assert "left out 6 bad rows" in streams.load(tmp_path, tasks=1, skip_bad_rows=True).notes[-1]


def test_a_cut_off_jpeg_is_found_in_a_table(tmp_path):
    image = pytest.importorskip("PIL.Image")
    import io

    import numpy as np

    buffer = io.BytesIO()
    noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8)
    image.fromarray(noise).save(buffer, "JPEG")
    whole = buffer.getvalue()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [whole] * 5 + [whole[:600], None], "label": ["a"] * 7}), path)
    assert "row 7: there is no image" in refusal(path)
    pq.write_table(pa.table({"image": [whole] * 5 + [whole[:600]], "label": ["a"] * 6}), path)
    assert "row 6: the image cannot be decoded" in refusal(path)


def test_missing_image_files_name_the_line(tmp_path):
    pytest.importorskip("PIL")
    path = tmp_path / "a.csv"
    path.write_text("image,label\nno.png,a\nno.png,a\n")
    assert "no.png: no such file; check the path" in refusal(path)


def test_image_folders_of_the_wrong_shape(tmp_path, png):
    (tmp_path / "set" / "photo" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "photo" / "cat" / "1.png").write_bytes(png())
    with pytest.raises(DataError, match="no images directly in this class folder; if it is a domain"):
        streams.load(str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"no class folders; arrange it as class/image\.png"):
        streams.load(str(tmp_path / "set" / "photo" / "cat"))


@pytest.mark.parametrize("name", ["no.csv", "./nothing", "some/where/else", "/no/folder"])
def test_files_that_are_not_there(name):
    with pytest.raises(DataError, match=r"no such file.*; check the path"):
        streams.load(name)


def test_unknown_ending(tmp_path):
    (tmp_path / "a.xls").write_bytes(b"x")
    assert "unknown file format '.xls'; known: .csv" in refusal(tmp_path / "a.xls")


def test_two_files_for_one_split(tmp_path):
    for name in ("a_train.csv", "a_train.tsv"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(DataError, match="is also a train file; keep one of them"):
        streams.load(str(tmp_path / "a"))


def test_text_and_image_columns_together(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,image,label\nx,y,a\n")
    assert "may both be the input" in refusal(path)
    assert "give one of them" in refusal(path, text_column="text", image_column="image")
    assert "no column 'body'; the columns are text, image, label: correct --stream.text_column" in refusal(
        path, text_column="body"
    )


def test_domain_incremental_needs_a_domain_in_every_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,domain\n" + "".join(f"t{i},a,{'x' if i != 5 else ''}\n" for i in range(9)))
    assert "line 7: no domain" in refusal(path, kind="domain-incremental")
    assert "line 7: no domain" in streams.load(str(path), kind="domain-incremental", skip_bad_rows=True).notes[0]


def test_two_files_may_number_their_rows_alike(tmp_path):
    for part in ("train", "test"):
        rows = [f"{row},{part} {row},{'ab'[row % 2]}\n" for row in range(6)]
        (tmp_path / f"{part}.csv").write_text("id,text,label\n" + "".join(rows))
    task = streams.load(str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"), tasks=1)[0]
    assert sorted(task.train.ids) == list("012345")
    assert sorted(task.test.ids) == [f"test.csv:{row}" for row in range(6)]
    (tmp_path / "test.csv").write_text("id,text,label\n0,x,a\n7,y,b\n7,z,b\n")
    with pytest.raises(DataError, match=r"line 4: the id '7' is already used at .*test.csv, line 3"):
        streams.load(str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"), tasks=1)
