"""Retrieval: exact search, and nDCG, recall, reciprocal rank and average precision at k as trec_eval defines them.

The metrics take the ranked documents of each query and its relevance judgements: one grade per
document id, where 0 or less means not relevant. They return one value per query. The score of a query
without relevant documents is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from everlearn.errors import EverlearnError

if TYPE_CHECKING:
    import torch

Rankings = Sequence[Sequence[str]]
Relevance = Sequence[Mapping[str, int]]

SCORES_AT_ONCE = 1 << 22  # 16 MiB of float32: the largest score matrix of a search, for any size of the corpus
QUERIES_AT_ONCE = 256


def ndcg_at_k(rankings: Rankings, relevant: Relevance, k: int = 10) -> np.ndarray:
    """nDCG@k with linear gain: the DCG of the ranking ÷ the DCG of the best possible ranking.

    Args:
        rankings: n lists of document ids, best first.
        relevant: n mappings from document id to grade.

    Returns:
        (n,) float64, between 0 and 1.

    Raises:
        ValueError: if the two differ in length, or if a ranking contains a document twice.

    >>> ndcg_at_k([["b", "a"]], [{"a": 1}]).round(4)
    array([0.6309])
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    found = _grades(rankings, relevant, k) @ discounts
    best = np.zeros((len(relevant), k))
    for row, grades in zip(best, relevant, strict=True):
        ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k]
        row[: len(ideal)] = ideal
    return _divide(found, best @ discounts)


def recall_at_k(rankings: Rankings, relevant: Relevance, k: int = 10) -> np.ndarray:
    """The fraction of a query's relevant documents that are among its first k: (n,) float64.

    >>> recall_at_k([["b", "a"]], [{"a": 2, "c": 1}])
    array([0.5])
    """
    return _divide((_grades(rankings, relevant, k) > 0).sum(axis=1), _relevant(relevant))


def mrr_at_k(rankings: Rankings, relevant: Relevance, k: int = 10) -> np.ndarray:
    """1 ÷ the rank of the first relevant document, or 0 if it is not among the first k: (n,) float64.

    >>> mrr_at_k([["b", "a"], ["b"]], [{"a": 1}, {"a": 1}])
    array([0.5, 0. ])
    """
    hits = _grades(rankings, relevant, k) > 0
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def map_at_k(rankings: Rankings, relevant: Relevance, k: int = 10) -> np.ndarray:
    """Average precision of the first k documents, whose mean over queries is MAP@k: the sum of the precisions at the
    ranks of the relevant documents among the first k ÷ the number of relevant documents. As in trec_eval that is all of
    them, even if there are more than k. (n,) float64.

    >>> map_at_k([["b", "a"]], [{"a": 1, "c": 1}])
    array([0.25])
    """
    hits = _grades(rankings, relevant, k) > 0
    precisions = hits.cumsum(axis=1) / np.arange(1, k + 1)
    return _divide((precisions * hits).sum(axis=1), _relevant(relevant))


def id_order(ids: Sequence[str]) -> list[int]:
    """The positions of the ids, the largest id first: the order in which trec_eval ranks equal scores."""
    return sorted(range(len(ids)), key=ids.__getitem__, reverse=True)


def comparable(embeddings: torch.Tensor, similarity: str) -> torch.Tensor:
    """Embeddings whose dot products are the similarities that an encoder was trained for: they are divided by their
    length where that is the cosine. Search and training both ask here.

    Args:
        embeddings: (n, d)
        similarity: `cosine` or `dot`.

    Raises:
        EverlearnError: another similarity.

    >>> import torch
    >>> comparable(torch.tensor([[3.0, 4.0]]), "cosine"), comparable(torch.tensor([[3.0, 4.0]]), "dot")
    (tensor([[0.6000, 0.8000]]), tensor([[3., 4.]]))
    """
    import torch

    if similarity not in ("cosine", "dot"):
        raise EverlearnError(f"the encoder compares queries and documents by {similarity} distance, and everlearn "
                             "ranks by the cosine or the dot product: take another backbone")  # fmt: skip
    return torch.nn.functional.normalize(embeddings, dim=-1) if similarity == "cosine" else embeddings


