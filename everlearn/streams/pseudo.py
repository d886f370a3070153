"""Retrieval data without queries to learn from: sentences of the documents stand in for them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from everlearn.errors import DataError
from everlearn.retrieval.pseudo_queries import pseudo_queries
from everlearn.streams.retrieval import Collection, Entry, with_splits
from everlearn.streams.splits import Shares


def with_pseudo_queries(collection: Collection, shares: Shares, *, seed: int) -> tuple[Collection, list[str]]:
    """The collection with a sentence of each document in place of the queries for training and validation, and notes.

    Queries for testing stay. Where a domain has none, its documents in the share `test` are held out: their sentences
    are the queries for testing, and nothing is learned from them.

    Args:
        shares: of queries, and of documents, for testing.
        seed: of splits, and of the sentences.

    Raises:
        DataError: no document is long enough.
    """
    documents = dict(collection.documents)
    if not any(query.split == "test" for query in collection.queries):  # then all documents are searched
        documents = {id: replace(document, split=None) for id, document in documents.items()}
    by_test = with_splits(collection.queries, {"test": shares["test"]}, seed)
    tests = [query for query in by_test if query.split == "test"]
    held_out = _held_out(documents, {query.domain for query in tests}, float(shares["test"]), seed)
    rests, made = dict[str, Entry](), list[Entry]()
    for number, document in enumerate(documents.values()):
        for query, rest in zip(*pseudo_queries([document.text], seed=seed + number), strict=True):
            asked = f"sentence of {document.id}"
            if document.id in held_out:
                tests.append(Entry(asked, query, document.domain, "test", {document.id: 1}))
                continue
            id = f"{document.id}\nwithout a sentence"  # ids of the data have one line
            rests[id] = Entry(id, rest, document.domain, "train")  # so that it is not searched
            made.append(Entry(asked, query, document.domain, None, {id: 1}))
    if not made:
        raise DataError(f"{collection.source}: no document is long enough to take a sentence out of it: give queries")
    notes = ["the queries to learn from are sentences of the documents"]
    if domains := list(dict.fromkeys(documents[id].domain for id in held_out)):
        notes.append(f"the test queries of {len(domains)} domains without any are sentences of held-out documents, "
                     "which are easier to answer than questions")  # fmt: skip
    return Collection(collection.source, documents | rests, [*made, *tests]), notes


def _held_out(documents: dict[str, Entry], with_tests: set[str], share: float, seed: int) -> set[str]:
    """The ids of the documents that are held out of each domain that has no test queries."""
    by_domain: dict[str, list[str]] = defaultdict(list)
    for document in documents.values():
        if document.domain not in with_tests:
            by_domain[document.domain].append(document.id)
    random = np.random.RandomState(seed)
    drawn = (random.permutation(ids)[: round(share * len(ids))].tolist() for _, ids in sorted(by_domain.items()))
    return {id for part in drawn for id in part}
