"""Retrieval data of one's own as pairs: a query, a document that answers it, and perhaps some that only seem to."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from everlearn.errors import DataError, printable
from everlearn.streams.cells import BadCell, as_name, as_split, as_text, is_missing
from everlearn.streams.columns import Columns
from everlearn.streams.files import find_parts, read_columns
from everlearn.streams.peek import POSITIVE, QUERY
from everlearn.streams.records import BadRows, place
from everlearn.streams.retrieval import Collection, Entry

NEGATIVE = re.compile(r"negative(_\d+)?")
"""The column of a text or a list of texts; several columns are called negative_1, negative_2 and so on."""


def read_pair_files(name: str, bad: BadRows) -> Collection:
    """Read the pairs of a file, or of the files `<name>_train` and so on. Columns and errors are those below."""
    parts = {name: None} if os.path.isfile(name) else {path: split for split, path in find_parts(Path(name)).items()}
    return read_pairs([(read_columns(Path(path), bad), split) for path, split in parts.items()], name, bad)


def read_pairs(parts: Sequence[tuple[Columns, str | None]], source: str, bad: BadRows) -> Collection:
    """Read pairs or triplets of texts.

    The columns are `query` and `positive`, and optionally `negative` (or `negative_1`, `negative_2`, …), `domain` and
    `split`. The ids are hashes of the texts: the same query, or the same document, is one in all its rows. The corpus
    of a domain is all of its documents. Without a column `domain`, the name of the data set is the domain.

    Args:
        parts: the columns of each file, and the split that all its rows belong to (None where a column says it).
        source: the name of the data set.

    Raises:
        DataError: a column is missing, or a row is bad and bad rows are not skipped.
    """
    documents: dict[str, Entry] = {}
    queries: dict[str, Entry] = {}
    for columns, split in parts:
        for name, other in ((QUERY, POSITIVE), (POSITIVE, QUERY)):
            if name not in columns.headers:
                known = printable(", ".join(columns.headers), 400)
                raise DataError(f"{columns.file}: a column '{other}' without a column '{name}'; the columns are "
                                f"{known}: add it")  # fmt: skip
        optional = [name for name in columns.headers if NEGATIVE.fullmatch(name) or name in ("domain", "split")]
        cells = {name: columns.read(name) for name in (QUERY, POSITIVE, *optional)}
        for i, row in enumerate(columns.rows):
            where = place(columns.file, row)
            try:
                _add_row({name: values[i] for name, values in cells.items()}, split, source, where, queries, documents)
            except BadCell as problem:
                bad.add(where, *problem.args)
    return Collection(source, documents, list(queries.values()))


def _add_row(
    cell: dict[str, Any], split: str | None, source: str, where: str, queries: dict[str, Entry],
    documents: dict[str, Entry],
) -> None:  # fmt: skip
    """Add the query of a row and its documents to those that are known."""
    query, positive = as_text(cell[QUERY]), as_text(cell[POSITIVE])
    negatives = [as_text(text) for name in cell if NEGATIVE.fullmatch(name) for text in _listed(cell[name])]
    named = not is_missing(cell.get("domain"))
    domain = as_name(cell["domain"], [], "domain") if named else Path(source).stem
    split = split or as_split(cell.get("split"))
    inside = domain if named else ""
    asked = queries.get(id := _id(inside, query)) or Entry(id, query, domain, split, place=where)
    if (asked.split or "train") != (split or "train"):
        cause = f"the query stands in the split {asked.split or 'train'} at {asked.place}"
        raise BadCell(cause, "keep each query in one split")
    found, wrong = _id(inside, positive), [_id(inside, text) for text in negatives]
    relevant, refused = {**asked.relevant, found: 1}, (*asked.negatives, *wrong)
    if found in wrong:
        raise BadCell("the negative is the positive", "give a document that does not answer the query")
    if any(document in relevant for document in refused):
        cause = f"a document is a positive of its query here and a negative in another row (first: {asked.place})"
        raise BadCell(cause, "keep it as one of the two")
    queries[id] = replace(asked, relevant=relevant, negatives=tuple(dict.fromkeys(refused)))
    for document, text in zip((found, *wrong), (positive, *negatives), strict=True):
        documents.setdefault(document, Entry(document, text, domain, None, place=where))


def _listed(value: Any) -> list[Any]:
    """The texts of a cell that holds one, several or none."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if is_missing(value) else [value]


def _id(domain: str, text: str) -> str:
    return hashlib.sha256(f"{domain}\0{text}".encode()).hexdigest()[:16]
