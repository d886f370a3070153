"""Columns: what a reader makes of a file, before cells become records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from everlearn.errors import DataError, printable
from everlearn.streams import limits
from everlearn.streams.cells import BadCell, as_name


@dataclass(frozen=True)
class Columns:
    """n rows in named columns. A column is read when it is asked for, so columns that nobody uses cost nothing.

    Args:
        file: the file as the user named it.
        rows: n line numbers (text files) or row numbers (Parquet), from 1.
        headers: the names of the columns, which all differ.
        read: the n values of the column with this name.
        names: the names that the integers of a column stand for, if the file declares them.
    """

    file: str
    rows: Sequence[int]
    headers: list[str]
    read: Callable[[str], list[Any]]
    names: dict[str, list[str]] = field(default_factory=dict)


def check_headers(where: str, headers: list[str]) -> list[str]:
    """The names of the columns.

    Raises:
        DataError: there are too many columns, or two have the same name.
    """
    if len(headers) > limits.MOST_COLUMNS:
        most = f"at most {limits.MOST_COLUMNS:,} are read"
        raise DataError(f"{where}: {len(headers):,} columns, and {most}; keep the columns that are used")
    repeated = [name for name, count in Counter(headers).items() if count > 1]
    if repeated:
        raise DataError(f"{where}: two columns are called '{printable(repeated[0])}'; rename one")
    return headers


def check_rows(where: str, count: int) -> None:
    """Raise a DataError if a file has too many rows."""
    if count > limits.MOST_ROWS:
        raise DataError(f"{where}: more than {limits.MOST_ROWS:,} rows, which do not fit in memory; split the file")


def check_size(where: object, unpacked: int, most: int) -> None:
    """Raise a DataError if data would take more than `most` bytes in memory."""
    if unpacked > most:
        raise DataError(f"{where}: takes more than {most:,} bytes in memory; check where it is from, or split it")


def declared_names(where: str, names: Any) -> list[str]:
    """The names that the integers of a column stand for.

    Raises:
        DataError: they are not a list of different texts.
    """
    try:
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise BadCell("not a list of texts", "declare one name per class")
        found = [as_name(name, []) for name in names]
        repeated = [name for name, count in Counter(found).items() if count > 1]
        if repeated:
            raise BadCell(f"two of them are called '{printable(repeated[0])}'", "declare one name per class")
    except BadCell as problem:
        cause, remedy = problem.args
        raise DataError(f"{where}: the declared names of the classes or domains: {cause}; {remedy}") from None
    return found
