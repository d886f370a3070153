"""Relevance judgements: which documents answer which query, as BEIR and TREC write them, one pair a line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from everlearn.errors import printable
from everlearn.streams.records import BadRows
from everlearn.streams.retrieval import Entry


@dataclass(frozen=True)
class Judgement:
    """How relevant a document is for a query: a grade of 0 or less means not at all."""

    query: str
    document: str
    grade: int
    split: str | None
    place: str


def judged(
    queries: Mapping[str, Entry], documents: Mapping[str, Entry], judgements: Iterable[Judgement], bad: BadRows
) -> list[Entry]:
    """The queries with their relevant documents and their split.

    A judgement is a bad row if its query or document is unknown, if it repeats another one, or if its query stands in
    another split too; a query is one if no document is relevant for it.

    Args:
        queries, documents: by id.

    Raises:
        DataError: there is a bad row, and bad rows are not skipped.

    >>> documents = {"d1": Entry("d1", "water the roses at six", "garden", None)}
    >>> queries = {"q1": Entry("q1", "when to water", "garden", None)}
    >>> judged(queries, documents, [Judgement("q1", "d1", 2, "test", "test.tsv, line 2")], BadRows(False))[0].relevant
    {'d1': 2}
    """
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    splits: dict[str, str | None] = {}
    for judgement in judgements:
        query, document = judgement.query, judgement.document
        if query not in queries:
            cause, remedy = f"the query '{printable(query)}' is unknown", "add it to the queries"
        elif document not in documents:
            cause, remedy = f"the document '{printable(document)}' is not in the corpus", "add it to the corpus"
        elif document in grades[query]:
            cause = f"the document '{printable(document)}' is already judged for the query '{printable(query)}'"
            remedy = "judge each document once"
        elif splits.setdefault(query, judgement.split) != judgement.split:
            cause = f"the query '{printable(query)}' is already judged in the split {splits[query]}"
            remedy = "keep each query in one split"
        else:
            grades[query][document] = judgement.grade
            continue
        bad.add(judgement.place, cause, remedy)

    found = []
    for id, asked in queries.items():
        relevant = {document: grade for document, grade in grades[id].items() if grade > 0}
        if relevant:
            found.append(replace(asked, split=splits[id], relevant=relevant))
        else:
            why = "each of its judgements has the grade 0" if grades[id] else "no judgement names it"
            bad.add(asked.place, f"no document is relevant for the query '{printable(id)}': {why}", "judge one as such")
    return found
