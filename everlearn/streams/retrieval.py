"""Retrieval streams: queries with their relevant documents, and a corpus to search, one domain a task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn.errors import DataError, EverlearnError
from everlearn.streams.cells import BadCell, as_id, as_name, as_split, as_text, is_missing
from everlearn.streams.domain_incremental import select
from everlearn.streams.files import READERS, read_columns
from everlearn.streams.records import BadRows, place
from everlearn.streams.stream import Corpus, Examples, Task


@dataclass(frozen=True)
class Document:
    """One text to be found. A split of None stands in every split."""

    id: str
    text: str
    domain: str
    split: str | None


@dataclass(frozen=True)
class Query:
    """One question, and the grades of the documents that answer it, the first named first."""

    id: str
    text: str
    relevant: dict[str, int]
    domain: str
    split: str | None


def find_retrieval_files(name: str) -> tuple[Path, Path] | None:
    """`<name>_corpus.parquet` and `<name>_queries.parquet` (or another format), where both exist."""
    stem, found = Path(name), []
    for role in ("corpus", "queries"):
        paths = [stem.with_name(f"{stem.name}_{role}{ending}") for ending in READERS] if stem.name else []
        found.append(next((path for path in paths if path.is_file()), None))
    corpus, queries = found
    return (corpus, queries) if corpus and queries else None


def read_documents(path: Path, titles: bool, bad: BadRows) -> dict[str, Document]:
    """The corpus, by id: `doc_id`, `text`, and where it has them `title`, `domain`, `split`.

    Only the text is searched unless `titles`: a title often names what the query asks for. (On the test
    corpus of MedQuAD, MiniLM without training has an nDCG@10 of .81 without titles and .86 with them.)
    """

    def document(cell: Callable[[str], Any], stem: str) -> Document:
        text, title = as_text(cell("text")), cell("title")
        if titles and not is_missing(title):
            text = f"{title}. {text}"
        split = None if cell("split") == "all" else as_split(cell("split"))
        return Document(as_id(cell("doc_id")), text, _domain(cell, stem), split)

    return {doc.id: doc for _, doc in _read(path, ("doc_id", "text"), "_corpus", document, bad)}


def read_queries(path: Path, documents: dict[str, Document], bad: BadRows) -> list[Query]:
    """The queries: `query_id`, `text`, `pos` (a list of doc_id), and `grade`, `domain`, `split` if there."""

    def query(cell: Callable[[str], Any], stem: str) -> Query:
        pos, grades = cell("pos"), cell("grade")
        if not isinstance(pos, list) or not pos:
            raise BadCell("pos is not a list of document ids", "name at least one relevant document")
        if grades is None:
            grades = [1] * len(pos)
        if len(grades) != len(pos):
            raise BadCell(f"{len(grades)} grades for {len(pos)} documents", "give one grade a document")
        for id in pos:
            if id not in documents:
                raise BadCell(f"the relevant document '{id}' is not in the corpus", "add it to the corpus")
        relevant = dict(zip(pos, grades, strict=True))
        domain = _domain(cell, stem)
        return Query(as_id(cell("query_id")), as_text(cell("text")), relevant, domain, as_split(cell("split")))

    return [found for _, found in _read(path, ("query_id", "text", "pos"), "_queries", query, bad)]


def _domain(cell: Callable[[str], Any], stem: str) -> str:
    return stem if is_missing(cell("domain")) else as_name(cell("domain"), [])


def _read(path: Path, needed: tuple[str, ...], role: str, make: Callable, bad: BadRows) -> Iterator[tuple[str, Any]]:
    """What `make` builds of each row, with its place; bad rows and repeated ids are left out or refused."""
    columns = read_columns(path, bad)
    for name in needed:
        if name not in columns.cells:
            raise DataError(f"{path}: no column '{name}'; the columns are {', '.join(columns.cells)}: rename one")
    places: dict[str, str] = {}
    for i, row in enumerate(columns.rows):
        where = place(columns.file, row)

        def cell(name: str, i: int = i) -> Any:
            return columns.cells[name][i] if name in columns.cells else None

        try:
            made = make(cell, path.stem.removesuffix(role))
        except BadCell as problem:
            bad.add(where, *problem.args)
            continue
        if made.id in places:
            bad.add(where, f"the id '{made.id}' already stands at {places[made.id]}", "give each its own id")
            continue
        places[made.id] = where
        yield where, made


def make_retrieval_tasks(
    files: tuple[Path, Path],
    *,
    domains: list[str] | None,
    titles: bool,
    test: float,
    validation: float,
    seed: int,
    bad: BadRows,
) -> tuple[list[Task], list[str]]:
    """One task for each domain, and notes.

    Training is one row for each pair of a query and a relevant document. The corpus of a task holds the
    documents of the domain's test split (all of the domain, where the set has no test split), and whatever
    else its test queries need.

    Raises:
        DataError: a bad row, or an asked domain without training or test queries.
    """
    documents = read_documents(files[0], titles, bad)
    queries = read_queries(files[1], documents, bad)
    has_test = any(query.split == "test" for query in queries)
    queries = _with_splits(queries, test, validation, seed)

    by_part: dict[tuple[str, str | None], list[Query]] = defaultdict(list)
    for query in queries:
        by_part[query.domain, query.split].append(query)
    chosen = select([query.domain for query in queries], domains, str(files[1]))
    incomplete = {d: s for d in chosen for s in ("test", "train") if not by_part[d, s]}
    if incomplete and (domains is not None or len(incomplete) == len(chosen)):
        domain, split = next(iter(incomplete.items()))
        raise DataError(f"{files[1]}: no {split} queries in the domain '{domain}'; choose others with domains")
    notes = [f"left out {len(incomplete)} domains without train and test queries"] if incomplete else []

    found: dict[str, list[Document]] = defaultdict(list)
    for document in documents.values():
        if not has_test or document.split in ("test", None):
            found[document.domain].append(document)
    tasks = []
    for index, domain in enumerate(domain for domain in chosen if domain not in incomplete):
        needed = [documents[id] for query in by_part[domain, "test"] for id in query.relevant]
        corpus = {document.id: document.text for document in [*found[domain], *needed]}
        examples = {
            "train": _pairs(by_part[domain, "train"], documents),
            "validation": _pairs(by_part[domain, "validation"], documents),
            "test": _tests(by_part[domain, "test"]),
        }
        searched = Corpus(list(corpus), list(corpus.values()))
        tasks.append(Task(index, domain, (), (), goal="ranking", examples=examples, corpus=searched))
    return tasks, notes


def _with_splits(queries: list[Query], test: float, validation: float, seed: int) -> list[Query]:
    """The set's own splits; where it has no test (or validation) queries, a seeded share of each domain."""
    splits = [query.split or "train" for query in queries]
    random = np.random.RandomState(seed)
    for name, share in (("test", test), ("validation", validation)):
        if not 0 <= share < 1:
            raise EverlearnError(f"{name}={share} is not a share; give a number from 0 up to 1")
        if name in splits:
            continue
        rows_by_domain: dict[str, list[int]] = defaultdict(list)
        for row, query in enumerate(queries):
            if splits[row] == "train":
                rows_by_domain[query.domain].append(row)
        for _, rows in sorted(rows_by_domain.items()):
            for row in random.permutation(rows)[: round(share * len(rows))].tolist():
                splits[row] = name
    return [replace(query, split=split) for query, split in zip(queries, splits, strict=True)]


def _pairs(queries: list[Query], documents: dict[str, Document]) -> Examples:
    """A row for each relevant document; where a query has several, the id names the document too."""
    rows = [(query, id) for query in queries for id in query.relevant]
    return Examples(
        inputs=[query.text for query, _ in rows],
        labels=torch.empty(0, dtype=torch.long),
        ids=[query.id if len(query.relevant) == 1 else f"{query.id} {id}" for query, id in rows],
        positives=[documents[id].text for _, id in rows],
    )


def _tests(queries: list[Query]) -> Examples:
    return Examples(
        inputs=[query.text for query in queries],
        labels=torch.empty(0, dtype=torch.long),
        ids=[query.id for query in queries],
        relevant=[query.relevant for query in queries],
    )
