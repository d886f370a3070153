"""What an index and a run that ranks documents write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints
from typing_extensions import TypedDict

from everlearn.schemas.values import CLOSED, STRICT, Count, Digest, Score, read_json


class FoundDocument(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    id: str
    text: str
    grade: Count


class LostQuery(TypedDict):
    """A query whose documents were found when its domain was learned, and are found less well at the end."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    task: str
    id: str
    text: str
    before: Score
    after: Score
    found_before: list[FoundDocument]
    found_after: list[FoundDocument]
    relevant: list[FoundDocument]


Pairing = Literal[
    "old queries, old index", "old queries, new index", "new queries, old index", "new queries, new index"
]
OfPairings = Annotated[dict[Pairing, Score], Field(min_length=4)]
"""A score of each of the four."""


class DomainResult(TypedDict):
    """What the queries of a domain find in the index that was made when it was learned, and in one made at the end."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: str
    documents: Count
    queries: Count
    moved: bool
    ndcg: OfPairings
    recall: OfPairings


def _of_each(scores: Any) -> Any:
    if not len(scores["ids"]) == len(scores["when_learned"]) == len(scores["at_the_end"]):
        raise ValueError("the scores are not those of as many queries")
    return scores


class _Scores(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    task: str
    ids: list[str]
    when_learned: list[Score]
    at_the_end: list[Score]


QueryScores = Annotated[_Scores, AfterValidator(_of_each)]
"""nDCG@10 of every test query of a domain."""


class Judged(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    answer: Literal["serve", "bridge", "re-index", "roll back"]
    reason: str


class Retrieval(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    index: Literal["re-encoded", "kept"]
    domains: list[DomainResult]
    documents: Count
    stale_documents: Count
    verdict: Judged | None
    index_bytes: Count
    lost: list[LostQuery]
    queries: list[QueryScores]


class KeptQuery(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    id: str
    text: str
    relevant: Annotated[dict[str, Annotated[int, Field(ge=1, lt=2**31)]], Field(min_length=1)]


class KeptDocument(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    id: str
    text: str


def _answerable(kept: Any) -> Any:
    ids = [document["id"] for document in kept["documents"]]
    if len({*ids}) < len(ids):
        raise ValueError("two documents have the same id")
    if not all(id in {*ids} for query in kept["queries"] for id in query["relevant"]):
        raise ValueError("a query asks for a document that is not there")
    return kept


class _KeptDomain(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    documents_in_all: Count
    queries: Annotated[list[KeptQuery], Field(min_length=1)]
    documents: list[KeptDocument]


KeptDomain = Annotated[_KeptDomain, AfterValidator(_answerable)]
"""The texts of a domain, beside its index in a run's folder."""


class StampRecord(TypedDict):
    """The stamp of an index (`everlearn.retrieval.stamp`)."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    space: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    encoder: str
    dimension: Annotated[int, Field(ge=1, le=1_000_000)]
    similarity: Literal["cosine", "dot"]
    pooling: str
    prompt: str
    precision: str


class IndexSettings(TypedDict):
    """index.json of a generation of an index."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    format: int
    stamp: StampRecord
    kind: Literal["exact", "hnsw", "ivf", "lance"]
    settings: dict[str, Annotated[int, Field(ge=1, lt=2**31)]]
    made_by: dict[str, str]


class SavedLog(TypedDict):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    log_bytes: Count


class NearbyFile(TypedDict):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    file: Annotated[str, StringConstraints(pattern=r"^nearby-[0-9]+\.faiss$")]
    rows: Count
    bytes: Count
    sha256: Digest


def read_kept_domain(file: Path) -> dict[str, Any]:
    """The texts that a run keeps of a domain.

    Raises:
        EverlearnError: they cannot be read, or are not what a run writes.
    """
    return read_json(file, KeptDomain, "learn the run again")
