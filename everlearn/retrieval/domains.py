"""What a run searches: the documents of every domain as the present model embeds them, and as they were embedded when
their domain was learned. From both follow the pairings that decide whether an old index may still be served."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from everlearn.backbones.backbone import Backbone
from everlearn.errors import ContractError, one_line
from everlearn.method import Method
from everlearn.metrics.retrieval import comparable, id_order, ndcg_at_k, nearest, recall_at_k
from everlearn.retrieval.kept import read_index, write_index, write_texts
from everlearn.retrieval.verdict import Reached, decide
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Task

PAIRINGS = ("old queries, old index", "old queries, new index", "new queries, old index", "new queries, new index")
"""Old is the model that had just learned the domain, and new is the present one."""

LOST = 10
"""Queries that are shown with their documents before and after."""

Rankings = list[list[str]]


@dataclass(frozen=True)
class Embedded:
    """The test queries (n, d) and the documents (m, d) of a domain, comparable by their dot products.

    Args:
        space: what embedded the documents (`Method.document_space`).
    """

    space: str
    queries: torch.Tensor
    documents: torch.Tensor


class Domains:
    """The domains of a run, embedded and searched.

    Args:
        method: what embeds.
        folder: the run's folder, where the index of each domain is kept; None keeps them in memory.
        keep: most test queries of a domain whose texts are kept beside its index, with documents, so that an update
            can be judged; 0 keeps none.
    """

    def __init__(self, method: Method, folder: Path | None, keep: int = 0) -> None:
        self.method, self.folder, self.keep_texts = method, folder, keep
        self._kept: dict[int, Embedded] = {}
        self._now: dict[int, Embedded] = {}
        self._rate = [0, 0.0]  # documents that were encoded, and the seconds that this took

    def learned(self) -> None:
        """Say that the model has changed: what it embedded so far is not what it embeds now."""
        self._now.clear()

    def keep(self, task: Task) -> None:
        """Keep the queries and documents of a domain as the model embeds them now that it has learned the domain."""
        now = self._kept[task.index] = self.now(task)
        if self.folder:
            place = place_of(self.folder, task)
            write_index(place, task, now.documents.cpu().numpy(), self.method)
            save_file({"queries": now.queries.cpu().numpy()}, _queries_of(place))
            if self.keep_texts:
                write_texts(place, task, self.keep_texts)

    def serve(self, task: Task, place: Path) -> None:
        """Take as kept what the model searches now, before it learns more: the index at `place` that was made when the
        domain was learned, if that is what the method searches, and otherwise all documents as it embeds them now."""
        now = self.now(task)
        if self.method.tags.index == "kept":
            space, documents = read_index(place, task)
            queries = comparable(self.method.queries_for(task.test.bare(), space), self.method.backbone.similarity)
            now = Embedded(space, queries, self._tensor(documents))
        self._kept[task.index] = now

    def kept(self, task: Task) -> Embedded | None:
        """What was kept when the domain was learned; None if it has not been learned yet."""
        place = self.folder and place_of(self.folder, task)
        if task.index not in self._kept and place and place.exists():
            space, documents = read_index(place, task)
            with one_line(place, "learn the run again"):
                queries = load_file(_queries_of(place))["queries"]
            self._kept[task.index] = Embedded(space, *map(self._tensor, (queries, documents)))
        return self._kept.get(task.index)

    def now(self, task: Task) -> Embedded:
        """The domain as the present model embeds it."""
        if task.index not in self._now:
            assert task.corpus is not None
            similarity = self.method.backbone.similarity
            queries = self.method.embed(task.test.bare(), "query")
            passed, started = Backbone.passed, time.perf_counter()
            documents = self.method.embed(_documents(task), "document")
            if Backbone.passed - passed >= len(documents):  # none came from the feature store
                self._rate[0] += len(documents)
                self._rate[1] += time.perf_counter() - started
            space = self.method.document_space()
            self._now[task.index] = Embedded(space, comparable(queries, similarity), comparable(documents, similarity))
        return self._now[task.index]

    def found(self, task: Task) -> Rankings:
        """For each test query of the domain the ids of the first ten documents, as the method searches them now."""
        if getattr(self.method.search, "__func__", None) is Method.search:  # and nobody has replaced it
            now = self.now(task)
            return _ids(task, nearest(now.queries, now.documents))
        documents = _documents(task)
        found = self.method.search(task.test.bare(), documents)
        unfit = [row for row in found if len({*row}) < len(row) or not {*row} <= {*range(len(documents))}]
        if len(found) != len(task.test) or unfit:
            raise ContractError(f"search gives, for each of {len(task.test)} queries, different positions of "
                                f"documents, from 0 to {len(documents) - 1}; it gave something else")  # fmt: skip
        return _ids(task, found)

    def found_in_kept(self, task: Task) -> Rankings:
        """The same in the index that was made when the domain was learned, with queries made for it."""
        kept = self.kept(task)
        assert kept is not None
        queries = comparable(self.method.queries_for(task.test.bare(), kept.space), self.method.backbone.similarity)
        return _ids(task, nearest(queries, kept.documents))

    def has_moved(self, task: Task) -> bool:
        """Whether the documents of a domain that was learned would be embedded in another way now."""
        kept = self.kept(task)
        return kept is not None and kept.space != self.method.document_space()

    @property
    def documents_per_second(self) -> float | None:
        """How fast documents were encoded; None where all came from the feature store."""
        return self._rate[0] / self._rate[1] if self._rate[1] else None

    # -- what the report says ------------------------------------------------------------------
    def pairings(self, task: Task) -> dict[str, Rankings]:
        """The rankings of a domain's test queries in all pairings of old and new queries and documents."""
        kept, now = self.kept(task), self.now(task)
        assert kept is not None
        rankings = (
            _ids(task, nearest(kept.queries, kept.documents)), _ids(task, nearest(kept.queries, now.documents)),
            self.found_in_kept(task) if self.has_moved(task) else self.found(task), self.found(task),
        )  # fmt: skip
        return dict(zip(PAIRINGS, rankings, strict=True))

    def summary(self, tasks: Sequence[Task], recall_before: float | None) -> dict[str, Any]:
        """What results.json says of retrieval after the last task.

        Args:
            recall_before: recall@10 on the last domain just before it was learned.
        """
        found = {task.index: self.pairings(task) for task in tasks}
        headline = PAIRINGS[2] if self.method.tags.index == "kept" else PAIRINGS[3]
        domains, per_query, lost = [], [], []
        for task in tasks:
            assert task.corpus is not None
            assert task.test.relevant is not None
            relevant, moved = task.test.relevant, self.has_moved(task)
            scores = {name: ndcg_at_k(rankings, relevant) for name, rankings in found[task.index].items()}
            recalls = {name: recall_at_k(rankings, relevant) for name, rankings in found[task.index].items()}
            domains.append({
                "name": task.name, "documents": len(task.corpus), "queries": len(task.test), "moved": moved,
                "ndcg": {name: float(values.mean()) for name, values in scores.items()},
                "recall": {name: float(values.mean()) for name, values in recalls.items()},
            })  # fmt: skip
            before, after = scores[PAIRINGS[0]], scores[headline]
            per_query.append({"task": task.name, "ids": list(task.test.ids), "when_learned": before.round(6).tolist(),
                              "at_the_end": after.round(6).tolist()})  # fmt: skip
            lost += _lost(task, before, after, found[task.index][PAIRINGS[0]], found[task.index][headline])
        lost.sort(key=lambda query: (query["after"] - query["before"], query["task"], query["id"]))
        documents = sum(len(task.corpus) for task in tasks if task.corpus)
        stale = sum(len(task.corpus) for task in tasks if task.corpus and self.has_moved(task))
        return {
            "index": self.method.tags.index, "domains": domains, "documents": documents, "stale_documents": stale,
            "verdict": _verdict(domains, recall_before, is_kept=self.method.tags.index == "kept"),
            "index_bytes": 4 * documents * self.method.backbone.width, "lost": lost[:LOST],
            "queries": per_query,
        }  # fmt: skip

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.method.backbone.device)


