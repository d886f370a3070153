"""Retrieval streams: queries with their relevant documents, and a corpus to search. Each task is one domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from everlearn.errors import DataError
from everlearn.streams.domain_incremental import select
from everlearn.streams.records import SPLITS
from everlearn.streams.splits import Shares, repeated_inputs
from everlearn.streams.steps import check_tasks
from everlearn.streams.stream import Corpus, Examples, Task


@dataclass(frozen=True)
class Entry:
    """One document to be found, or one query. A document whose split is None belongs to every split.

    Args:
        relevant: for a query, the grades of its relevant documents, in the order in which the data list them.
        negatives: for a query, the ids of documents that look as if they answered it and do not.
        place: where it stands, for messages.
    """

    id: str
    text: str
    domain: str
    split: str | None
    relevant: Mapping[str, int] = field(default_factory=dict)
    negatives: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Collection:
    """What a reader makes of retrieval data.

    Args:
        source: the name of the data, for messages.
        documents: by id.
        queries: each with at least one relevant document, which is among the documents.
        notes: what was left out.
    """

    source: str
    documents: Mapping[str, Entry]
    queries: list[Entry]
    notes: tuple[str, ...] = ()


def joined(parts: Sequence[Collection], source: str) -> Collection:
    """Several collections, each of its own domains, as one. Their ids may coincide, so the name of its domain stands
    before each id; a single collection is as it was."""
    if len(parts) == 1:
        return parts[0]
    documents: dict[str, Entry] = {}
    queries: list[Entry] = []
    for part in parts:
        new = {id: f"{document.domain}/{id}" for id, document in part.documents.items()}
        documents |= {new[id]: replace(document, id=new[id]) for id, document in part.documents.items()}
        queries += [
            replace(query, id=f"{query.domain}/{query.id}", negatives=tuple(new[id] for id in query.negatives),
                    relevant={new[id]: grade for id, grade in query.relevant.items()})
            for query in part.queries
        ]  # fmt: skip
    return Collection(source, documents, queries)


def make_retrieval_tasks(
    collection: Collection, shares: Shares, domains: list[str] | None, *, seed: int
) -> tuple[list[Task], list[str]]:
    """Make one task per domain, and notes.

    The training examples are all pairs of a query and a relevant document. The corpus of a task holds the
    documents of the domain's test split (all documents of the domain, if the data set has no test split), and any
    other relevant documents of its test queries.

    Raises:
        DataError: a requested domain has no training or no test queries.
    """
    documents, source = collection.documents, collection.source
    has_test = any(query.split == "test" for query in collection.queries)
    queries = with_splits(collection.queries, shares, seed)

    by_part: dict[tuple[str, str | None], list[Entry]] = defaultdict(list)
    for query in queries:
        by_part[query.domain, query.split].append(query)
    chosen = select([query.domain for query in queries], domains, source)
    incomplete = {d: s for d in chosen for s in ("test", "train") if not by_part[d, s]}
    if incomplete and (domains is not None or len(incomplete) == len(chosen)):
        domain, split = next(iter(incomplete.items()))
        share = "take a larger share of the queries with test=, " if split == "test" and not has_test else ""
        raise DataError(f"{source}: no {split} queries in the domain '{domain}'; add some, {share}or choose other "
                        "domains with domains=")  # fmt: skip
    check_tasks(source, len(chosen) - len(incomplete))
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
    inputs = {split: [text for task in tasks for text in task.examples[split].inputs] for split in SPLITS}
    return tasks, [*notes, *repeated_inputs(inputs)]


def with_splits(queries: list[Entry], shares: Shares, seed: int) -> list[Entry]:
    """The data set's own splits. If it has no test (or validation) queries, a seeded share of each domain is taken.
    Queries with the same text are taken together, so that none of them is on both sides."""
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
            equal: dict[str, list[int]] = defaultdict(list)
            for row in rows:
                equal[queries[row].text].append(row)
            together, left = list(equal.values()), round(float(share) * len(rows))
            for place in random.permutation(len(together)).tolist():
                if len(together[place]) <= left:
                    left -= len(together[place])
                    for row in together[place]:
                        splits[row] = name
    return [replace(query, split=split) for query, split in zip(queries, splits, strict=True)]


def _pairs(queries: list[Entry], documents: Mapping[str, Entry]) -> Examples:
    """One row per relevant document. If a query has several, the id also names the document."""
    rows = [(query, id) for query in queries for id in query.relevant]
    ids = [query.id if len(query.relevant) == 1 else f"{query.id} {id}" for query, id in rows]
    positives = [documents[id].text for _, id in rows]
    negatives = [[documents[id].text for id in query.negatives] for query, _ in rows]
    return Examples([query.text for query, _ in rows], torch.empty(0, dtype=torch.long), ids, positives=positives,
                    negatives=negatives if any(negatives) else None)  # fmt: skip


def _tests(queries: list[Entry]) -> Examples:
    texts, ids = [query.text for query in queries], [query.id for query in queries]
    relevant = [dict(query.relevant) for query in queries]
    return Examples(texts, torch.empty(0, dtype=torch.long), ids, relevant=relevant)
