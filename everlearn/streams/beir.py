"""Retrieval data in the format of BEIR: a folder with corpus.jsonl, queries.jsonl and qrels/{train,dev,test}.tsv.

Thakur et al. (2021), "BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval Models",
https://arxiv.org/abs/2104.08663
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from everlearn.errors import DataError, printable
from everlearn.streams.cells import BadCell, as_id, as_text, is_missing
from everlearn.streams.files import read_columns
from everlearn.streams.judgements import Judgement, judged
from everlearn.streams.peek import BEIR_FILES
from everlearn.streams.records import SPLIT_NAMES, BadRows, place
from everlearn.streams.retrieval import Collection, Entry, joined
from everlearn.streams.two_files import HIGHEST_GRADE, read_entries, with_title

CORPUS, QUERIES = BEIR_FILES
COLUMNS = ("query-id", "corpus-id", "score")


def read_beir(folders: Sequence[Path], titles: bool, bad: BadRows) -> Collection:
    """Read folders in the format of BEIR; each is one domain of its name.

    A document without a text is its title.

    Args:
        titles: put the title of a document before its text.

    Raises:
        DataError: a file or column is missing, or a row is bad and bad rows are not skipped.
    """
    return joined([_read_folder(folder, titles, bad) for folder in folders], str(folders[0].parent))


def _read_folder(folder: Path, titles: bool, bad: BadRows) -> Collection:
    domain = folder.resolve().name

    def document(cell: dict[str, Any]) -> Entry:
        title, text = cell["title"], cell["text"]
        if is_missing(text) and not is_missing(title):
            title, text = None, title
        text = as_text(text)
        return Entry(as_id(cell["_id"]), with_title(title, text) if titles else text, domain, None)

    def query(cell: dict[str, Any]) -> Entry:
        return Entry(as_id(cell["_id"]), as_text(cell["text"]), domain, None)

    documents = read_entries(folder / CORPUS, ("_id", "text"), ("title",), document, bad)
    queries = read_entries(folder / QUERIES, ("_id", "text"), (), query, bad)
    return Collection(str(folder), documents, judged(queries, documents, _judgements(folder, bad), bad))


def _judgements(folder: Path, bad: BadRows) -> Iterator[Judgement]:
    """The lines of qrels/train.tsv, qrels/dev.tsv and qrels/test.tsv, as far as there are such files."""
    paths = {folder / "qrels" / f"{short}.tsv": split for short, split in SPLIT_NAMES.items()}
    found = {path: split for path, split in paths.items() if os.path.isfile(path)}
    if not found:
        raise DataError(f"{folder / 'qrels'}: no train.tsv, dev.tsv or test.tsv; add the judgements of the queries")
    for path, split in found.items():
        columns = read_columns(path, bad)
        for name in COLUMNS:
            if name not in columns.headers:
                known = printable(", ".join(columns.headers), 400)
                raise DataError(f"{path}: no column '{name}'; the columns are {known}: write the header "
                                f"{' '.join(COLUMNS)}, separated by tabs")  # fmt: skip
        for row, *cells in zip(columns.rows, *map(columns.read, COLUMNS), strict=True):
            where = place(columns.file, row)
            try:
                yield Judgement(as_id(cells[0]), as_id(cells[1]), _as_grade(cells[2]), split, where)
            except BadCell as problem:
                bad.add(where, *problem.args)


def _as_grade(text: str) -> int:
    """A grade as text; a negative one, as TREC writes it for documents that are harmful or spam, means not relevant."""
    if not re.fullmatch(r"-?\d{1,7}(\.0+)?", text.strip()) or float(text) > HIGHEST_GRADE:
        raise BadCell(
            f"the score {printable(text, 30)!r} is not usable", f"write a whole number up to {HIGHEST_GRADE:,}"
        )
    return int(float(text))
