"""Data sets and formats: what is read from packages, files and folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everlearn import streams
from everlearn.errors import DataError, EverlearnError
from everlearn.streams.digits import read_digits
from everlearn.streams.records import BadRows


def names_and_inputs(stream):
    found = Counter()
    for task in stream:
        for part in (task.train, task.validation, task.test):
            found.update(zip((task.class_names[k] for k in part.labels), map(str, part.inputs), strict=True))
    return found


def count(stream, split):
    return sum(len(getattr(task, split)) for task in stream)


@pytest.mark.parametrize(
    "name, sizes, classes, mib", [("clinc150", (15000, 3000, 4500), 150, 0.4), ("banking77", (10003, 0, 3080), 77, 0.3)]
)
def test_packaged_data_has_the_published_counts(name, sizes, classes, mib):
    stream = streams.load(name)
    assert tuple(count(stream, split) for split in ("train", "validation", "test")) == sizes
    assert len(stream) == 10 and len(set(stream.class_names)) == classes
    file = Path(streams.__file__).parent / "data" / f"{name}.parquet"
    assert file.stat().st_size < mib * 2**20
    columns = ["text", "label", "split"] + ["domain"] * (name == "clinc150")
    assert pq.read_schema(file).names == columns


def test_packaged_data_equals_its_source(shared):
    for name in ("clinc150", "banking77"):
        stream = streams.load(name)
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
            path = shared / "text" / f"{name}_{short}.parquet"
            table = pq.read_table(path) if path.exists() else None
            classes = json.loads(table.schema.metadata[b"class_names"]) if table else []
            wanted = Counter((classes[r["label"]], r["text"]) for r in (table.to_pylist() if table else []))
            found = Counter()
            for task in stream:
                part = getattr(task, split)
                found.update(zip((task.class_names[k] for k in part.labels), part.inputs, strict=True))
            assert found == wanted


def test_clinc150_domains_are_ten_of_fifteen_classes():
    stream = streams.load("clinc150", kind="domain-incremental")
    assert [len(task.classes) for task in stream] == [15] * 10
    assert {"banking", "travel"} <= {task.name for task in stream}


def test_digits_are_png_images_of_ten_classes():
    image = pytest.importorskip("PIL.Image")
    stream = streams.load("digits")
    assert [len(task.classes) for task in stream] == [2] * 5 and stream.input == "image"
    assert count(stream, "train") + count(stream, "test") == 1797
    import io

    from sklearn.datasets import load_digits

    pixels = np.asarray(image.open(io.BytesIO(read_digits().records[5].input)))
    assert (pixels == np.minimum(load_digits().images[5] * 16, 255)).all()


def test_names_and_package_import_without_torch():
    code = "import sys, everlearn.streams as s; s.names(); s.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert all("\n" not in line for line in streams.names().values())


def test_every_exported_name_is_there():
    assert all(getattr(streams, name) for name in streams.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Strm'"):
        _ = streams.Strm


@pytest.mark.parametrize("name", ["clinc15", "clinc150.parquett"])
def test_unknown_stream_names_the_nearest(name):
    with pytest.raises(EverlearnError, match="did you mean 'clinc150'"):
        streams.load(name)


def test_formats_give_the_same_examples(tmp_path, write_csv, rows):
    given = rows(3, 6)
    wanted = names_and_inputs(streams.load(write_csv(given)))
    tsv, jsonl, parquet = tmp_path / "a.tsv", tmp_path / "a.jsonl", tmp_path / "a.parquet"
    tsv.write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in given))
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in given))
    pq.write_table(pa.Table.from_pylist(given), parquet)
    for path in (tsv, jsonl, parquet):
        assert names_and_inputs(streams.load(str(path))) == wanted


@pytest.mark.parametrize("text, label", [("Utterance", "INTENT"), ("query", "category"), ("sentence", "class")])
def test_common_column_names_are_found(write_csv, rows, text, label):
    given = [{text: row["text"], label: row["label"]} for row in rows(3, 6)]
    assert len(streams.load(write_csv(given)).class_names) == 3


def test_named_columns_win(write_csv, rows):
    given = [
        {"text": "x", "label": "y", "body": r["text"], "team": r["label"], "key": f"k{i}"} for i, r in enumerate(rows())
    ]
    stream = streams.load(write_csv(given), text_column="body", label_column="team", id_column="key")
    assert set(stream.class_names) == {f"class {i}" for i in range(4)}
    assert stream[0].train.inputs[0].startswith("class") and stream[0].train.ids[0].startswith("k")


def test_integers_stand_for_the_declared_names(tmp_path):
    table = pa.table({"text": [f"t{i}" for i in range(12)], "label": pa.array([0, 1, 2] * 4, pa.int16())})
    for metadata in (
        {"class_names": '["z", "a", "m"]'},
        {
            "huggingface": json.dumps(
                {"info": {"features": {"label": {"names": ["z", "a", "m"], "_type": "ClassLabel"}}}}
            )
        },
    ):
        path = tmp_path / "a.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path)
        stream = streams.load(str(path), class_order="given")
        assert stream.class_names == ("z", "a", "m")
        first = stream[0].train
        assert all(int(text[1:]) % 3 == label for text, label in zip(first.inputs, first.labels, strict=True))


def test_labels_are_compared_without_the_spaces_around_them(write_csv, rows):
    given = [{**row, "label": row["label"] + " " * (i % 3)} for i, row in enumerate(rows(2, 9))]
    assert streams.load(write_csv(given)).class_names in {("class 0", "class 1"), ("class 1", "class 0")}


def test_stem_folder_and_file_arguments_give_the_same_stream(tmp_path, write_csv, rows):
    parts = {"train": rows(3, 8), "dev": rows(3, 2, "class")[:3], "test": rows(3, 3)}
    for name, part in parts.items():
        write_csv(part, f"shop_{name}.csv")
        write_csv(part, f"folder/{name}.csv")
    stem = streams.load(str(tmp_path / "shop"))
    assert [count(stem, split) for split in ("train", "validation", "test")] == [24, 3, 9]
    folder = streams.load(str(tmp_path / "folder"))
    files = streams.load(
        str(tmp_path / "shop_train.csv"),
        test=str(tmp_path / "shop_test.csv"),
        validation=str(tmp_path / "shop_dev.csv"),
    )
    assert stem.fingerprint() == folder.fingerprint() == files.fingerprint()


def write_images(root: Path, png, folders: list[str], each: int = 4) -> Path:
    for shade, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(each):
            (root / folder / f"{i}.png").write_bytes(png(shade * 10 + i))
    return root


def test_image_folders_with_and_without_splits(tmp_path, png):
    plain = streams.load(str(write_images(tmp_path / "plain", png, ["cat", "dog", "emu"])))
    assert plain.input == "image" and set(plain.class_names) == {"cat", "dog", "emu"}
    assert isinstance(plain[0].train.inputs[0], Path) and plain[0].train.ids[0].split("/")[0] in plain.class_names
    split = write_images(tmp_path / "split", png, [f"{s}/{c}" for s in ("train", "test") for c in ("cat", "dog")])
    stream = streams.load(str(split))
    assert count(stream, "train") == count(stream, "test") == 8
    assert all(id.startswith("test/") for id in stream[0].test.ids)


def test_image_folders_of_domains(tmp_path, png):
    root = write_images(tmp_path / "d", png, [f"{d}/{c}" for d in ("photo", "sketch") for c in ("cat", "dog")])
    stream = streams.load(str(root), kind="domain-incremental")
    assert [(task.name, task.classes) for task in stream] == [("photo", (0, 1)), ("sketch", (0, 1))]


def test_csv_of_image_paths_starts_at_its_own_folder(tmp_path, png, write_csv):
    write_images(tmp_path, png, ["cat", "dog"])
    path = write_csv([{"image": f"{c}/{i}.png", "label": c} for c in ("cat", "dog") for i in range(4)])
    assert streams.load(path).input == "image"


def test_shared_images(shared):
    stream = streams.load(str(shared / "images" / "pacs"), kind="domain-incremental", max_train_per_class=5)
    assert [task.name for task in stream] == ["photo", "art_painting", "cartoon", "sketch"]
    assert [len(task.train) for task in stream] == [35] * 4 and count(stream, "test") == 1988


def test_where_no_row_can_be_read_the_reason_of_the_first_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text("[1, 2]\n")
    with pytest.raises(DataError, match=r"no row can be used; the first is .*a.jsonl, line 1: a JSON list"):
        streams.read_inputs(tmp_path / "a.jsonl", bad=BadRows(skip=True))


def test_read_inputs_needs_no_labels(tmp_path, write_csv, png):
    path = write_csv([{"text": "a, b", "domain": ""}, {"text": "c\nd", "domain": "x"}, {"text": "e", "domain": ""}])
    assert streams.read_inputs(path) == (["a, b", "c\nd", "e"], ["shop.csv:2", "shop.csv:3", "shop.csv:5"])
    named = write_csv([{"id": "7", "body": "x"}])
    assert streams.read_inputs(named, text_column="body") == (["x"], ["7"])
    lines = tmp_path / "a.txt"
    lines.write_text("one\n\ntwo\n")
    assert streams.read_inputs(lines) == (["one", "two"], ["a.txt:1", "a.txt:3"])
    root = write_images(tmp_path / "images", png, ["cat", "dog/young"], each=1)
    assert streams.read_inputs(root)[1] == ["cat/0.png", "dog/young/0.png"]
    assert streams.read_inputs(root / "cat" / "0.png")[1] == ["0.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with mark", "utf-16-be with mark"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_and_encoding_of_a_table_are_found(tmp_path, encoding, ending, delimiter):
    rows = [(f'"größe{delimiter} nummer {i}"', name) for name in ("schön", "weiß") for i in range(6)]
    content = "\n".join(delimiter.join(row) for row in [("text", "label"), *rows])
    code, _, mark = encoding.partition(" ")
    (tmp_path / f"data.{ending}").write_bytes((("\ufeff" if mark else "") + content).encode(code))
    stream = streams.load(str(tmp_path / f"data.{ending}"), tasks=1)
    assert set(stream.class_names) == {"schön", "weiß"}
    assert f"größe{delimiter} nummer 0" in [*stream[0].train.inputs, *stream[0].test.inputs]


def test_rows_may_end_as_on_an_old_macintosh(write_csv, rows):
    path = Path(write_csv(rows(3, 4)))
    expected = streams.load(path, tasks=1).fingerprint()
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r"))
    assert streams.load(path, tasks=1).fingerprint() == expected


def test_half_of_utf16_is_one_line(tmp_path):
    (tmp_path / "data.csv").write_bytes("text,label\n".encode("utf-16")[:-1])
    with pytest.raises(DataError, match=r"begins as UTF-16, but .*; save it as UTF-8"):
        streams.load(str(tmp_path / "data.csv"))
