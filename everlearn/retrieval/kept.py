"""A domain as a run keeps it: the index of its documents, and the texts by which an update of the model is judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from everlearn.errors import EverlearnError, one_line, printable
from everlearn.files import write_whole
from everlearn.method import Method
from everlearn.metrics.retrieval import id_order
from everlearn.schemas.retrieval import read_kept_domain
from everlearn.seeds import derived_seed
from everlearn.streams.stream import Corpus, Examples, Task

DOCUMENTS = 20_000
"""Documents of a domain whose texts are kept; those that a kept query asks for are never left out."""


def write_index(place: Path, task: Task, documents: np.ndarray, by: Method) -> None:
    """Keep the embeddings (m, d) of the documents of a domain, in the order of `id_order`, as an index."""
    from everlearn.retrieval.index import Index
    from everlearn.retrieval.stamp import stamp_of

    assert task.corpus is not None
    stamp, ids = stamp_of(by), task.corpus.ids
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed after it had kept them
    place.parent.mkdir(exist_ok=True)
    index = Index.create(place, stamp)
    index.add([ids[i] for i in id_order(ids)], documents, stamp)
    index.save()


def read_index(place: Path, task: Task) -> tuple[str, np.ndarray]:
    """The space of such an index, and its embeddings of the documents of the task.

    Raises:
        EverlearnError: it is damaged, or lacks a document of the task.
    """
    from everlearn.retrieval.index import Index

    assert task.corpus is not None
    ids = task.corpus.ids
    with one_line(place, "learn the run again"):
        index = Index.load(place)
        if missing := [id for id in ids if id not in index]:
            raise EverlearnError(f"{place} lacks the document '{printable(missing[0])}': learn the run again")
        return index.stamp.space, index.vectors([ids[i] for i in id_order(ids)])


def write_texts(place: Path, task: Task, keep: int) -> None:
    """Keep test queries of a domain and documents, beside its index: all, or a sample where there are more.

    Args:
        place: the folder of the index.
        keep: most queries.
    """
    assert task.corpus is not None
    assert task.test.relevant is not None
    random = np.random.default_rng(derived_seed(task.index))
    test = task.test[np.sort(random.permutation(len(task.test))[:keep])]
    needed = {id for relevant in test.relevant or () for id in relevant}
    others = [id for id in task.corpus.ids if id not in needed]
    more = random.permutation(len(others))[: max(0, DOCUMENTS - len(needed))]
    kept = needed | {others[i] for i in more.tolist()}
    documents = [(id, text) for id, text in zip(task.corpus.ids, task.corpus.texts, strict=True) if id in kept]
    queries = [
        {"id": id, "text": text, "relevant": relevant}
        for id, text, relevant in zip(test.ids, test.inputs, test.relevant or (), strict=True)
    ]
    whole = {"documents_in_all": len(task.corpus), "queries": queries,
             "documents": [{"id": id, "text": text} for id, text in documents]}  # fmt: skip
    write_whole(_texts_of(place), json.dumps(whole, ensure_ascii=False))


def read_texts(place: Path, task: Task) -> tuple[Task, int]:
    """The task with the test queries and the documents that were kept, and how many documents it had in all.

    Raises:
        EverlearnError: they were not kept, or are damaged.
    """
    file = _texts_of(place)
    if not file.exists():
        raise EverlearnError(f"{file} is not there, and without the queries and documents of old domains an update "
                             "cannot be judged: go back with everlearn rollback to a version that kept them and update "
                             "again without --keep none, or learn the run again")  # fmt: skip
    kept = read_kept_domain(file)
    queries, documents = kept["queries"], kept["documents"]
    test = Examples([query["text"] for query in queries], torch.empty(0, dtype=torch.long),
                    [query["id"] for query in queries], relevant=[query["relevant"] for query in queries])  # fmt: skip
    corpus = Corpus([document["id"] for document in documents], [document["text"] for document in documents])
    return replace(task, examples={"test": test}, corpus=corpus, hidden=()), kept["documents_in_all"]


def _texts_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.texts.json")
