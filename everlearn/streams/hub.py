"""Data sets of the Hugging Face hub, read with the `datasets` library."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from everlearn.errors import DataError, EverlearnError, one_line, printable
from everlearn.streams import limits
from everlearn.streams.columns import Columns, check_headers, check_rows, check_size, declared_names
from everlearn.streams.parquet import size_of, to_values
from everlearn.streams.readers import ColumnNames, to_table
from everlearn.streams.records import SPLIT_NAMES, BadRows, Table


def read_hub(name: str, wanted: ColumnNames, bad: BadRows) -> Table:
    """Read the records of a data set by its name: `owner/name`, `owner/name:configuration`, or a local folder.

    Raises:
        EverlearnError: the `hub` extra is not installed, or the data set cannot be loaded.
        DataError: the data set has no known split, or `everlearn.streams.readers.to_table` refuses its columns or rows.
    """
    try:
        import datasets
    except ImportError:
        remedy = "install it with `pip install 'everlearn[hub]'`"
        raise EverlearnError(f"{name}: hub data sets need the `datasets` library; {remedy}") from None
    repository, _, configuration = name.partition(":")
    try:
        with _without_retry_warnings():
            parts = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # the library and the network raise many kinds of error
        reason = printable(error, 300).rstrip(".")
        problem = f"cannot load this data set from the hub ({type(error).__name__}: {reason})"
        remedy = "check the name and the network, or give a local CSV, JSON Lines or Parquet file"
        raise EverlearnError(f"{name}: {problem}; {remedy}") from None
    return read_parts(name, parts, wanted, bad)


def read_parts(name: str, parts: Mapping[str, Any], wanted: ColumnNames, bad: BadRows, *, whole: bool = False) -> Table:
    """The records of the parts of a data set, by the names of its splits.

    Args:
        whole: there is one part, which is the whole data set; its rows may have a column that names their split.

    Raises:
        DataError: as `read_hub`.
    """
    known = {split: part for split, part in parts.items() if split in SPLIT_NAMES}
    if not known:
        splits = printable(", ".join(map(str, parts)))
        raise DataError(f"{name}: none of its splits ({splits}) is train, validation or test: give a file instead")
    if whole:
        (part,) = known.values()
        return to_table(_columns(part, name, wanted.get("id")), wanted, bad)
    tables = [
        to_table(_columns(part, f"{name} ({split})", wanted.get("id")), wanted, bad).with_all(split=SPLIT_NAMES[split])
        for split, part in known.items()
    ]
    others = [split for split in parts if split not in known]
    notes = (f"left out the splits {', '.join(others)} of {name}",) if others else ()
    return replace(Table.join(tables), notes=notes)


@contextmanager
def _without_retry_warnings() -> Iterator[None]:
    """Silence the hub client, which warns at every retry without a network. One error follows at the end."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _columns(part: Any, file: str, id_column: str | None) -> Columns:
    import datasets

    names = {column: declared_names(f"{file}, column '{column}'", feature.names)
             for column, feature in part.features.items() if isinstance(feature, datasets.ClassLabel)}  # fmt: skip
    check_rows(file, len(part))
    # The ids often start again in every split, so they are read only on request.
    headers = [column for column in part.column_names if column != "id" or id_column]

    def read(name: str) -> list[Any]:
        with one_line(f"{file}, column '{name}'", "give a local CSV, JSON Lines or Parquet file"):
            stored = part.select_columns([name]).with_format("arrow")[:].column(name)  # images as they are stored
            check_size(file, sum(map(size_of, stored.chunks)), limits.MOST_UNPACKED_BYTES)
            return [value for chunk in stored.chunks for value in to_values(chunk)]

    return Columns(file, range(1, len(part) + 1), check_headers(file, headers), read, names)
