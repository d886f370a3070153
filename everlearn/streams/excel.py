"""Excel workbooks (.xlsx): the first sheet, read as if it had been saved as CSV. A workbook is a zip archive, so its
sizes are checked before and while it is unpacked."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

from everlearn.errors import DataError
from everlearn.files import read_bytes
from everlearn.streams import limits
from everlearn.streams.columns import Columns, check_headers, check_size
from everlearn.streams.records import BadRows


def read_excel(path: Path, bad: BadRows) -> Columns:
    """Read the first sheet of a workbook. Its first row that is not empty names the columns; a column without a name is
    not read. The value of a formula is the one that was saved with it.

    Raises:
        DataError: the extra `excel` is not installed, or the file is no workbook or would take too much memory.
    """
    try:
        import openpyxl
    except ImportError:
        remedy = "install it with `pip install 'everlearn[excel]'`, or save the sheet as CSV"
        raise DataError(f"{path}: Excel files need the `openpyxl` library; {remedy}") from None
    data = read_bytes(path)
    most = limits.most_unpacked(len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:  # no entry can unpack to more than the archive says
        check_size(path, sum(entry.file_size for entry in archive.infolist()), most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about styles and other things that are no data
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        try:
            return _read_sheet(path, book, most)
        finally:
            book.close()


def _read_sheet(path: Path, book: Any, most: int) -> Columns:
    if not book.worksheets:
        raise DataError(f"{path}: the workbook has no sheet with cells: give one with at least one row")
    sheet = book.worksheets[0]
    sheet.reset_dimensions()  # a file may claim any size
    start, headers = 0, {}
    for start, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        _check_number(path, start)
        if headers := {i: text for i, text in enumerate(map(_as_text, row)) if text.strip()}:
            break
    headers = {i: name.strip() for i, name in headers.items()}
    check_headers(f"{path}, row {start}", list(headers.values()))
    rows: list[list[str]] = []
    numbers: list[int] = []
    size, width = 0, max(headers, default=0) + 1
    for number, row in enumerate(sheet.iter_rows(min_row=start + 1, max_col=width, values_only=True), start=start + 1):
        _check_number(path, number)
        cells = [_as_text(row[i]) if i < len(row) else "" for i in headers]
        size += 8 * width + sum(map(len, cells))
        check_size(path, size + limits.ROW_BYTES * len(rows), most)
        if any(cells):
            rows.append(cells)
            numbers.append(number)
    position = {name: i for i, name in enumerate(headers.values())}
    return Columns(str(path), numbers, list(position), lambda name: [row[position[name]] for row in rows])


def _check_number(path: Path, row: int) -> None:
    if row > limits.EXCEL_ROWS:
        raise DataError(f"{path}: more than {limits.EXCEL_ROWS:,} rows, which no workbook has; save the sheet as CSV")


def _as_text(value: Any) -> str:
    """What Excel would write into a CSV file.

    >>> [_as_text(value) for value in (None, 7.0, 2.5, True, "card lost")]
    ['', '7', '2.5', 'TRUE', 'card lost']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