def nearest(queries: torch.Tensor, documents: torch.Tensor, k: int = 10) -> list[list[int]]:
    """The positions of the k documents with the largest dot product, best first, for each query.

    The search is exact and works in chunks of at most `SCORES_AT_ONCE` scores, on the device of the documents. Of
    documents with equal scores the first wins; if they are given in `id_order`, this is the ranking of trec_eval. The
    scores are those of products of matrices in float32, which round a score by its place: documents with the same
    embedding may differ in the last digit, and then come in any order. (`everlearn.Index` keeps them in order.)

    Args:
        queries: (n, d)
        documents: (m, d)

    Raises:
        EverlearnError: if an embedding is not finite; it would rank first for every query.
        ValueError: if the shapes do not match.

    >>> import torch
    >>> nearest(torch.eye(2), torch.eye(2), k=1)
    [[0], [1]]
    """
    import torch

    queries = queries.to(documents.device).float()
    if queries.ndim != 2 or queries.shape[1:] != documents.shape[1:]:
        raise ValueError(f"queries {tuple(queries.shape)} and documents {tuple(documents.shape)} do not fit together")
    check_finite(queries, "query")
    positions = torch.arange(len(documents), device=documents.device)
    found: list[list[int]] = []
    for some in queries.split(QUERIES_AT_ONCE):
        best_scores = some.new_empty((len(some), 0))
        best = positions.new_empty((len(some), 0))
        for rows in positions.split(SCORES_AT_ONCE // QUERIES_AT_ONCE):
            part = documents[rows].float()
            check_finite(part, "document")
            # What was found so far stands first, so that a tie goes to it.
            scores = torch.cat([best_scores, some @ part.T], dim=1)
            candidates = torch.cat([best, rows.expand(len(some), -1)], dim=1)
            columns = first_largest(scores, min(k, scores.shape[1]))
            best_scores, best = scores.gather(1, columns), candidates.gather(1, columns)
        found += best.tolist()
    return found


def score_rankings(rankings: Rankings, relevant: Relevance, k: int = 10) -> dict[str, float]:
    """The means over all queries: {"nDCG@k", "recall@k", "mrr@k", "map@k"}.

    >>> score_rankings([["b", "a"]], [{"a": 1}])["mrr@10"]
    0.5
    """
    measures = {"nDCG": ndcg_at_k, "recall": recall_at_k, "mrr": mrr_at_k, "map": map_at_k}
    return {f"{name}@{k}": float(f(rankings, relevant, k).mean()) for name, f in measures.items()}


def _grades(rankings: Rankings, relevant: Relevance, k: int) -> np.ndarray:
    """(n, k) grades of the ranked documents; 0 for no document or one that is not relevant."""
    grades = np.zeros((len(relevant), k))
    for row, ranking, known in zip(grades, rankings, relevant, strict=True):
        first = ranking[:k]
        if len(set(first)) < len(first):
            raise ValueError(f"a ranking contains a document twice: {list(first)}")
        row[: len(first)] = [max(known.get(document, 0), 0) for document in first]
    return grades


def _relevant(relevant: Relevance) -> np.ndarray:
    """(n,) numbers of relevant documents."""
    return np.array([sum(grade > 0 for grade in grades.values()) for grades in relevant], dtype=float)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(b)), where=b > 0)


def first_largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """(n, k) columns of the k largest scores of each row, best first; equal scores keep the column order."""
    values, columns = scores.topk(k)
    columns = columns.sort(dim=1).values
    columns = columns.gather(1, scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices)
    # topk may return any of the columns that tie for the last place; only rows with such ties are fully sorted.
    tied = (scores >= values[:, -1:]).sum(dim=1) > k
    if tied.any():
        columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns


def check_finite(embeddings: torch.Tensor, what: str) -> None:
    rows = (~embeddings.isfinite().all(dim=1)).nonzero()
    if len(rows):
        cause = "the training diverged; use a lower learning rate"
        raise EverlearnError(f"{len(rows)} {what} embeddings contain NaN or infinity: {cause}")
