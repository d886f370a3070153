"""Retrieval streams: queries with their relevant documents, and a corpus to search. Each task is one domain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn.errors import DataError, printable
from everlearn.streams.cells import BadCell, as_id, as_name, as_split, as_text, is_missing
from everlearn.streams.domain_incremental import select
from everlearn.streams.files import read_columns
from everlearn.streams.records import BadRows, place
from everlearn.streams.splits import Shares
from everlearn.streams.steps import check_tasks
from everlearn.streams.stream import Corpus, Examples, Task

HIGHEST_GRADE = 1_000_000


@dataclass(frozen=True)
class Entry:
    """One document to be found, or one query. A document whose split is None belongs to every split.

    Args:
        relevant: for a query, the grades of its relevant documents, in the order in which the file lists them.
    """

    id: str
    text: str
    domain: str
    split: str | None
    relevant: dict[str, int] = field(default_factory=dict)


def read_documents(path: Path, titles: bool, bad: BadRows) -> dict[str, Entry]:
    """Read the documents of the corpus, by id. The columns are `doc_id` and `text`, and optionally `title`, `domain`
    and `split`.

    Without `titles`, only the text is searched, because a title often names what the query asks for.
    """

    def document(cell: dict[str, Any], domain: str) -> Entry:
        text = as_text(cell["text"])
        if titles and not is_missing(cell["title"]):
            text = f"{as_text(cell['title'])}. {text}"
        split = None if cell["split"] == "all" else as_split(cell["split"])
        return Entry(as_id(cell["doc_id"]), text, domain, split)

    return _read(path, ("doc_id", "text"), ("title",) if titles else (), "_corpus", document, bad)


def read_queries(path: Path, documents: dict[str, Entry], bad: BadRows) -> list[Entry]:
    """Read the queries. The columns are `query_id`, `text` and `pos` (a list of document ids), and optionally `grade`
    (one for each document: a whole number, where 0 means not relevant), `domain` and `split`."""

    def query(cell: dict[str, Any], domain: str) -> Entry:
        relevant = _relevant(cell["pos"], cell["grade"])
        for id in relevant:
            if id not in documents:
                cause = f"the relevant document '{printable(id)}' is not in the corpus"
                raise BadCell(cause, "add it to the corpus")
        return Entry(as_id(cell["query_id"]), as_text(cell["text"]), domain, as_split(cell["split"]), relevant)

    return list(_read(path, ("query_id", "text", "pos"), ("grade",), "_queries", query, bad).values())


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


def _read(
    path: Path,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    role: str,
    make: Callable[[dict[str, Any], str], Entry],
    bad: BadRows,
) -> dict[str, Entry]:
    """What `make` builds of each row, by id; bad rows and repeated ids are skipped or refused.

    Without a column `domain`, the name of the data set is the domain.
    """
    columns = read_columns(path, bad)
    for name in needed:
        if name not in columns.headers:
            known = printable(", ".join(columns.headers), 400)
            raise DataError(f"{path}: no column '{name}'; the columns are {known}: rename one")
    nothing = [None] * len(columns.rows)
    names = (*needed, *optional, "domain", "split")
    cells = {name: columns.read(name) if name in columns.headers else nothing for name in names}
    entries: dict[str, Entry] = {}
    places: dict[str, str] = {}
    for i, row in enumerate(columns.rows):
        where = place(columns.file, row)
        cell = {name: values[i] for name, values in cells.items()}
        try:
            named = not is_missing(cell["domain"])
            domain = as_name(cell["domain"], [], "domain") if named else path.stem.removesuffix(role)
            made = make(cell, domain)
            if made.id in places:
                raise BadCell(f"the id '{made.id}' is already used at {places[made.id]}", "give each row its own id")
        except BadCell as problem:
            bad.add(where, *problem.args)
        else:
            entries[made.id], places[made.id] = made, where
    return entries


def make_retrieval_tasks(
    files: tuple[Path, Path], shares: Shares, domains: list[str] | None, *, titles: bool, seed: int, bad: BadRows
) -> tuple[list[Task], list[str]]:
    """Make one task per domain, and notes.

    The training examples are all pairs of a query and a relevant document. The corpus of a task holds the
    documents of the domain's test split (all documents of the domain, if the data set has no test split), and any
    other relevant documents of its test queries.

    Raises:
        DataError: a row is bad, or a requested domain has no training or no test queries.
    """
    documents = read_documents(files[0], titles, bad)
    queries = read_queries(files[1], documents, bad)
    has_test = any(query.split == "test" for query in queries)
    queries = _with_splits(queries, shares, seed)

    by_part: dict[tuple[str, str | None], list[Entry]] = defaultdict(list)
    for query in queries:
        by_part[query.domain, query.split].append(query)
    chosen = select([query.domain for query in queries], domains, str(files[1]))
    incomplete = {d: s for d in chosen for s in ("test", "train") if not by_part[d, s]}
    if incomplete and (domains is not None or len(incomplete) == len(chosen)):
        domain, split = next(iter(incomplete.items()))
        raise DataError(f"{files[1]}: no {split} queries in the domain '{domain}'; choose other domains")
    check_tasks(str(files[1]), len(chosen) - len(incomplete))
    notes = [f"left out {len(incomplete)} domains that lack train or test queries"] if incomplete else []

    found: dict[str, list[Entry]] = defaultdict(list)
    for document in documents.values():
        if not has_test or document.split in ("test", None):
            found[document.domain].append(document)
    tasks = []
    for index, domain in enumerate(domain for domain in chosen if domain not in incomplete):
        needed = [documents[id] for query in by_part[domain, "test"] for id in query.relevant]
        corpus = {document.id: document.text for document in [*found[domain], *needed]}
        examples = {split: _pairs(by_part[domain, split], documents) for split in ("train", "validation")}
        examples["test"] = _tests(by_part[domain, "test"])
        searched = Corpus(list(corpus), list(corpus.values()))
        tasks.append(Task(index, domain, (), (), goal="ranking", examples=examples, corpus=searched))
    return tasks, notes


def _with_splits(queries: list[Entry], shares: Shares, seed: int) -> list[Entry]:
    """The data set's own splits. If it has no test (or validation) queries, a seeded share of each domain is taken."""
    splits = [query.split or "train" for query in queries]
    random = np.random.RandomState(seed)
    for name, share in shares.items():
        if name in splits:
            continue
        rows_by_domain: dict[str, list[int]] = defaultdict(list)
        for row, query in enumerate(queries):
            if splits[row] == "train":
                rows_by_domain[query.domain].append(row)
        for _, rows in sorted(rows_by_domain.items()):
            for row in random.permutation(rows)[: round(float(share) * len(rows))].tolist():
                splits[row] = name
    return [replace(query, split=split) for query, split in zip(queries, splits, strict=True)]


def _pairs(queries: list[Entry], documents: dict[str, Entry]) -> Examples:
    """One row per relevant document. If a query has several, the id also names the document."""
    rows = [(query, id) for query in queries for id in query.relevant]
    ids = [query.id if len(query.relevant) == 1 else f"{query.id} {id}" for query, id in rows]
    positives = [documents[id].text for _, id in rows]
    return Examples([query.text for query, _ in rows], torch.empty(0, dtype=torch.long), ids, positives=positives)


def _tests(queries: list[Entry]) -> Examples:
    texts, ids = [query.text for query in queries], [query.id for query in queries]
    return Examples(texts, torch.empty(0, dtype=torch.long), ids, relevant=[query.relevant for query in queries])
