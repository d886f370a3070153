"""Retrieval measures against ir_measures (trec_eval), and the blocked search against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from everlearn.errors import EverlearnError
from everlearn.metrics import retrieval


def random_problem(seed: int, queries: int = 40, documents: int = 60, dimensions: int = 5):
    """Small integers, so that scores are exact and many of them tie; grades from -1 to 3."""
    random = np.random.default_rng(seed)
    ids = [f"d{i}" for i in random.permutation(documents)]
    query = random.integers(-2, 3, (queries, dimensions)).astype(np.float32)
    document = random.integers(-2, 3, (documents, dimensions)).astype(np.float32)
    relevant = [
        {ids[i]: int(random.integers(-1, 4)) for i in random.choice(documents, random.integers(1, 30), False)}
        for _ in range(queries)
    ]
    return query, document, ids, relevant


def search(query, document, ids, k=10):
    """The ids that an evaluation gets for these embeddings: it gives the documents in `id_order`."""
    order = retrieval.id_order(ids)
    found = retrieval.nearest(torch.as_tensor(query), torch.as_tensor(document)[order], k)
    return [[ids[order[position]] for position in row] for row in found]


def plain_sort(query, document, ids, k):
    """Every score at once; ties by document id, the larger first."""
    scores = query @ document.T
    return [
        [i for _, i in sorted(((score, i) for score, i in zip(row, ids, strict=True)), reverse=True)[:k]]
        for row in scores.tolist()
    ]


def by_rank(query, document, ids):
    """A run without ties, because the tools behind ir_measures do not agree on their order."""
    rankings = plain_sort(query, document, ids, len(ids))
    return {str(q): {i: float(-rank) for rank, i in enumerate(row)} for q, row in enumerate(rankings)}


@pytest.mark.parametrize("seed", range(3))
def test_ties_are_those_of_trec_eval(seed):
    measures = pytest.importorskip("ir_measures")
    query, document, ids, relevant = random_problem(seed)
    run = {str(q): dict(zip(ids, map(float, row), strict=True)) for q, row in enumerate(query @ document.T)}
    qrels = {str(q): grades for q, grades in enumerate(relevant)}
    found = search(query, document, ids)
    ours = {
        measures.nDCG @ 10: retrieval.ndcg_at_k(found, relevant),
        measures.R @ 10: retrieval.recall_at_k(found, relevant),
        measures.AP @ 10: retrieval.map_at_k(found, relevant),
    }
    theirs = list(measures.pytrec_eval.iter_calc(list(ours), qrels, run))
    assert len(theirs) == 3 * len(relevant)
    for value in theirs:
        assert ours[value.measure][int(value.query_id)] == pytest.approx(value.value, abs=1e-9), value


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("seed", range(5))
def test_against_ir_measures(seed, k):
    measures = pytest.importorskip("ir_measures")
    query, document, ids, relevant = random_problem(seed)
    rankings = search(query, document, ids, k)
    run = by_rank(query, document, ids)
    qrels = {str(q): grades for q, grades in enumerate(relevant)}
    ours = {
        measures.nDCG @ k: retrieval.ndcg_at_k(rankings, relevant, k),
        measures.R @ k: retrieval.recall_at_k(rankings, relevant, k),
        measures.RR @ k: retrieval.mrr_at_k(rankings, relevant, k),
        measures.AP @ k: retrieval.map_at_k(rankings, relevant, k),
    }
    seen = 0
    for found in measures.iter_calc(list(ours), qrels, run):
        assert ours[found.measure][int(found.query_id)] == pytest.approx(found.value, abs=1e-9), found
        seen += 1
    assert seen == 4 * len(relevant)


def test_means_are_those_of_ir_measures():
    measures = pytest.importorskip("ir_measures")
    query, document, ids, relevant = random_problem(7)
    run = by_rank(query, document, ids)
    qrels = {str(q): grades for q, grades in enumerate(relevant)}
    order = [measures.nDCG @ 10, measures.R @ 10, measures.RR @ 10, measures.AP @ 10]
    wanted = measures.calc_aggregate(order, qrels, run)
    ours = retrieval.score_rankings(search(query, document, ids), relevant)
    assert list(ours) == ["nDCG@10", "recall@10", "mrr@10", "map@10"]
    assert list(ours.values()) == pytest.approx([wanted[measure] for measure in order], abs=1e-9)


@pytest.mark.parametrize("k", [1, 10, 100])
def test_blocks_find_what_a_plain_sort_finds(k, monkeypatch):
    query, document, ids, _ = random_problem(3)
    wanted = plain_sort(query, document, ids, k)
    assert search(query, document, ids, k) == wanted
    monkeypatch.setattr(retrieval, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 7 * 13)
    assert search(query, document, ids, k) == wanted


def test_order_of_the_corpus_changes_nothing():
    query, document, ids, _ = random_problem(4)
    shuffle = np.random.default_rng(0).permutation(len(ids))
    shuffled = search(query, document[shuffle], [ids[i] for i in shuffle])
    assert shuffled == search(query, document, ids)


def test_tensors_of_any_precision():
    query, document, ids, _ = random_problem(5)
    wanted = search(query, document, ids)
    assert search(torch.tensor(query), torch.tensor(document).bfloat16(), ids) == wanted
    assert search(query.astype(np.float64), torch.tensor(document).half(), ids) == wanted


def test_no_block_exceeds_its_limit(monkeypatch):
    sizes = []
    plain = retrieval.first_largest
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 256 * 100)
    monkeypatch.setattr(retrieval, "first_largest", lambda scores, k: (sizes.append(scores.shape), plain(scores, k))[1])
    search(np.ones((600, 2)), np.ones((1000, 2)), [str(i) for i in range(1000)])
    assert sizes and all(rows <= 256 and columns <= 110 for rows, columns in sizes)


def test_average_precision_divides_by_all_relevant_documents():
    relevant = [{f"d{i}": 1 for i in range(20)}]
    assert retrieval.map_at_k([[f"d{i}" for i in range(10)]], relevant) == pytest.approx([0.5])


def test_a_query_without_relevant_documents_scores_zero():
    for measure in (retrieval.ndcg_at_k, retrieval.recall_at_k, retrieval.mrr_at_k, retrieval.map_at_k):
        assert measure([["a"], ["a"]], [{}, {"a": 0}]).tolist() == [0.0, 0.0]


def test_faults_are_refused():
    with pytest.raises(ValueError, match="twice"):
        retrieval.ndcg_at_k([["a", "a"]], [{"a": 1}])
    with pytest.raises(ValueError):
        retrieval.mrr_at_k([["a"], ["b"]], [{"a": 1}])
    for query, document in [((1, 2), (2, 3)), ((2,), (2, 2)), ((1, 2), (2,))]:
        with pytest.raises(ValueError, match="fit"):
            retrieval.nearest(torch.ones(query), torch.ones(document))
    for query, document in [(np.nan, 1.0), (1.0, np.inf)]:
        with pytest.raises(EverlearnError, match="NaN"):
            search(np.full((1, 2), query), np.full((1, 2), document), ["a"])