def _documents(task: Task) -> list[Input]:
    """The texts of the corpus in the order in which trec_eval ranks documents with equal scores."""
    assert task.corpus is not None
    return [task.corpus.texts[i] for i in id_order(task.corpus.ids)]


def _ids(task: Task, found: Sequence[Sequence[int]]) -> Rankings:
    assert task.corpus is not None
    order = id_order(task.corpus.ids)
    return [[task.corpus.ids[order[position]] for position in row] for row in found]


def _verdict(domains: list[dict[str, Any]], before: float | None, *, is_kept: bool) -> dict[str, str] | None:
    """Whether the indexes of the old domains may be served after the last update: what all queries found before it
    against what they find now. The last domain has an index of the present model. None where there was one domain."""
    *old, new = domains
    if not old or before is None:
        return None

    def mean(pairing: str, last: float) -> float:
        found = [*(domain["recall"][pairing] for domain in old), last]
        return float(np.average(found, weights=[domain["queries"] for domain in domains]))

    def reached(pairing: str) -> Reached:
        shares = [domain["recall"][pairing] / first for domain in old if (first := domain["recall"][PAIRINGS[0]])]
        return Reached(mean(pairing, new["recall"][PAIRINGS[3]]), min(1.0, *shares) if shares else 1.0)

    kept = reached(PAIRINGS[2])
    # What a method does to its queries for an old index is a bridge.
    is_bridge = is_kept and any(domain["moved"] for domain in old)
    answer, reason = decide(mean(PAIRINGS[0], before), reached(PAIRINGS[3]),
                            None if is_bridge else kept, kept if is_bridge else None)  # fmt: skip
    return {"answer": answer, "reason": reason}


def _lost(
    task: Task, before: np.ndarray, after: np.ndarray, first: Rankings, last: Rankings, most: int = LOST
) -> list[dict[str, Any]]:
    """The queries of a domain whose nDCG@10 fell most since the domain was learned."""
    assert task.corpus is not None
    assert task.test.relevant is not None
    texts = dict(zip(task.corpus.ids, task.corpus.texts, strict=True))

    def shown(ranking: Sequence[str], relevant: Mapping[str, int]) -> list[dict[str, Any]]:
        return [{"id": id, "text": _short(texts[id]), "grade": relevant.get(id, 0)} for id in ranking[:3]]

    rows = [row for row in np.argsort(after - before, kind="stable")[:most].tolist() if after[row] < before[row]]
    return [
        {"task": task.name, "id": task.test.ids[row], "text": _short(str(task.test.inputs[row])),
         "before": float(before[row]), "after": float(after[row]),
         "found_before": shown(first[row], task.test.relevant[row]),
         "found_after": shown(last[row], task.test.relevant[row]),
         "relevant": [{"id": id, "text": _short(texts[id]), "grade": grade}
                      for id, grade in list(task.test.relevant[row].items())[:3]]}
        for row in rows
    ]  # fmt: skip


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def place_of(folder: Path, task: Task) -> Path:
    """Where a run keeps the index of a domain."""
    return folder / "indexes" / f"domain-{task.index:03d}"


def _queries_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.queries.safetensors")
