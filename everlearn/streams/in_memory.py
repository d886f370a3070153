"""Rows that are in memory already: lists, and tables of pandas, Arrow and `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.errors import DataError, EverlearnError, one_line, printable
from everlearn.streams.columns import Columns, check_headers, check_rows
from everlearn.streams.hub import read_parts
from everlearn.streams.parquet import declared_in, to_values
from everlearn.streams.readers import ColumnNames, to_table
from everlearn.streams.records import BadRows, Table

TABLES = "a DataFrame, a Dataset of `datasets`, a table of Arrow, a dict of columns or a list of dicts"


def columns_of_lists(name: str, lists: Mapping[str, Any]) -> Columns:
    """The columns of lists, arrays or series of one length; None stands for a column that is not given.

    Raises:
        EverlearnError: something is no list, or the lengths differ.
    """
    columns = {column: as_list(column, values) for column, values in lists.items() if values is not None}
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count:,} in {column}" for column, count in lengths.items())
        raise EverlearnError(f"{name}: the columns have different lengths ({told}): give one value per row in each")
    count = next(iter(lengths.values()))
    if not count:
        raise DataError(f"{name}: there are no rows: give at least one")
    check_rows(name, count)
    return Columns(name, range(count), list(columns), columns.__getitem__)


def as_list(column: str, values: Any) -> list[Any]:
    """A list, an array or a series as a list, counted from 0.

    Raises:
        EverlearnError: it is none of them.

    >>> as_list("text", ("tea", "sofa"))
    ['tea', 'sofa']
    """
    if hasattr(values, "tolist"):  # numpy, pandas, torch
        values = values.tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise EverlearnError(f"the values of {column} are a {type(values).__name__}: give a list of one value per row")
    return list(values)


def read_table(name: str, table: Any, wanted: ColumnNames, bad: BadRows) -> Table:
    """The records of a table.

    Raises:
        EverlearnError: it is no table.
        DataError: as `everlearn.streams.readers.to_table`.
    """
    if hasattr(table, "features"):  # a Dataset of `datasets`
        return read_parts(name, {"train": table}, wanted, bad, whole=True)
    if isinstance(table, Mapping) and table and all(hasattr(part, "features") for part in table.values()):
        return read_parts(name, table, wanted, bad)
    return to_table(_columns(name, table), wanted, bad)


def _columns(name: str, table: Any) -> Columns:
    if hasattr(table, "iloc"):  # pandas
        headers = check_headers(name, list(map(str, table.columns)))
        series = (table.iloc[:, i].astype(object) for i in range(len(headers)))
        return columns_of_lists(name, {h: s.where(s.notna(), None) for h, s in zip(headers, series, strict=True)})
    if isinstance(table, Mapping) and table:
        return columns_of_lists(name, {str(header): values for header, values in table.items()})
    if isinstance(table, list) and table:
        if wrong := [row for row, value in enumerate(table) if not isinstance(value, Mapping)]:
            kind = type(table[wrong[0]]).__name__
            remedy = "give the values by the names of their columns, or give lists to from_rows"
            raise EverlearnError(f"{name}, row {wrong[0]}: the row is a {kind}, not a dict; {remedy}")
        headers = list(map(str, dict.fromkeys(header for row in table for header in row)))
        return columns_of_lists(name, {header: [row.get(header) for row in table] for header in headers})
    return _columns_of_arrow(name, table)


def _columns_of_arrow(name: str, table: Any) -> Columns:
    import pyarrow as pa

    if not (hasattr(table, "schema") or hasattr(table, "__arrow_c_stream__")):
        raise EverlearnError(f"{name}: a {printable(type(table).__name__)} that is empty or no table: give {TABLES}")
    with one_line(name, f"give {TABLES}"):
        arrow = pa.table(table)
    if not len(arrow):
        raise DataError(f"{name}: there are no rows: give at least one")
    check_rows(name, len(arrow))

    def read(column: str) -> list[Any]:
        with one_line(f"{name}, column '{column}'", "write the values as texts"):
            return [value for chunk in arrow.column(column).chunks for value in to_values(chunk)]

    headers = check_headers(name, arrow.column_names)
    return Columns(name, range(len(arrow)), headers, read, declared_in(name, arrow.schema.metadata or {}))
