"""L²R: old documents enter the loss as they stand in the index, and its negatives are those that the paper chooses."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, normalize

import everlearn
from everlearn import backbones, streams
from everlearn.engine import Listener, learn
from everlearn.errors import EverlearnError
from everlearn.losses import ranking_alignment
from everlearn.memory.drift_log import DriftLog
from everlearn.methods import L2R
from everlearn.methods.l2r import supports
from everlearn.testing.toy import toy_stream

pytest.importorskip("sentence_transformers")

STREAM = toy_stream(goal="ranking")
TEXTS = ["word0x1 noise3", "word1x1 word1x0 noise2", "word0x2 word0x0 noise19"]


def small(**settings: object) -> L2R:
    given = {"epochs": 2, "batch_size": 8, "replay_batch_size": 8, "lr": 1e-3, **settings}
    return L2R(backbones.load("tiny"), **given)  # type: ignore[arg-type]


def test_the_loss_against_an_independent_computation() -> None:
    """With all old pairs in the batch: cross-entropy by mixed embeddings, and the alignment of both rankings."""
    method = small(memory_size=6, replay_batch_size=6, align=0.5)
    learn(method, STREAM[0])
    learn(method, STREAM[1])  # so that the kept embeddings differ from new ones
    method.begin_task(STREAM[1].sealed())  # the model before it chooses the negatives
    new, old = method.supported(STREAM[1])[range(4)], method.memory.examples()
    queries = normalize(method.embed([*new.inputs, *old.inputs], "query"))
    kept, texts = old.columns["documents"], [*new.positives, *old.positives]  # type: ignore[misc]
    mixed = [*method.embed(new.positives, "document"), *kept[:, 0]]  # type: ignore[arg-type]
    for own in new.negatives:  # type: ignore[union-attr]
        texts += own
        mixed += method.embed(own, "document") if own else []
    for rows, own in zip(kept, old.negatives, strict=True):  # type: ignore[arg-type]
        texts += own
        mixed += rows[1 : 1 + len(own)]
    now = 20 * queries @ normalize(method.embed(texts, "document")).T
    as_kept = 20 * queries @ normalize(torch.stack(mixed)).T
    losses = []
    for row in range(10):
        others = [column for column, text in enumerate(texts) if text != texts[row]]
        ranking = cross_entropy(as_kept[row, [row, *others]][None], torch.tensor([0]))
        alignment = -(now[row].softmax(0) * log_softmax(as_kept[row], 0)).sum()
        losses.append(ranking + 0.5 * alignment)
    assert not torch.allclose(now, as_kept, atol=1e-3)
    assert float(method.loss(new).detach()) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_what_is_kept_is_what_the_index_holds() -> None:
    method = small(memory_size=500)
    learn(method, STREAM[0])
    held = {text: method.embed([text], "document")[0] for text in STREAM[0].train.positives or ()}
    for task in STREAM.tasks[1:]:
        learn(method, task)
    first = method.memory.examples()[range(32)]
    assert any(first.negatives or ())
    for text, own, rows in zip(first.positives, first.negatives, first.columns["documents"], strict=True):  # type: ignore[arg-type]
        for kept, known in zip(rows, (text, *own), strict=False):
            assert torch.allclose(kept, normalize(held[known], dim=0), atol=1e-5)
    assert not torch.allclose(normalize(method.embed([text], "document"))[0], rows[0], atol=1e-3)


def test_training_for_the_old_index_keeps_its_queries() -> None:
    """Beside the same training without memory, the queries of the first domain stay nearer to their old documents."""

    def found(size: int) -> float:
        method = small(memory_size=size, negatives=0, epochs=6)
        learn(method, STREAM[0])
        documents = method.embed(STREAM[0].train.positives, "document")  # type: ignore[arg-type]
        for task in STREAM.tasks[1:]:
            learn(method, task)
        scores = normalize(method.embed(STREAM[0].train.inputs, "query")) @ normalize(documents).T
        return float(cross_entropy(20 * scores, torch.arange(len(documents))))

    assert found(32) < found(0)


def test_the_gradient_reaches_both_rankings_but_no_kept_embedding() -> None:
    queries, documents = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    mixed = torch.cat([documents[:2], torch.randn(3, 4)])
    ranking_alignment(queries, mixed, documents).sum().backward()
    assert (documents.grad.abs().sum(1) > 0).all()  # type: ignore[union-attr]
    assert (queries.grad.abs().sum(1) > 0).all()  # type: ignore[union-attr]
    method = small()
    learn(method, STREAM[0])
    assert not method.memory.examples().columns["documents"].requires_grad


@pytest.mark.parametrize("seed", range(4))
def test_negatives_are_far_behind_the_positive_and_unlike_each_other(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    query, positive = (normalize(torch.randn(8, generator=random), dim=0) for _ in range(2))
    candidates = normalize(torch.randn(7, 8, generator=random))
    along = [candidate @ query / query.norm() for candidate in candidates]
    ahead = torch.stack([(positive @ query / query.norm() - value).abs() for value in along])
    alike = torch.stack([
        torch.stack([cosine_similarity(candidates[a], candidates[b], dim=0) for b in range(7) if b != a]).mean()
        for a in range(7)
    ])  # fmt: skip
    scores = 0.6 * (ahead - ahead.mean()) / ahead.std() - 0.4 * (alike - alike.mean()) / alike.std()
    assert supports(query, positive, candidates, 3) == scores.topk(3).indices.tolist()
    assert supports(query, positive, candidates[:2], 3) == [0, 1]
    assert supports(query, positive, candidates[[0, 0, 0]], 2) == [0, 1]


def test_without_chosen_negatives_those_of_the_data_are_used_and_not_kept() -> None:
    queries, documents = [f"word{i}x1" for i in range(12)], [f"word{i}x1 and more" for i in range(12)]
    negatives = [documents[: i % 4] for i in range(12)]  # as many as there are
    domains = ["one"] * 6 + ["two"] * 6
    method = small(negatives=0)
    for task in streams.from_pairs(queries, documents, domains, negatives=negatives):
        assert any(method.supported(task).negatives)  # type: ignore[arg-type]
        learn(method, task)
    kept = method.memory.examples()
    assert not any(kept.negatives or ()) and kept.columns["documents"].shape[1:] == (1, 32)


def test_the_model_before_is_a_copy_and_not_a_view() -> None:
    method = small()
    untouched = backbones.load("tiny").encode(TEXTS)
    told = Mock(spec=Listener)
    told.fitted.side_effect = lambda learning: setattr(told, "before", learning.method.before)
    learn(method, STREAM[0], told)
    with told.before.backbone.reading("query"):
        assert torch.equal(told.before.backbone.encode(TEXTS), untouched)
    assert not torch.allclose(method.embed(TEXTS, "query"), untouched)


def test_the_indexes_of_all_domains_are_searched_and_a_strangers_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from everlearn.retrieval import stamp_of

    method = small(epochs=1)
    learn(method, STREAM[0])
    index = everlearn.Index.create(tmp_path / "index", stamp_of(method))
    documents = list(STREAM[0].train.positives or ())
    index.add([f"d{i}" for i in range(len(documents))], documents, by=method)
    learn(method, STREAM[1])
    assert method.document_space() != index.stamp.space
    assert method.reaches(index.stamp.space)
    assert len(index.search(TEXTS, by=method, k=3)[0][0]) == 3
    method.spaces = DriftLog(0)
    with pytest.raises(EverlearnError, match="embedded by another encoder"):
        index.search(TEXTS, by=method)


def test_a_run_is_measured_in_the_kept_indexes() -> None:
    result = everlearn.run({"name": "l2r", "epochs": 1, "memory_size": 8}, STREAM, backbone="tiny")
    assert result.retrieval["index"] == "kept"
    assert [domain["moved"] for domain in result.retrieval["domains"]] == [True, True, False]
    kept = [domain["ndcg"]["new queries, old index"] for domain in result.retrieval["domains"]]
    assert result.results["accuracy_matrix"][-1] == pytest.approx(kept)
