"""Retrieval data of `ir_datasets`, by their names there: MS MARCO, BEIR, TREC and hundreds of others.

MacAvaney et al. (2021), "Simplified Data Wrangling with ir_datasets", https://arxiv.org/abs/2103.02280
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from everlearn.errors import EverlearnError, one_line, printable
from everlearn.streams.cells import BadCell, as_id, as_text
from everlearn.streams.columns import check_rows
from everlearn.streams.judgements import Judgement, judged
from everlearn.streams.packaged import IR_DATASETS
from everlearn.streams.records import SPLIT_NAMES, BadRows
from everlearn.streams.retrieval import Collection, Entry, joined
from everlearn.streams.two_files import with_title


def read_catalogue(names: str, titles: bool, bad: BadRows) -> Collection:
    """Read data sets of `ir_datasets`; each is one domain of its name.

    Where a data set has parts called train, dev and test, such as beir/scifact/train, those are the splits.

    Args:
        names: one name, or several, separated by commas.
        titles: put the title of a document before its text.

    Raises:
        EverlearnError: `ir_datasets` is not installed, or has no data set of a name.
        DataError: a data set cannot be read, or a row is bad and bad rows are not skipped.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise EverlearnError(f"{IR_DATASETS} needs the name of a data set: {IR_DATASETS}beir/scifact")
    if len(set(wanted)) < len(wanted):
        raise EverlearnError(f"{IR_DATASETS}{names} names a data set twice, but each is one task: name it once")
    return joined([_read(name, titles, bad) for name in wanted], IR_DATASETS + names)


def _read(name: str, titles: bool, bad: BadRows) -> Collection:
    source = IR_DATASETS + name
    splits: dict[str | None, Any] = {}
    for short, split in SPLIT_NAMES.items():
        part = _data_set(f"{name}/{short}")
        if part is not None and part.has("queries") and part.has("qrels"):
            splits.setdefault(split, part)
    parts = splits or {None: _data_set(name)}
    if None in parts.values():
        raise EverlearnError(f"{source}: ir_datasets has no data set of this name: look it up at ir-datasets.com")
    lacks = [what for what in ("docs", "queries", "qrels") if not all(part.has(what) for part in parts.values())]
    if lacks:
        raise EverlearnError(f"{source}: the data set has no {lacks[0]} in ir_datasets, and documents (docs), queries "
                             "and judgements (qrels) are needed: choose another one")  # fmt: skip
    with one_line(source, "check the network and the space on the disk, or choose another data set"):
        check_rows(source, max(part.docs_count() or 0 for part in parts.values()))
        documents = _entries(next(iter(parts.values())).docs_iter(), "document", name, titles, bad)
        queries: dict[str, Entry] = {}
        for part in parts.values():
            queries |= _entries(part.queries_iter(), "query", name, False, bad)
        return Collection(source, documents, judged(queries, documents, _judgements(parts, source), bad))


def _data_set(name: str) -> Any:
    """The data set of this name, or None if there is none."""
    try:
        import ir_datasets
    except ImportError:
        raise EverlearnError("data of ir_datasets need the package ir-datasets: "
                             "pip install 'everlearn[ir-datasets]'") from None  # fmt: skip
    try:
        return ir_datasets.load(name)
    except KeyError:
        return None


def _entries(rows: Iterable[Any], what: str, domain: str, titles: bool, bad: BadRows) -> dict[str, Entry]:
    """Documents or queries by id. Where a row has no `text`, `ir_datasets` says what its usual text is."""
    entries: dict[str, Entry] = {}
    for row in rows:
        id = getattr(row, "doc_id" if what == "document" else "query_id")
        where = f"{IR_DATASETS}{domain}, {what} '{printable(id)}'"
        try:
            text = as_text(row.text if hasattr(row, "text") else row.default_text())
            text = with_title(getattr(row, "title", None), text) if titles else text
            if entries.setdefault(as_id(id), entry := Entry(as_id(id), text, domain, None, place=where)) is not entry:
                raise BadCell("its id is already used", "choose another data set")
        except BadCell as problem:
            bad.add(where, *problem.args)
    return entries


def _judgements(parts: Mapping[str | None, Any], source: str) -> Iterator[Judgement]:
    for split, part in parts.items():
        for row in part.qrels_iter():
            where = f"{source}, judgement of '{printable(row.query_id)}' and '{printable(row.doc_id)}'"
            yield Judgement(row.query_id, row.doc_id, int(row.relevance), split, where)
