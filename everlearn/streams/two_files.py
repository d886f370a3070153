"""Retrieval data of one's own in two files: the documents, and the queries with their relevant documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from everlearn.errors import DataError, printable
from everlearn.streams.cells import BadCell, as_id, as_name, as_split, as_text, is_missing
from everlearn.streams.files import read_columns
from everlearn.streams.records import BadRows, place
from everlearn.streams.retrieval import Collection, Entry

HIGHEST_GRADE = 1_000_000
GROUPS = ("domain", "split")


def read_two_files(files: tuple[Path, Path], titles: bool, bad: BadRows) -> Collection:
    """Read `<name>_corpus` and `<name>_queries`.

    The columns of the corpus are `doc_id` and `text`, and optionally `title`, `domain` and `split`. Those of the
    queries are `query_id`, `text` and `pos` (a list of document ids), and optionally `grade` (one for each document: a
    whole number, where 0 means not relevant), `domain` and `split`. Without a column `domain`, the name of the data set
    is the domain.

    Args:
        titles: put the title of a document before its text.

    Raises:
        DataError: a file lacks a column, or a row is bad and bad rows are not skipped.
    """
    corpus, asked = files
    documents = read_documents(corpus, titles, bad)
    return Collection(str(asked), documents, read_queries(asked, documents, bad))


def read_documents(file: Path, titles: bool, bad: BadRows) -> dict[str, Entry]:
    """The documents of a file, by id. Columns and errors are those above."""

    def document(cell: dict[str, Any]) -> Entry:
        text = with_title(cell["title"], as_text(cell["text"])) if titles else as_text(cell["text"])
        split = None if cell["split"] == "all" else as_split(cell["split"])
        return Entry(as_id(cell["doc_id"]), text, _domain(cell, file, "_corpus"), split)

    return read_entries(file, ("doc_id", "text"), (*GROUPS, *(("title",) if titles else ())), document, bad)


def read_queries(file: Path, documents: Mapping[str, Entry], bad: BadRows) -> list[Entry]:
    """The queries of a file; their relevant documents are among `documents`. Columns and errors are those above."""

    def query(cell: dict[str, Any]) -> Entry:
        relevant = _relevant(cell["pos"], cell["grade"])
        for id in relevant:
            if id not in documents:
                cause = f"the relevant document '{printable(id)}' is not in the corpus"
                raise BadCell(cause, "add it to the corpus")
        split, domain = as_split(cell["split"]), _domain(cell, file, "_queries")
        return Entry(as_id(cell["query_id"]), as_text(cell["text"]), domain, split, relevant)

    return list(read_entries(file, ("query_id", "text", "pos"), (*GROUPS, "grade"), query, bad).values())


def with_title(title: Any, text: str) -> str:
    """The title and the text of a document, or the text alone where it has no title.

    >>> with_title("Roses", "Water them at six."), with_title(None, "Water them at six.")
    ('Roses. Water them at six.', 'Water them at six.')
    """
    return text if is_missing(title) else f"{as_text(title)}. {text}"


def read_entries(
    path: Path,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    make: Callable[[dict[str, Any]], Entry],
    bad: BadRows,
) -> dict[str, Entry]:
    """What `make` builds of each row, by id; bad rows and repeated ids are skipped or refused.

    Args:
        make: is given the cells of the needed and optional columns by name; None where a column is missing.

    Raises:
        DataError: a needed column is missing, or a row is bad and bad rows are not skipped.
    """
    columns = read_columns(path, bad)
    for name in needed:
        if name not in columns.headers:
            known = printable(", ".join(columns.headers), 400)
            raise DataError(f"{path}: no column '{name}'; the columns are {known}: rename one")
    nothing = [None] * len(columns.rows)
    cells = {name: columns.read(name) if name in columns.headers else nothing for name in (*needed, *optional)}
    entries: dict[str, Entry] = {}
    for i, row in enumerate(columns.rows):
        where = place(columns.file, row)
        try:
            made = make({name: values[i] for name, values in cells.items()})
            if made.id in entries:
                cause = f"the id '{made.id}' is already used at {entries[made.id].place}"
                raise BadCell(cause, "give each row its own id")
        except BadCell as problem:
            bad.add(where, *problem.args)
        else:
            entries[made.id] = replace(made, place=where)
    return entries


def _domain(cell: dict[str, Any], path: Path, role: str) -> str:
    missing = is_missing(cell["domain"])
    return path.stem.removesuffix(role) if missing else as_name(cell["domain"], [], "domain")


def _relevant(pos: Any, grades: Any) -> dict[str, int]:
    """The grades of the documents that are relevant for a query, by document."""
    if not isinstance(pos, list) or not pos:
        raise BadCell("pos is not a list of document ids", "name at least one relevant document")
    ids = [as_id(id) for id in pos]
    if len(set(ids)) < len(ids):
        twice = next(id for id, count in Counter(ids).items() if count > 1)
        raise BadCell(f"pos names the document '{printable(twice)}' twice", "name each document once")
    if grades is None:
        return dict.fromkeys(ids, 1)
    if not isinstance(grades, list):
        raise BadCell(f"grade is a {type(grades).__name__}, not a list", "give one grade per document")
    if len(grades) != len(ids):
        raise BadCell(f"{len(grades)} grades for {len(ids)} documents", "give one grade per document")
    relevant = {id: grade for id, grade in zip(ids, map(_as_grade, grades), strict=True) if grade}
    if not relevant:
        raise BadCell("every grade is 0, so no document is relevant", "name at least one relevant document")
    return relevant


def _as_grade(value: Any) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or value not in range(HIGHEST_GRADE + 1):
        shown = printable(value, 30) if number or isinstance(value, str) else f"of type {type(value).__name__}"
        raise BadCell(f"the grade {shown} is not usable", f"write a whole number from 0 to {HIGHEST_GRADE:,}")
    return int(value)
