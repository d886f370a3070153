"""Reads files as columns: CSV, TSV, JSON Lines, Parquet, Excel and plain text, with the number of every line."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from everlearn import strict
from everlearn.errors import DataError, one_line
from everlearn.files import read_text
from everlearn.streams.columns import Columns, check_headers, check_rows
from everlearn.streams.excel import read_excel
from everlearn.streams.parquet import read_parquet
from everlearn.streams.records import SPLIT_NAMES, BadRows, place


def read_columns(path: Path, bad: BadRows) -> Columns:
    """Read a file. The ending of its name determines the format.

    Raises:
        DataError: the ending is unknown, or the file does not exist, is empty, too large or damaged, or has a
            broken row.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown file format '{path.suffix}'; known: {', '.join(sorted(READERS))}")
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise DataError(f"{path}: the file is empty; give a file with at least one row")
    with one_line(path, "write the file again"):
        columns = reader(path, bad)
    if not columns.rows and bad.rows:
        raise DataError(f"{path}: no row can be used; the first is {': '.join(bad.rows[0])}")
    if not columns.rows:
        raise DataError(f"{path}: the file holds no rows; give a file with at least one row")
    return columns


def delimiter_of(text: str, usual: str) -> str:
    """What separates the cells of a file, by its first line: the usual delimiter if it occurs there, else the one of
    comma, semicolon and tab that occurs most often. Excel writes semicolons where the comma is the decimal mark.

    >>> delimiter_of("text;label\\na, b;c", ","), delimiter_of("text\\na;b", ",")
    (';', ',')
    """
    header = next((line for line in re.split("[\r\n]", text, maxsplit=100) if line.strip()), "")
    count = {delimiter: len(next(csv.reader([header], delimiter=delimiter), [])) for delimiter in (usual, *",;\t")}
    return usual if count[usual] > 1 else max(count, key=count.__getitem__)


def _read_delimited(path: Path, bad: BadRows, delimiter: str) -> Columns:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text, delimiter), strict=True)
    headers: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    next_line = 1  # the first line of the next row: a quoted cell may span several lines
    try:
        for row in reader:
            line, next_line = next_line, reader.line_num + 1
            if not row:
                continue
            if headers is None:
                headers = check_headers(place(str(path), line), [name.strip() for name in row])
            elif len(row) != len(headers):
                cause = f"{len(row)} cells, but the header has {len(headers)}"
                bad.add(place(str(path), line), cause, 'put "quotes" around a cell that contains the delimiter')
            else:
                rows.append(row)
                lines.append(line)
                check_rows(str(path), len(rows))
    except csv.Error as error:
        where = place(str(path), next_line)
        raise DataError(f"{where}: {error}; close the quotes of this row and double every inner quote") from None
    position = {name: i for i, name in enumerate(headers or [])}
    return Columns(str(path), lines, list(position), lambda name: [row[position[name]] for row in rows])


def _read_jsonl(path: Path, bad: BadRows) -> Columns:
    objects, lines = [], []
    remedy = "write one JSON object per line"
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        where = place(str(path), line)
        try:
            value = strict.from_json(text, where, remedy, finite=False)
        except DataError as error:
            bad.add(where, error.args[0].removeprefix(f"{where}: ").removesuffix(f": {remedy}"), remedy)
            continue
        if not isinstance(value, dict):
            bad.add(where, f"a JSON {type(value).__name__}, not an object", remedy)
            continue
        objects.append(value)
        lines.append(line)
        check_rows(str(path), len(objects))
    names = dict.fromkeys(name for value in objects for name in value)
    headers = check_headers(str(path), list(names))
    return Columns(str(path), lines, headers, lambda name: [value.get(name) for value in objects])


def _read_lines(path: Path, bad: BadRows) -> Columns:
    lines = [(i, text.strip()) for i, text in enumerate(read_text(path).split("\n"), start=1) if text.strip()]
    check_rows(str(path), len(lines))
    return Columns(str(path), [i for i, _ in lines], ["text"], lambda name: [text for _, text in lines])


READERS: dict[str, Callable[[Path, BadRows], Columns]] = {
    ".csv": partial(_read_delimited, delimiter=","),
    ".tsv": partial(_read_delimited, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": read_parquet,
    ".xlsx": read_excel,
    ".txt": _read_lines,
}


def find_parts(stem: Path) -> dict[str, Path]:
    """The files `<stem>_train.csv`, `<stem>_test.csv` …, or `train.csv` … in the folder if the stem is a folder.

    Raises:
        DataError: there are two files for the same split.
    """
    parts: dict[str, Path] = {}
    for short, split in SPLIT_NAMES.items():
        for ending in READERS:
            path = stem / f"{short}{ending}" if os.path.isdir(stem) else stem.with_name(f"{stem.name}_{short}{ending}")
            if os.path.isfile(path):
                if split in parts:
                    raise DataError(f"{path}: {parts[split]} is also a {split} file; keep one of them")
                parts[split] = path
    return parts


def find_retrieval_files(name: str) -> tuple[Path, Path] | None:
    """`<name>_corpus.parquet` and `<name>_queries.parquet` (or another format), if both exist."""
    stem, found = Path(name), []
    for role in ("corpus", "queries"):
        paths = [stem.with_name(f"{stem.name}_{role}{ending}") for ending in READERS] if stem.name else []
        found.append(next((path for path in paths if os.path.isfile(path)), None))
    corpus, queries = found
    return (corpus, queries) if corpus and queries else None
