"""What the commands that judge and re-index are given: encoders by name, documents and queries in files."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.errors import DataError, EverlearnError, printable
from everlearn.streams.cells import as_id, as_text, is_missing
from everlearn.streams.records import BadRows
from everlearn.streams.retrieval import Collection, Entry

if TYPE_CHECKING:
    from everlearn.retrieval.index import Index
    from everlearn.retrieval.stamp import Encoder

IDS = ("doc_id", "_id", "id")
"""The columns that may hold the ids of documents, in this order."""


def encoder(name: str, method: str | None = None) -> tuple[Encoder, dict[str, str]]:
    """The encoder of a run's folder or of a backbone, and what an index remembers of it (`Index.made_by`).

    Args:
        name: a run's folder, or what `everlearn.backbones.load` takes.
        method: the method that the folder holds, where it is not one of everlearn.

    Raises:
        EverlearnError: there is no such model, or it cannot be loaded.

    >>> encoder("tiny")[1]
    {'backbone': 'tiny'}
    """
    import torch

    if os.path.isfile(Path(name) / "config.yaml"):
        from everlearn import model

        return model.load(name, method=method), {"run": name}
    from everlearn import backbones

    loaded = backbones.load(name)
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu"), {"backbone": name}


def encoder_of(index: Index, name: str | None = None, method: str | None = None) -> Encoder:
    """The encoder of the documents of an index: the one that is named, or else the one that the index remembers. Of a
    run that has been updated since, it is the newest version that embeds documents as those of the index.

    Raises:
        EverlearnError: it remembers none, or the encoder embeds documents otherwise than those of the index.
    """
    from everlearn.retrieval.stamp import stamp_of

    named = _named(index, name)
    newest = encoder(named, method)[0]
    for found in _versions(newest, method):
        if stamp_of(found).space == index.stamp.space:
            return found
    raise EverlearnError(f"{printable(named)} is not the encoder of {index.folder} as it was when its documents were "
                         f"embedded ({stamp_of(newest).differs_from(index.stamp)}): name that one with --from, or "
                         "re-index without a verdict")  # fmt: skip


def searcher_of(index: Index) -> Encoder:
    """What searches an index without being named: the current version of the encoder that the index remembers, if its
    queries fit, and otherwise the version that embedded the documents.

    Raises:
        EverlearnError: it remembers none, or there is no such version.
    """
    from everlearn.retrieval.stamp import method_of

    newest = encoder(_named(index))[0]
    reaches = getattr(method_of(newest), "reaches", None)
    return newest if reaches and reaches(index.stamp.space) else encoder_of(index)


def _named(index: Index, name: str | None = None) -> str:
    named = name or next(iter(index.made_by.values()), None)
    if named is None:
        raise EverlearnError(f"{index.folder} does not remember its encoder ({printable(index.stamp.encoder)}): name "
                             "it with --from")  # fmt: skip
    return named


def _versions(newest: Encoder, method: str | None) -> Iterator[Encoder]:
    """The encoder, and of the model of a run its other versions, newest first."""
    from everlearn import model, versions

    yield newest
    if isinstance(newest, model.Model) and newest.directory:
        for number in reversed(versions.numbers(newest.directory)):
            if number != newest.version:
                yield model.load(newest.directory, method=method, version=number)


def read_texts(documents: str, queries: str | None, *, titles: bool = False, skip_bad_rows: bool = False) -> Collection:
    """Documents, and queries with their relevant documents.

    Args:
        documents: a file with the columns text and doc_id, _id or id; or what `streams.load` takes for retrieval:
            pairs, two files, a folder in the format of BEIR, or ir_datasets, which have queries as well. The ids of the
            documents of pairs are made of their texts.
        queries: a file with the columns query_id, text and pos (ids of documents), and optionally grade, domain and
            split; where it is given, other queries are left out.
        titles: put the title of a document before its text.

    Raises:
        DataError: something cannot be read; the message names the file and the row.

    >>> collection = read_texts("domains4", None)
    >>> len(collection.documents) > 100, len(collection.queries) > 100
    (True, True)
    """
    from everlearn.streams.beir import read_beir
    from everlearn.streams.build import DATA
    from everlearn.streams.files import find_retrieval_files
    from everlearn.streams.ir_catalogue import read_catalogue
    from everlearn.streams.packaged import IR_DATASETS, PACKAGED
    from everlearn.streams.pairs import read_pair_files
    from everlearn.streams.peek import beir_folders, retrieval_format
    from everlearn.streams.two_files import read_queries, read_two_files

    bad = BadRows(skip_bad_rows, option="--skip-bad-rows")
    how = retrieval_format(documents)
    how = how if how == "pairs" or not os.path.isfile(documents) else None
    if how == "ir_datasets":
        collection = read_catalogue(documents.removeprefix(IR_DATASETS), titles, bad)
    elif how == "BEIR":
        collection = read_beir(beir_folders(documents), titles, bad)
    elif how == "two files":
        files = find_retrieval_files(str(DATA / documents) if documents in PACKAGED else documents)
        assert files is not None
        collection = read_two_files(files, titles, bad)
    elif how == "pairs":
        collection = read_pair_files(documents, bad)
    else:
        collection = Collection(documents, _documents(Path(documents), titles, bad), [])
    if queries is not None:
        asked = read_queries(Path(queries), collection.documents, bad)
        collection = Collection(queries, collection.documents, asked)
    return replace(collection, notes=bad.notes())


def of_index(index: Index, collection: Collection) -> tuple[dict[str, str], list[Entry], list[str]]:
    """The texts of the documents of an index, the queries that they can answer, and what was left out.

    Raises:
        DataError: the text of a document of the index is missing.
    """
    there = index.ids
    if missing := [id for id in there if id not in collection.documents]:
        raise DataError(f"{collection.source} lacks the texts of {len(missing):,} of the {len(there):,} documents of "
                        f"{index.folder}, the first is '{printable(missing[0])}': add them, or remove these documents "
                        "from the index")  # fmt: skip
    texts = {id: collection.documents[id].text for id in there}
    kept = [query for query in collection.queries if all(id in texts for id in query.relevant)]
    notes = [*collection.notes]
    if more := len(collection.documents) - len(texts):
        notes.append(f"{more:,} documents that are not in the index were left out")
    if more := len(collection.queries) - len(kept):
        notes.append(f"{more:,} queries with relevant documents that are not in the index were left out")
    return texts, kept, notes


def held_out(queries: Sequence[Entry]) -> list[Entry]:
    """The queries that were not learned: those of the split test, if there are any, else those without a split, else
    those of the split validation, else all."""
    parts = ([query for query in queries if query.split == split] for split in ("test", None, "validation"))
    return next((part for part in parts if part), list(queries))


def _documents(file: Path, titles: bool, bad: BadRows) -> dict[str, Entry]:
    from everlearn.streams.two_files import read_entries, with_title

    def document(cell: dict[str, Any]) -> Entry:
        text = with_title(cell["title"], as_text(cell["text"])) if titles else as_text(cell["text"])
        id = next((cell[name] for name in IDS if not is_missing(cell[name])), None)
        return Entry(as_id(id), text, "", None)

    return read_entries(file, ("text",), (*IDS, *(("title",) if titles else ())), document, bad)
