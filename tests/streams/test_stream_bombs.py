"""Small files that unpack to gigabytes, and files that are none: refused before they take memory or block."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from everlearn import streams
from everlearn.errors import DataError, EverlearnError
from everlearn.streams import limits, parquet
from everlearn.streams.images import decode, reason_not_decodable
from everlearn.streams.inputs import content
from everlearn.streams.views import View


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(EverlearnError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert message.isprintable() and 20 < len(message) < 1300
    return message


def written(path: Path, table: pa.Table, times: int = 1, **options) -> str:
    """The table as a Parquet file of that many row groups."""
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        for _ in range(times):
            writer.write_table(table)
    return str(path)


# -- Parquet -----------------------------------------------------------------------------------
def test_millions_of_rows_of_one_value_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_read_column", lambda *_: pytest.fail("a column was unpacked"))
    million = pa.table({"text": pa.DictionaryArray.from_arrays(np.zeros(10**6, np.int32), ["a"])})
    many = written(tmp_path / "many.parquet", million, times=11)
    assert os.path.getsize(many) < 50_000
    assert "many.parquet: more than 10,000,000 rows" in refusal(streams.load, many)
    fewer = written(tmp_path / "fewer.parquet", million, times=3)
    assert "fewer.parquet: takes more than 1,073,741,824 bytes" in refusal(streams.load, fewer)
    assert "fewer.parquet: takes more than 1,073,741,824 bytes" in refusal(streams.read_inputs, fewer)


def test_a_page_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 2**20)
    path = written(tmp_path / "a.parquet", pa.table({"text": ["\0" * 2**22], "label": ["a"]}), compression="zstd")
    monkeypatch.setattr(parquet, "_read_column", lambda *_: pytest.fail("a column was unpacked"))
    assert os.path.getsize(path) < 5000
    assert "a.parquet: takes more than 1,048,576 bytes in memory" in refusal(streams.load, path)


@pytest.mark.parametrize("column", ["text", "image", "struct"])
def test_a_long_value_that_is_stored_once_and_repeated_is_refused_before_it_is_copied(tmp_path, column):
    long = pa.array(["x" * 2**21], pa.string() if column == "text" else pa.binary())
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), long)
    if column == "struct":
        values = pa.StructArray.from_arrays([values], ["bytes"])
    table = pa.table({"text" if column == "text" else "image": values, "label": ["a"] * 1000})
    path = written(tmp_path / "a.parquet", table, compression="zstd", dictionary_pagesize_limit=2**30,
                   store_schema=False)  # fmt: skip
    del values, table
    before = pa.total_allocated_bytes()
    peaks = []
    real = parquet.size_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "size_of", lambda array: peaks.append(pa.total_allocated_bytes()) or real(array))
        assert "a.parquet: takes more than 1,073,741,824 bytes in memory" in refusal(streams.load, path)
    assert os.path.getsize(path) < 5000 and max(peaks) - before < 50 * 2**20


def test_a_large_row_group_is_read_row_by_row_and_gives_the_same(tmp_path, monkeypatch):
    table = pa.table({"text": [f"text {i % 14}" for i in range(42)], "label": ["a", "b"] * 21})
    path = written(tmp_path / "a.parquet", table, times=2)
    whole = streams.load(path).fingerprint()
    monkeypatch.setattr(parquet, "DICTIONARY_BYTES", 0)
    assert streams.load(path).fingerprint() == whole


def test_lists_are_not_unpacked_where_one_value_belongs(tmp_path):
    path = written(tmp_path / "a.parquet", pa.table({"text": [["a"] * 9], "label": ["b"]}))
    assert "the column 'text' holds lists" in refusal(streams.load, path)


def test_columns_that_nobody_uses_are_not_unpacked(tmp_path, monkeypatch):
    read = []
    real = parquet._read_column
    monkeypatch.setattr(parquet, "_read_column", lambda path, data, name: read.append(name) or real(path, data, name))
    table = pa.table({"text": list("abcdefgh"), "label": ["a", "b"] * 4, "extra": [["x"]] * 8})
    assert len(streams.load(written(tmp_path / "a.parquet", table))) == 1
    assert read == ["text", "label"]


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = Path(written(tmp_path / "a.parquet", pa.table({"text": list("abcdefgh"), "label": ["a", "b"] * 4})))
    whole, refused = path.read_bytes(), 0
    for at in range(0, len(whole), 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            streams.load(str(path))
        except DataError as error:
            refused += "a.parquet" in str(error) and str(error).isprintable()
    assert refused > len(whole) // 23 // 3


# -- text files --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.parquet"])
def test_too_many_rows_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(limits, "MOST_ROWS", 5)
    path = tmp_path / name
    rows = [{"text": f"t{i}", "label": "a"} for i in range(6)]
    if name.endswith("parquet"):
        written(path, pa.Table.from_pylist(rows))
    else:
        lines = {"a.csv": ["text,label", *("x,a" for _ in rows)], "a.jsonl": map(json.dumps, rows)}.get(name, "abcdef")
        path.write_text("\n".join(lines))
    assert f"{name}: more than 5 rows, which do not fit in memory; split the file" in refusal(streams.load, str(path))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_too_many_columns_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(limits, "MOST_COLUMNS", 3)
    path, row = tmp_path / name, {"text": "x", "label": "a", "c": "1", "d": "2"}
    if name.endswith("parquet"):
        written(path, pa.Table.from_pylist([row]))
    else:
        path.write_text(json.dumps(row) if name == "a.jsonl" else ",".join(row) + "\n" + ",".join(row.values()))
    assert "4 columns, and at most 3 are read" in refusal(streams.load, str(path))


def test_a_header_of_many_cells_takes_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MOST_COLUMNS", 10**7)
    path = tmp_path / "a.csv"
    path.write_text(",".join(map(str, range(10**5))) + ",7\n")
    start = time.monotonic()
    assert "line 1: two columns are called '7'" in refusal(streams.load, str(path))
    assert time.monotonic() - start < 20


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "label", "text"])
    path = written(tmp_path / "a.parquet", table)
    assert "a.parquet: two columns are called 'text'; rename one" in refusal(streams.load, path)


# -- pipes, devices and names ------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.parquet", "a.png"])
def test_a_pipe_is_refused_and_does_not_block(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert f"{name} is not a regular file" in refusal(streams.read_inputs, tmp_path / name)
    if not name.endswith("png"):
        assert f"{name} is not a regular file" in refusal(streams.load, str(tmp_path / name))
    with pytest.raises(DataError, match="is not a regular file"):
        content(tmp_path / name)


def test_images_that_are_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for place in ("pipe.png", "/dev/zero", ".", "no\0.png", "n" * 5000):
        table = pa.table({"image": [place] * 4, "label": ["a"] * 4})
        message = refusal(streams.load, written(tmp_path / "a.parquet", table))
        assert "a.parquet, row 1: " in message and "replace or remove it" in message, message


NAMES = ["", "  ", "a\0b", "a\0b.csv", "n" * 10_000, "n" * 10_000 + ".csv", "n" * 250, "~", "~/no.csv", "/dev/zero"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
    good = tmp_path / "a.csv"
    good.write_text("text,label\n" + "x,a\ny,b\n" * 4)
    refusal(streams.load, name)
    for option in ("test", "validation", "new"):
        refusal(streams.load, str(good), **{option: name})
    refusal(streams.read_inputs, name if name.strip() else "no/such/file")


def test_too_many_tasks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MOST_TASKS", 3)
    path = tmp_path / "a.csv"
    path.write_text("text,label,domain\n" + "".join(f"t{i},c{i % 4},d{i % 4}\n" for i in range(40)))
    assert len(streams.load(str(path), tasks=3)) == 3
    for options in ({"tasks": 4}, {"kind": "domain-incremental"}):
        assert "4 tasks, and at most 3 are possible" in refusal(streams.load, str(path), **options)


# -- images ------------------------------------------------------------------------------------
def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels and holds few of them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 255, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "image, told",
    [
        (png_header(100_000, 100_000), "has more than 67,108,864 pixels"),
        (png_header(9_000, 8_000), "has more than 67,108,864 pixels"),
        (png_header(1, 50_000_000), "has 1 x 50,000,000 pixels, and its sides may be at most 1 to 100"),
        (encoded("GIF").replace(struct.pack("<HH", 16, 24), b"\xff" * 4), "has more than 67,108,864 pixels"),
        (b"P5 60000 60000 255\n", "has more than 67,108,864 pixels"),
    ],
    ids=["png", "just", "narrow", "gif", "ppm"],
)
def test_pixels_and_shape_are_checked_before_decoding(tmp_path, image, told):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told in refusal(decode, image)
        assert told in refusal(View(image, 0).content)
    path = written(tmp_path / "a.parquet", pa.table({"image": [image] * 4, "label": ["a"] * 4}))
    assert f"a.parquet, row 1: the image {told}" in refusal(streams.load, path)


def test_a_view_of_a_long_image_is_no_larger_than_a_view_needs(monkeypatch):
    monkeypatch.setattr("everlearn.streams.views.LARGEST_SIDE", 50)
    buffer = io.BytesIO()
    Image.new("1", (600, 10)).save(buffer, "PNG")
    view = Image.open(io.BytesIO(View(buffer.getvalue(), 1).content()))
    assert view.size == (50, 50)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
PSD = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 10, 10, 8, 3) + bytes(12)


@pytest.mark.parametrize("image", [EPS, PSD, encoded("ICO"), encoded("TGA"), b"nothing", b""], ids=range(6))
def test_other_formats_are_refused_and_start_no_program(tmp_path, monkeypatch, image):
    from PIL import EpsImagePlugin

    started = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{started}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "set" / "cat" / "1.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(image)
    told = "cannot be decoded (it is none of PNG, JPEG, BMP, GIF, WEBP, TIFF, PPM)"
    assert told in refusal(decode, path) and told in refusal(decode, image)
    assert told in refusal(streams.read_inputs, path)
    assert told in refusal(View(path, 0).content)
    assert not started.exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_every_format_is_decoded_and_damage_is_one_line(kind):
    whole = encoded(kind)
    assert reason_not_decodable(whole) is None and decode(whole).size == (16, 24)
    random = np.random.RandomState(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.randint(0, len(whole), 4):
            damaged[at] = random.randint(256)
        if random.rand() < 0.5:
            damaged = damaged[: random.randint(len(whole))]
        reason = reason_not_decodable(bytes(damaged))
        if reason is not None:
            cause, remedy = reason.args
            assert cause.startswith("the image ") and cause.isprintable() and remedy


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_only_the_first_frame_of_an_animation_is_decoded(kind):
    frames = [Image.new("RGB", (8, 8), shade) for shade in ("black", "white", "white")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    assert np.asarray(decode(buffer.getvalue())).max() < 20


# -- folders -----------------------------------------------------------------------------------
def test_links_that_form_a_loop_are_entered_once(tmp_path, png):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png())
        (tmp_path / name / "back").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert streams.read_inputs(tmp_path)[1] == ["cat/1.png", "dog/1.png"]


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    def listdir(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", listdir)
    for read in (streams.read_inputs, streams.load):
        told = f"{tmp_path} cannot be read (Permission denied): check the folder and its permissions"
        assert told in refusal(read, str(tmp_path))


@pytest.mark.parametrize("name, told", [(b"caf\xe9", "is not valid Unicode"), (b"a\nb", "holds a control character")])
def test_names_of_files_that_cannot_be_shown_are_one_line(tmp_path, png, name, told):
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    except OSError:
        pytest.skip("this file system accepts no such name")
    for read in (streams.read_inputs, streams.load):
        assert told in refusal(read, str(tmp_path))
