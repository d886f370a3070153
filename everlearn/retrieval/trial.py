"""A new encoder on trial: what old and new queries find in the old index and in a new one, and the verdict.

The queries are divided by chance: a quarter helps to fit the bridges, a quarter chooses the best of them, and what is
reported, and decides, are the figures of the other half.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.metrics.retrieval import id_order, ndcg_at_k, nearest, recall_at_k
from everlearn.metrics.significance import compare_scores
from everlearn.progress import Progress
from everlearn.retrieval.bridge import Bridge, fitted
from everlearn.retrieval.checks import comparable
from everlearn.retrieval.index import Index
from everlearn.retrieval.stamp import Encoder, embedded, method_of, stamp_of
from everlearn.retrieval.thresholds import share_changed, translate
from everlearn.retrieval.verdict import BRIDGE_RATIO, RETENTION, TOLERANCE, Verdict, decide, reached
from everlearn.streams.retrieval import Entry

SAMPLE = 5000
"""Documents that are searched, where the index has more."""
MOST_QUERIES = 2000
LEAST_QUERIES = 20
TIMED = 64
"""Documents by which the rate is measured if all others come from the feature store."""
AT_ONCE = 256

Row = tuple[str, str, str | None]
"""Whose queries, whose index, and over which bridge."""
OLD: Row = ("old", "old", None)
NEW: Row = ("new", "new", None)
SERVED: Row = ("new", "old", None)


def judge(
    index: Index, old: Encoder, new: Encoder, documents: Mapping[str, str], queries: Sequence[Entry], *,
    relevance: Literal["judged", "pseudo"] = "judged", sample: int = SAMPLE, tolerance: float = TOLERANCE,
    bridge_ratio: float = BRIDGE_RATIO, retention: float = RETENTION, threshold: float | None = None, seed: int = 0,
    progress: bool = False,
) -> Verdict:  # fmt: skip
    """The verdict on a new encoder for an index.

    Of a large index a sample is searched: every document that is relevant for a query, and others by chance. All
    searches here are exact, also those of an index that is approximate.

    Args:
        index: the old one.
        old: the encoder of its documents.
        new: the encoder that is to search.
        documents: the texts of all documents of the index, by id.
        queries: held-out ones; each has relevant documents, which are in the index.
        relevance: `pseudo` where the queries were made of the documents.
        sample: documents to search; those that are relevant are never left out.
        tolerance, bridge_ratio, retention: of the rule (`decide`).
        threshold: a score of the old encoder from which on a document is shown, to be translated.
        seed: of the sample, and of what the queries are used for.
        progress: whether to show a progress bar.

    Raises:
        EverlearnError: there are fewer than 20 queries, the old encoder is not that of the index, or the threshold is
            beyond all scores.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> tiny, index = backbones.load("tiny"), None
    >>> texts = {str(n): f"the number {n} of {n * n} cups" for n in range(40)}
    >>> index = Index.create(tempfile.mkdtemp() + "/cups", stamp_of(tiny))
    >>> index.add(list(texts), list(texts.values()), by=tiny)
    >>> queries = [Entry(id, text, "cups", None, {id: 1}) for id, text in texts.items()]
    >>> judge(index, tiny, tiny, texts, queries).answer
    'serve'
    """
    if len(queries) < LEAST_QUERIES:
        raise EverlearnError(f"{len(queries)} queries whose relevant documents are in the index are too few for a "
                             f"verdict: give at least {LEAST_QUERIES}")  # fmt: skip
    if stamp_of(old).space != index.stamp.space:
        raise EverlearnError(f"{index.folder}: the old encoder is not that of its documents: give that one")
    trial = Trial(index, old, new, documents, queries, sample, seed, progress)
    best = trial.best_bridge()
    domains = [query.domain for query in trial.queries]
    recall = {row: trial.recall(row) for row in trial.rows}
    ways = {row: reached(recall[row][trial.half], recall[OLD][trial.half], [domains[i] for i in trial.half])
            for row in trial.rows}  # fmt: skip
    bridged = ways[("new", "old", best)] if best else None
    answer, reason = decide(ways[OLD].recall, ways[NEW], ways.get(SERVED), bridged, tolerance=tolerance,
                            bridge_ratio=bridge_ratio, retention=retention)  # fmt: skip
    way: Row = {"serve": SERVED, "bridge": ("new", "old", best)}.get(answer, NEW)
    compared: dict[str, tuple[Row, Row]] = {"new queries in a new index, less old queries in the old one": (OLD, NEW)}
    if way != NEW:
        compared["the answer, less old queries in the old index"] = (OLD, way)
        compared["the answer, less new queries in a new index"] = (NEW, way)
    record = {
        "answer": answer, "reason": reason, "pairings": [trial.told(row, ways[row].kept) for row in trial.rows],
        "bridge": best, "bill": trial.bill(), "documents": len(index), "sampled": len(trial.ids),
        "queries": {"fitted": len(trial.fitting), "chose": len(trial.choosing), "reported": len(trial.half)},
        "relevance": relevance, "tolerance": tolerance, "bridge_ratio": bridge_ratio, "retention": retention,
        "differences": [{"what": what, **_difference(*(recall[row][trial.half] for row in pair))}
                        for what, pair in compared.items()],
        "threshold": None if threshold is None else trial.threshold(threshold, way),
        "from": index.stamp.record, "to": trial.stamp.record,
    }  # fmt: skip
    return Verdict({**record, "notes": _notes(record)}, trial.bridges[best] if best else None)


class Trial:
    """The embeddings of both encoders, and what is found with them.

    Attributes:
        rows: every pairing that can be searched.
        fitting, choosing, half: positions of the queries that fit the bridges, choose one, and are reported.
    """

    def __init__(
        self, index: Index, old: Encoder, new: Encoder, documents: Mapping[str, str], queries: Sequence[Entry],
        sample: int, seed: int, progress: bool,
    ) -> None:  # fmt: skip
        random = np.random.default_rng(seed)
        chosen = np.sort(random.permutation(len(queries))[:MOST_QUERIES])
        self.queries, self.index, self.stamp = [queries[i] for i in chosen], index, stamp_of(new)
        self.fitting, self.choosing, self.half = self._parts(random)
        self.ids = self._sampled(index.ids, sample, random)
        self.texts = [documents[id] for id in self.ids]
        self.new = new
        asked = [query.text for query in self.queries]
        self._old_documents = self._new_documents = index.vectors(self.ids)
        self._rate = 0.0
        if self.stamp.space != index.stamp.space:
            with Progress(len(self.ids), "documents embedded by the new encoder", progress) as bar:
                self._new_documents = self._embedded(bar)
        self._queries: dict[Row, np.ndarray] = {
            OLD: comparable(embedded(old, asked, "query"), index.stamp, "query"),
            NEW: comparable(embedded(new, asked, "query"), self.stamp, "query"),
        }  # fmt: skip
        same_width = self.stamp.dimension == index.stamp.dimension
        if same_width:
            self._queries["old", "new", None] = self._queries[OLD]
            self._queries[SERVED] = self._for_old_index(asked)
        self.bridges: dict[str, Bridge] = {}
        if self.stamp.space != index.stamp.space:
            self.bridges = fitted(self._queries[NEW][self.fitting], self._queries[OLD][self.fitting],
                                  self._new_documents, self._old_documents)  # fmt: skip
        for name, bridge in self.bridges.items():
            over = bridge.apply(self._queries[NEW]).astype(np.float32)
            self._queries["new", "old", name] = comparable(over, index.stamp, "query")
        order = ("old", "new")
        self.rows = sorted(self._queries, key=lambda row: (order.index(row[0]), order.index(row[1])))
        self._found: dict[Row, list[list[str]]] = {}

    def found(self, row: Row) -> list[list[str]]:
        """For each query the ids of the first ten documents."""
        if row not in self._found:
            documents = self._old_documents if row[1] == "old" else self._new_documents
            places = nearest(torch.from_numpy(self._queries[row]), torch.from_numpy(documents))
            self._found[row] = [[self.ids[place] for place in found] for found in places]
        return self._found[row]

    def recall(self, row: Row) -> np.ndarray:
        """(n,) recall@10 of each query."""
        return recall_at_k(self.found(row), [query.relevant for query in self.queries])

    def best_bridge(self) -> str | None:
        """The name of the bridge with the largest mean of recall@10 and nDCG@10 on the queries that choose; of equal
        ones the simplest. None where there is no bridge."""

        def score(name: str) -> float:
            found, relevant = self.found(("new", "old", name)), [query.relevant for query in self.queries]
            both = recall_at_k(found, relevant) + ndcg_at_k(found, relevant)
            return float(both[self.choosing].mean())

        return max(self.bridges, key=score, default=None)

    def told(self, row: Row, kept: float) -> dict[str, Any]:
        """What is reported of a pairing."""
        relevant = [self.queries[i].relevant for i in self.half]
        found, own = ([self.found(pairing)[i] for i in self.half] for pairing in (row, NEW))
        agreement = np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found, own, strict=True)])
        return {
            "queries": row[0], "index": row[1], "bridge": row[2], "recall": float(recall_at_k(found, relevant).mean()),
            "ndcg": float(ndcg_at_k(found, relevant).mean()), "agreement": float(agreement), "kept": kept,
        }  # fmt: skip

    def bill(self) -> dict[str, Any]:
        """What a re-index of all documents costs."""
        if self.stamp.space == self.index.stamp.space:
            return {"documents": 0, "documents_per_second": None, "seconds": 0.0, "bytes": 0}
        documents = len(self.index)
        return {"documents": documents, "documents_per_second": self._rate, "seconds": documents / self._rate,
                "bytes": 4 * self.stamp.dimension * documents}  # fmt: skip

    def threshold(self, threshold: float, way: Row) -> dict[str, float]:
        """A threshold on scores of old queries in the old index, translated to a pairing: by the pairs of queries and
        documents that one of the two finds, of the queries that are not reported. Of the others is said on how many
        pairs the decision changes."""

        def pairs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            place = {id: n for n, id in enumerate(self.ids)}
            both = [(i, place[id]) for i in rows.tolist() for id in sorted({*self.found(OLD)[i], *self.found(way)[i]})]
            asked, given = np.array(both).T
            new_documents = self._old_documents if way[1] == "old" else self._new_documents
            return (np.einsum("ij,ij->i", self._queries[OLD][asked], self._old_documents[given]),
                    np.einsum("ij,ij->i", self._queries[way][asked], new_documents[given]))  # fmt: skip

        new = translate(threshold, *pairs(np.concatenate([self.fitting, self.choosing])))
        return {"old": threshold, "new": new, "changed": share_changed(threshold, new, *pairs(self.half))}

    def _parts(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order, quarter = random.permutation(len(self.queries)), len(self.queries) // 4
        fitting, choosing, half = np.split(order, [quarter, 2 * quarter])
        return np.sort(fitting), np.sort(choosing), np.sort(half)

    def _sampled(self, ids: Sequence[str], sample: int, random: np.random.Generator) -> list[str]:
        needed = {id for query in self.queries for id in query.relevant}
        others = [id for id in ids if id not in needed]
        more = random.permutation(len(others))[: max(0, sample - len(needed))]
        kept = [*sorted(needed), *(others[i] for i in more.tolist())]
        return [kept[i] for i in id_order(kept)]  # so that documents with equal scores rank as trec_eval ranks them

    def _embedded(self, bar: Progress) -> np.ndarray:
        """The documents by the new encoder, and the rate at which it encodes."""
        passed, started, parts = Backbone.passed, time.perf_counter(), []
        for start in range(0, len(self.texts), AT_ONCE):
            parts.append(embedded(self.new, self.texts[start : start + AT_ONCE], "document"))
            bar.advance(len(parts[-1]))
        timed = self.texts
        if Backbone.passed - passed < len(timed):  # some came from the feature store
            asked = method_of(self.new)
            backbone = getattr(asked, "backbone", asked)
            timed, started = timed[:TIMED], time.perf_counter()
            with backbone.reading("document"):
                backbone.infer(timed)
        self._rate = len(timed) / (time.perf_counter() - started)
        return comparable(np.concatenate(parts), self.stamp, "document")

    def _for_old_index(self, asked: Sequence[str]) -> np.ndarray:
        """Queries of the new encoder as it would itself search the old index, without a bridge."""
        method, space = method_of(self.new), self.index.stamp.space
        if not (hasattr(method, "reaches") and method.reaches(space)):
            return self._queries[NEW]
        with torch.no_grad():
            return comparable(method.queries_for(list(asked), space).float().cpu().numpy(), self.index.stamp, "query")


def _difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    told = compare_scores(first, second)
    return {"difference": told.difference, "low": told.low, "high": told.high, "p": told.p}


def _notes(record: dict[str, Any]) -> list[str]:
    """What to beware of."""
    notes, pairings = [], {(row["queries"], row["index"], row["bridge"]): row for row in record["pairings"]}
    if record["sampled"] < record["documents"]:
        notes.append(f"{record['sampled']:,} of {record['documents']:,} documents were searched, all relevant ones "
                     "among them. A sample flatters: among more documents every figure is lower")  # fmt: skip
    if record["relevance"] == "pseudo":
        notes.append("the queries are sentences of the documents, and not what people ask: what counts is how the "
                     "pairings compare, and the agreement")  # fmt: skip
    way = pairings.get({"serve": SERVED, "bridge": ("new", "old", record["bridge"])}.get(record["answer"], NEW))
    gains = way and way["recall"] > pairings[OLD]["recall"] + record["tolerance"]
    if record["answer"] in ("serve", "bridge") and not gains:
        notes.append("on these queries the new encoder finds no more than the old one: it is worth the change only for "
                     "something that they do not measure, such as a new domain")  # fmt: skip
    first = record["differences"][0]
    if first["low"] <= 0 <= first["high"] and record["from"]["space"] != record["to"]["space"]:
        notes.append("the interval of the first difference holds 0, so that chance alone may have made it: more "
                     "queries tell more")  # fmt: skip
    best = pairings.get(("new", "old", record["bridge"])) if record["bridge"] else None
    if best and record["answer"] == "re-index":
        share = best["recall"] / pairings[NEW]["recall"] if pairings[NEW]["recall"] else 0.0
        notes.append(f"the best bridge reaches {100 * share:.0f} % of what new queries find in a new index. Between "
                     "two models of which neither was made from the other a bridge mostly fails")  # fmt: skip
    return notes
