"""Retrieval: what old and new queries find in old and new indexes, what a new index costs, and what is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.formats import duration, human_bytes, percent
from everlearn.metrics.accuracy_matrix import mean
from everlearn.report.markup import Html, facts, join, table, tag

PAIRINGS = ("old queries, old index", "old queries, new index", "new queries, old index", "new queries, new index")


def retrieval(run: Mapping[str, Any]) -> Html:
    """The pairings of every domain, the bill of a new index, and the queries that lost most."""
    found = run["retrieval"]
    lost = _lost(found["lost"]) if found["lost"] else None
    return join(_verdict(found["verdict"]), _pairings(found), _bill(run), lost)


def _verdict(verdict: Mapping[str, str] | None) -> Html | None:
    if not verdict:
        return None
    told = {
        "serve": "the old indexes may be served as they are",
        "bridge": "the old indexes may be served with the queries that the method makes for them",
        "re-index": "the documents of old domains have to be encoded again",
        "roll back": "the model before should stay",
    }
    head = tag("p", tag("strong", f"Verdict: {verdict['answer']}"), f" ({told[verdict['answer']]}).")
    return join(head, tag("p", f"{verdict['reason'].capitalize()}. Recall@10 over all domains; the rule is that of "
                               "everlearn.retrieval.verdict.", class_="note"))  # fmt: skip


def old_domains(found: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The mean nDCG@10 and recall@10 of each pairing over the domains before the last one."""
    old = found["domains"][:-1]
    return {measure: {pairing: mean(domain[measure][pairing] for domain in old) for pairing in PAIRINGS}
            for measure in ("ndcg", "recall")}  # fmt: skip


def _pairings(found: Mapping[str, Any]) -> Html:
    rows = [
        [tag("bdi", domain["name"]), f"{domain['documents']:,}", f"{domain['queries']:,}",
         *(percent(domain["ndcg"][pairing]) for pairing in PAIRINGS)]
        for domain in found["domains"]
    ]  # fmt: skip
    means = [percent(value) for value in old_domains(found)["ndcg"].values()]
    rows.append([tag("strong", "mean of old domains"), "", "", *means])
    kept = "an index is kept as it was made" if found["index"] == "kept" else "documents are encoded again"
    return join(
        table("Pairings", ["domain", "documents", "queries", *PAIRINGS], rows),
        tag("p", "nDCG@10 in %. Old: the model that had just learned the domain; new: the model at the end. ",
            f"With this method {kept}, and its matrix shows that pairing.", class_="note"),
    )  # fmt: skip


def _bill(run: Mapping[str, Any]) -> Html:
    found, rate = run["retrieval"], run.get("documents_per_second")
    stale = found["stale_documents"]
    numbers = {
        "Documents": f"{found['documents']:,}",
        "Documents that the model now embeds in another way": f"{stale:,}",
        "Index": human_bytes(found["index_bytes"]),
    }
    if rate and stale:
        numbers[f"Time to encode them again, at the measured {rate:,.0f} documents a second"] = duration(stale / rate)
    return join(tag("h3", "What a new index costs"), facts(numbers.items()))


def _lost(queries: Sequence[Mapping[str, Any]]) -> Html:
    return join(
        tag("h3", "Queries that lost most"),
        tag("p", "The first documents that were found when the domain was learned, and that are found at the end; ",
            "✓ marks a relevant one.", class_="note"),
        *(_query(query) for query in queries),
    )  # fmt: skip


def _query(query: Mapping[str, Any]) -> Html:
    change = f"nDCG@10 {percent(query['before'])} % → {percent(query['after'])} %"
    head = tag("summary", tag("bdi", query["text"]), f" ({change}, ", tag("bdi", query["task"]), ")")
    lists = [
        join(tag("p", tag("strong", title)), tag("ol", *(_document(document) for document in query[key])))
        for key, title in (("found_before", "before"), ("found_after", "at the end"), ("relevant", "relevant"))
    ]
    return tag("details", head, *lists)


def _document(document: Mapping[str, Any]) -> Html:
    return tag("li", "✓ " if document["grade"] else "", tag("bdi", f"{document['id']}: {document['text']}"))
