"""Mined negatives: of the band of ranks that was asked for, never a positive, and no likely false negative."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from everlearn import backbones, engine, methods, streams
from everlearn.backbones.tiny import TinyBackbone
from everlearn.errors import EverlearnError
from everlearn.streams.stream import Examples
from everlearn.testing.toy import toy_stream

pytest.importorskip("sentence_transformers")

from everlearn.retrieval.negatives import mined

TINY = backbones.load("tiny")
PAIRS = toy_stream(goal="ranking")[0].train[range(12)]
CORPUS = [f"word{i}x1 and more" for i in range(30)]


def ranked() -> tuple[list[str], torch.Tensor]:
    documents = list(dict.fromkeys([*PAIRS.positives, *CORPUS]))  # type: ignore[misc]
    return documents, normalize(TINY.encode(PAIRS.inputs)) @ normalize(TINY.encode(documents)).T


def test_the_nearest_documents_without_the_positives() -> None:
    documents, scores = ranked()
    found = mined(TINY, PAIRS, CORPUS, margin=0.0, most=3).negatives
    assert found is not None
    for row, (own, positive) in enumerate(zip(found, PAIRS.positives, strict=True)):  # type: ignore[arg-type]
        place = documents.index(positive)
        below = [
            d
            for d in scores[row].argsort(descending=True).tolist()
            if d != place and scores[row, d] <= scores[row, place] + 1e-6
        ]
        found_scores = [float(scores[row, documents.index(text)]) for text in own]
        assert found_scores == pytest.approx([float(scores[row, d]) for d in below[:3]], abs=1e-6)
        assert positive not in own


def test_a_margin_leaves_out_likely_answers_and_a_band_easy_and_hard_ones() -> None:
    documents, scores = ranked()
    found = mined(TINY, PAIRS, CORPUS, margin=0.3, most=5).negatives
    assert found is not None
    for row, (own, positive) in enumerate(zip(found, PAIRS.positives, strict=True)):  # type: ignore[arg-type]
        most = 0.7 * scores[row, documents.index(positive)]
        assert all(scores[row, documents.index(text)] <= most + 1e-6 for text in own)
    hard, easy = (
        mined(TINY, PAIRS, CORPUS, first=first, last=last, margin=0.0, most=3) for first, last in ((0, 12), (20, 40))
    )
    means = [
        torch.stack(
            [scores[row, documents.index(text)] for row, own in enumerate(part.negatives) for text in own]
        ).mean()  # type: ignore[arg-type]
        for part in (hard, easy)
    ]
    assert means[0] > means[1]


@pytest.mark.parametrize("count", range(5))
def test_where_there_are_few_documents_there_are_few_negatives(count: int) -> None:
    texts = [f"word{i}x1 and more" for i in range(count)]
    pairs = Examples(texts, torch.empty(0, dtype=torch.long), texts, positives=texts)
    found = mined(TINY, pairs, margin=0.0).negatives
    assert found is not None
    assert [{*own} for own in found] == [{*texts} - {text} for text in texts]
    assert mined(TINY, pairs, first=9).negatives == [[]] * count


@pytest.mark.parametrize("method", ["l2r", "qdc"])
def test_a_domain_of_few_documents_is_learned(method: str) -> None:
    queries = [f"word{i}x{j}" for i in range(4) for j in range(3)]
    stream = streams.from_pairs(queries, [f"word{i}x1 and more" for i in range(4) for _ in range(3)])
    learned = methods.get(method)(TinyBackbone(), epochs=1, negatives=5)
    engine.learn(learned, stream[0])


def test_mining_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert mined(TINY, PAIRS).negatives is not None
    assert capfd.readouterr() == ("", "")


def test_bad_input_in_one_line() -> None:
    with pytest.raises(EverlearnError, match="the band from rank 5 to rank 5 is empty"):
        mined(TINY, PAIRS, first=5, last=5)
    with pytest.raises(EverlearnError, match="these examples have classes"):
        mined(TINY, Examples(["a"], torch.tensor([0]), ["1"]))
