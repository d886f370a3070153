"""Reads files as columns: CSV, TSV, JSON Lines, Parquet and plain text, with the line or row number of every row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from everlearn.errors import DataError
from everlearn.streams.records import BadRows, place


@dataclass(frozen=True)
class Columns:
    """n rows in named columns.

    Args:
        file: the file as the user named it.
        rows: n line numbers (text files) or row numbers (Parquet), from 1.
        cells: n values for each column name.
        names: the names that the integers of a column stand for, if the file declares them.
    """

    file: str
    rows: Sequence[int]
    cells: dict[str, list[Any]]
    names: dict[str, list[str]] = field(default_factory=dict)


def read_columns(path: Path, bad: BadRows) -> Columns:
    """Read a file. The ending of its name determines the format.

    Raises:
        DataError: the ending is unknown, or the file does not exist, is empty or has a broken row.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown file format '{path.suffix}'; known: {', '.join(sorted(READERS))}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; give a file with at least one row")
    columns = reader(path, bad)
    if not columns.rows:
        raise DataError(f"{path}: the file holds no rows; give a file with at least one row")
    return columns


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        remedy = "save the file as UTF-8, for example with `iconv -f latin1 -t utf-8`"
        where = place(str(path), line)
        raise DataError(f"{where}: not UTF-8 (byte 0x{data[error.start]:02x}); {remedy}") from None


def _read_delimited(path: Path, bad: BadRows, delimiter: str) -> Columns:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows, lines = [], []
    next_line = 1  # the first line of the next row: a quoted cell may span several lines
    try:
        for row in reader:
            line, next_line = next_line, reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = _checked_header(path, row)
            elif len(row) != len(header):
                cause = f"{len(row)} cells, but the header has {len(header)}"
                bad.add(place(str(path), line), cause, 'put "quotes" around a cell that contains the delimiter')
            else:
                rows.append(row)
                lines.append(line)
    except csv.Error as error:
        where = place(str(path), next_line)
        raise DataError(f"{where}: {error}; close the quotes of this row and double every inner quote") from None
    return Columns(str(path), lines, {name: [row[i] for row in rows] for i, name in enumerate(header or [])})


def _checked_header(path: Path, header: list[str]) -> list[str]:
    header = [name.strip() for name in header]
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise DataError(f"{path}, line 1: two columns are called '{repeated[0]}'; rename one")
    return header


def _read_jsonl(path: Path, bad: BadRows) -> Columns:
    objects, lines = [], []
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        where = place(str(path), line)
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            bad.add(where, f"broken JSON ({error.msg} at column {error.colno})", "write one JSON object per line")
            continue
        if not isinstance(value, dict):
            bad.add(where, f"a JSON {type(value).__name__}, not an object", "write one JSON object per line")
            continue
        objects.append(value)
        lines.append(line)
    names = dict.fromkeys(name for value in objects for name in value)
    return Columns(str(path), lines, {name: [value.get(name) for value in objects] for name in names})


def _read_parquet(path: Path, bad: BadRows) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({reason}); write it again") from None
    cells = {name: table[name].to_pylist() for name in table.column_names}
    return Columns(str(path), range(1, len(table) + 1), cells, _declared_names(table.schema.metadata or {}))


def _declared_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names that the schema declares: `class_names` and `domain_names`, or what `datasets` writes."""
    found = {}
    for key, column in ((b"class_names", "class"), (b"domain_names", "domain")):
        if key in metadata:
            found[column] = json.loads(metadata[key])
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        for column, feature in features.items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                found[column] = feature["names"]
    return found


def _read_lines(path: Path, bad: BadRows) -> Columns:
    lines = [(i, text.strip()) for i, text in enumerate(_text(path).split("\n"), start=1) if text.strip()]
    return Columns(str(path), [i for i, _ in lines], {"text": [text for _, text in lines]})


READERS: dict[str, Callable[[Path, BadRows], Columns]] = {
    ".csv": partial(_read_delimited, delimiter=","),
    ".tsv": partial(_read_delimited, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}
