"""Update of a retriever: it learns a new domain, and old and new queries in old and new indexes give the verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn import streams
from everlearn.checkpoint import Checkpoint
from everlearn.engine import learn
from everlearn.errors import EverlearnError
from everlearn.evaluation import supports
from everlearn.listeners import Bar
from everlearn.method import Method
from everlearn.metrics.retrieval import ndcg_at_k, recall_at_k
from everlearn.retrieval.domains import PAIRINGS, Domains, place_of
from everlearn.retrieval.kept import read_texts, write_index, write_texts
from everlearn.streams.stream import Corpus, Examples, Stream, Task
from everlearn.versions import Version, index_of


@dataclass(frozen=True)
class Learned:
    """What an update with a domain gives a version.

    Args:
        task: what was learned.
        record: the entries of the version's record that say what changed.
        source: the name of the data.
        notes: what a reader must know.
    """

    task: Task
    record: dict[str, Any]
    source: str
    notes: list[str]


def learn_domain(
    folder: Path, method: Method, saved: Checkpoint, chain: Sequence[Version], number: int, data: Any, *, titles: bool,
    skip_bad_rows: bool, keep: int, progress: bool,
) -> Learned:  # fmt: skip
    """Have the model of a run learn a new domain, and keep its index in the folder for the version `number`.

    Args:
        folder: the run's folder.
        method: the current version. It learns.
        saved: what the current version holds.
        chain: the versions that led to it from the run itself, oldest first.
        number: of the version that is made.
        data: what `everlearn.streams.load` takes for retrieval, or a stream; of several domains one is made.
        titles: put the title of a document before its text.
        skip_bad_rows, keep, progress: as for `everlearn.model.update`.

    Raises:
        DataError: the data cannot be used; the message names the row.
        EverlearnError: it is not for retrieval, the method cannot learn it, or the run has kept nothing by which the
            update could be judged.
    """
    started = time.monotonic()
    stream = _read(data, titles, skip_bad_rows)
    new = _joined(stream, method.task.index + 1)
    if reason := supports(
        method.tags, Stream(stream.name, "domain-incremental", (new,)), method.backbone, method.settings
    ):
        raise EverlearnError(f"method {type(method).__name__} {reason}")
    old, in_all, domains = [], {}, Domains(method, None)
    with torch.no_grad():
        for task, place in zip(map(Task.from_metadata, saved.state["tasks"]), _places(folder, saved, chain),
                               strict=True):  # fmt: skip
            known, in_all[task.index] = read_texts(place, task)
            domains.serve(known, place)
            old.append(known)
        found, relevant = domains.found(new), new.test.relevant or ()
        ndcg, recall = float(ndcg_at_k(found, relevant).mean()), float(recall_at_k(found, relevant).mean())
    with Bar(f"{new.name}: {len(new.train):,} pairs", progress) as bar:
        learn(method, new, bar)
    domains.learned()
    with torch.no_grad():
        domains.keep(new)
        told = domains.summary([*old, new], recall)
        place = index_of(folder, number)
        write_index(place, new, domains.now(new).documents.cpu().numpy(), method)
    if keep:
        write_texts(place, new, keep)
    notes = _whole(told, [*in_all.values(), len(new.corpus or ())], method)
    headline = PAIRINGS[2] if method.tags.index == "kept" else PAIRINGS[3]
    before, after = ([domain["ndcg"][pairing] for domain in told["domains"]] for pairing in (PAIRINGS[0], headline))
    counts = [len(task.test) for task in old]
    record = {
        "learned": len(new.train), "held_out": len(new.test), "calibration": 0, "new_classes": [],
        "old": {"examples": sum(counts), "before": float(np.average(before[:-1], weights=counts)),
                "after": float(np.average(after[:-1], weights=counts))},
        "new": {"examples": len(new.test), "before": ndcg, "after": told["domains"][-1]["ndcg"][PAIRINGS[3]]},
        "temperature": None, "seconds": time.monotonic() - started, "retrieval": told,
    }  # fmt: skip
    return Learned(new, record, stream.name, [*stream.notes, *notes])


def _read(data: Any, titles: bool, skip_bad_rows: bool) -> Stream:
    if not isinstance(data, Stream | str | Path):
        raise EverlearnError("a retriever learns pairs of queries and documents: give a file, or a stream that "
                             "everlearn.streams.from_pairs made")  # fmt: skip
    if not isinstance(data, Stream):
        data = streams.load(os.fspath(data), titles=titles, skip_bad_rows=skip_bad_rows)
    if data.goal != "ranking":
        raise EverlearnError(f"{data.name} has classes, and the model ranks documents: give queries with the documents "
                             "that answer them, such as a file with the columns query and positive")  # fmt: skip
    return data


def _joined(stream: Stream, index: int) -> Task:
    """The domains of a stream as one task."""
    corpus = {id: text for task in stream if task.corpus for id, text in zip(task.corpus.ids, task.corpus.texts,
                                                                             strict=True)}  # fmt: skip
    parts = {split: [task.examples[split] for task in stream if split in task.examples]
             for split in ("train", "validation", "test")}  # fmt: skip
    examples = {split: Examples.concatenate(found) for split, found in parts.items()}
    name = stream[0].name if len(stream) == 1 else Path(stream.name).stem
    return replace(stream[0], index=index, name=name, examples=examples, corpus=Corpus([*corpus], [*corpus.values()]))


def _places(folder: Path, saved: Checkpoint, chain: Sequence[Version]) -> list[Path]:
    """Where the index of each domain that the current version has learned is kept."""
    of_run = [place_of(folder, Task.from_metadata(task)) for task in saved.state["tasks"]]
    return [*of_run[: len(of_run) - len(chain)], *(index_of(folder, version.version) for version in chain)]


def _whole(told: dict[str, Any], in_all: list[int], method: Method) -> list[str]:
    """Count all documents where only a sample was kept and searched, and note that."""
    searched = told["documents"]
    for domain, documents in zip(told["domains"], in_all, strict=True):
        domain["documents"] = documents
    told["documents"] = sum(in_all)
    told["stale_documents"] = sum(domain["documents"] for domain in told["domains"] if domain["moved"])
    told["index_bytes"] = 4 * told["documents"] * method.backbone.width
    if searched == told["documents"]:
        return []
    return [f"{searched:,} of {told['documents']:,} documents were searched, all relevant ones among them. A sample "
            "flatters: among more documents every figure is lower"]  # fmt: skip
