"""Excel files: read like CSV, and refused before they take memory."""

from __future__ import annotations

import datetime
import os
import sys
import zipfile

import pytest

from everlearn import streams
from everlearn.errors import DataError
from everlearn.streams import limits

openpyxl = pytest.importorskip("openpyxl")
SHEET, STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
SHARED_STRINGS = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"


@pytest.fixture
def workbook(tmp_path):
    """Write the rows of the first sheet, and one that is not read; give the path as a string."""

    def write(rows, name="shop.xlsx") -> str:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.create_sheet("notes").append(["nothing to learn"])
        book.save(tmp_path / name)
        return str(tmp_path / name)

    return write


def rebuilt(path: str, replace: dict[str, bytes]) -> str:
    """The workbook with other content in some of its parts."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in {**parts, **replace}.items():
            new.writestr(name, content)
    return path


def refusal(path: str) -> str:
    with pytest.raises(DataError) as error:
        streams.load(path)
    message = str(error.value)
    assert "\n" not in message and "shop.xlsx" in message
    return message


def test_a_workbook_gives_the_same_stream_as_its_csv(workbook, write_csv, rows):
    made = [{**row, "id": i} for i, row in enumerate(rows())]
    path = workbook([[None] * 4, list(made[0]), *(list(row.values()) for row in made)])
    assert streams.load(path).fingerprint() == streams.load(write_csv(made)).fingerprint()


def test_values_are_what_csv_would_hold_and_columns_without_a_name_are_not_read(workbook):
    given = [row for k in (1, 2, 3) for row in ([7.0, 5, k + 0.5], [True, "x", datetime.date(2026, 1, k)])]
    stream = streams.load(workbook([["label", None, "text"], *given]), tasks=1)
    assert set(stream.class_names) == {"7", "TRUE"}
    days = {f"2026-01-0{k} 00:00:00" for k in (1, 2, 3)}
    assert {*stream[0].train.inputs, *stream[0].test.inputs} == {"1.5", "2.5", "3.5"} | days
    assert stream[0].train.ids[0].startswith("shop.xlsx:")


def test_a_bad_row_is_named_by_its_number_in_the_sheet(workbook):
    path = workbook([["text", "label"], ["a", "x"], [], ["b", "x"], [None, "x"], ["c", "x"]])
    assert "shop.xlsx, row 5: the text is empty; fill it in" in refusal(path)


def test_inputs_of_a_prediction(workbook):
    assert streams.read_inputs(workbook([["text"], ["where is my card"]])) == (["where is my card"], ["shop.xlsx:2"])


@pytest.mark.parametrize("content", [b"no zip at all", b"PK\x03\x04 cut"])
def test_what_is_no_workbook_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "shop.xlsx").write_bytes(content)
    assert "shop.xlsx cannot be read (BadZipFile" in refusal(str(tmp_path / "shop.xlsx"))


def test_a_sheet_without_rows(workbook):
    assert "the file holds no rows" in refusal(workbook([["text", "label"]]))
    assert "the file holds no rows" in refusal(workbook([]))


def test_a_workbook_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(workbook, monkeypatch):
    path = workbook([["text", "label"], ["a", "x"]])
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 2**20)
    rebuilt(path, {STRINGS: b" " * 2**22})
    assert os.path.getsize(path) < 20_000
    monkeypatch.setattr(openpyxl, "load_workbook", lambda *_, **__: pytest.fail("the workbook was unpacked"))
    assert "shop.xlsx: takes more than" in refusal(path)


def with_shared_strings(path: str, strings: list[str], rows: str) -> str:
    """The workbook as Excel writes it: cells hold the numbers of texts, which are stored once."""
    with zipfile.ZipFile(path) as book:
        sheet, types = book.read(SHEET).decode(), book.read("[Content_Types].xml").decode()
    start, end = sheet.index("<sheetData>"), sheet.index("</sheetData>")
    part = f'<Override PartName="/{STRINGS}" ContentType="{SHARED_STRINGS}"/></Types>'
    texts = "".join(f"<si><t>{text}</t></si>" for text in strings)
    return rebuilt(path, {
        SHEET: f"{sheet[:start]}<sheetData>{rows}{sheet[end:]}".encode(),
        "[Content_Types].xml": types.replace("</Types>", part).encode(),
        STRINGS: f'<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">{texts}</sst>'.encode(),
    })  # fmt: skip


def test_shared_strings_are_read(workbook):
    cells = "".join(f'<row r="{i}"><c r="A{i}" t="s"><v>{i}</v></c></row>' for i in (1, 2))
    path = with_shared_strings(workbook([["x"]]), ["nobody", "text", "where is my card"], cells)
    assert streams.read_inputs(path) == (["where is my card"], ["shop.xlsx:2"])


def test_one_long_text_in_many_cells_is_refused_while_it_is_read(workbook, monkeypatch):
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 2**20)
    cells = "".join(f'<row r="{i}"><c r="A{i}" t="s"><v>{i > 1:d}</v></c></row>' for i in range(1, 400))
    path = with_shared_strings(workbook([["x"]]), ["text", "x" * 10_000], cells)
    assert os.path.getsize(path) < 10_000
    with zipfile.ZipFile(path) as book:
        assert sum(entry.file_size for entry in book.infolist()) < 2**17
    assert "shop.xlsx: takes more than 1,048,576 bytes" in refusal(path)


def test_a_row_of_an_absurd_number_is_refused(workbook, monkeypatch):
    monkeypatch.setattr(limits, "EXCEL_ROWS", 100)
    path = workbook([["text", "label"], ["a", "x"]])
    with zipfile.ZipFile(path) as book:
        sheet = book.read(SHEET).replace(b'<row r="2"', b'<row r="999999999999"')
    assert "shop.xlsx: more than 100 rows" in refusal(rebuilt(path, {SHEET: sheet}))


def test_xml_entities_are_not_expanded(workbook):
    defusedxml = pytest.importorskip("defusedxml")
    laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha"}">' for i in range(9))
    path = workbook([["text", "label"], ["a", "x"]])
    with zipfile.ZipFile(path) as book:
        sheet = book.read(SHEET).decode().replace("<t>a</t>", "<t>&a8;</t>")
    start = sheet.index("<worksheet")
    path = rebuilt(path, {SHEET: f"<!DOCTYPE worksheet [{laughs}]>{sheet[start:]}".encode()})
    with pytest.raises(DataError, match=r"shop\.xlsx cannot be read") as refused:
        streams.load(path)
    assert isinstance(refused.value.__cause__.__cause__, defusedxml.EntitiesForbidden)


def test_without_the_library_the_extra_is_named(workbook, monkeypatch):
    path = workbook([["text", "label"], ["a", "x"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "pip install 'everlearn[excel]'" in refusal(path)
