"""What the papers of the retriever methods claim, and the bugs that published code had."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import everlearn
from everlearn import backbones, methods
from everlearn.engine import Learning, Listener, learn
from everlearn.errors import EverlearnError
from everlearn.memory.drift_log import DriftLog
from everlearn.methods import QDC, Finetune, Interpolate, Joint, PromptRetriever, TaskAdapters
from everlearn.metrics.retrieval import nearest
from everlearn.retrieval.negatives import mined
from everlearn.streams.stream import Task
from everlearn.testing.toy import toy_stream

STREAM = toy_stream(goal="ranking")
QUERIES = ["word0x1 noise3", "word2x0 word2x1 word2x2 noise7", "word1x1"]
DOCUMENTS = [f"answer to {text}" for text in STREAM[0].test.inputs]


def small_pool(**settings: object) -> PromptRetriever:
    given = {"pool_size": 8, "length": 2, "selected": 3, "lr": 0.03, "epochs": 2, **settings}
    return PromptRetriever(backbones.load("tiny"), **given)  # type: ignore[arg-type]


# -- prompt_retriever ------------------------------------------------------------------------------
def test_the_most_similar_keys_are_chosen() -> None:
    method = small_pool()
    query = method.keys[3].detach()[None] * 7
    assert method.choose(query)[0, 0] == 3
    cosines = cosine_similarity(query, method.keys)
    assert set(method.choose(query)[0].tolist()) == set(cosines.topk(3).indices.tolist())


def test_keys_learn_and_come_nearer_to_their_queries() -> None:
    method = small_pool(pull=1.0, epochs=4)
    asked = method.untouched(STREAM[0].train.inputs, "query")
    before, chosen = method.keys.detach().clone(), method.choose(asked)
    near = method.cosines(asked).gather(1, chosen).mean().item()
    learn(method, STREAM[0])
    moved = (method.keys != before).any(1).nonzero()[:, 0]
    assert set(chosen.flatten().tolist()) <= set(moved.tolist())
    assert method.cosines(asked).gather(1, method.choose(asked)).mean().item() > near


def test_only_chosen_keys_get_gradient() -> None:
    method = small_pool()
    learn(method, STREAM[0])
    method.train()
    batch = STREAM[0].train[range(2)]
    method.zero_grad()
    method.loss(batch).backward()
    moved = (method.keys.grad.abs().sum(1) > 0).nonzero()[:, 0]  # type: ignore[union-attr]
    chosen = method.choose(method.untouched(batch.inputs, "query"))
    assert set(moved.tolist()) == set(chosen.flatten().tolist())


def test_only_chosen_prompts_get_gradient() -> None:
    method = small_pool()
    learn(method, STREAM[0])
    method.train()
    batch = STREAM[0].train[range(2)]
    chosen = set(method.choose(method.untouched(batch.inputs, "query")).flatten().tolist())
    method.zero_grad()
    method.loss(batch).backward()
    touched = (method.prompts.grad.abs().flatten(1).sum(1) > 0).nonzero()[:, 0]  # type: ignore[union-attr]
    assert set(touched.tolist()) == chosen
    assert 0 < len(chosen) < 8


def test_what_no_query_has_chosen_stays_as_it_was() -> None:
    method = small_pool(pool_size=40, selected=1)
    prompts, keys = method.prompts.detach().clone(), method.keys.detach().clone()
    chosen: set[int] = set()
    choose = method.choose

    def noted(queries: torch.Tensor) -> torch.Tensor:
        chosen.update(choose(queries).flatten().tolist())
        return choose(queries)

    method.choose = noted  # type: ignore[method-assign]
    learn(method, STREAM[0])
    others = sorted({*range(40)} - chosen)
    assert len(others) > 9 and torch.equal(method.prompts[others], prompts[others])
    assert torch.equal(method.keys[others], keys[others]) and not torch.equal(method.prompts, prompts)


def test_a_prompted_query_does_not_depend_on_its_padding() -> None:
    method = small_pool()
    learn(method, STREAM[0])
    together = method.embed(QUERIES, "query")
    alone = torch.cat([method.embed([query], "query") for query in QUERIES])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_is_pooled_are_the_tokens_of_the_query() -> None:
    """Prompts join the embedded sequence once, after positions and normalisation, and are not pooled themselves."""
    method = small_pool(length=1, selected=1)
    backbone = method.backbone
    prepared = backbone.prepare(QUERIES[:1])
    plain = backbone.hidden(prepared)
    with torch.no_grad(), method.inserted.given(method.prompts[[0]]):
        prompted = backbone.hidden(prepared)
    assert prompted.states.shape[1] == plain.states.shape[1] + 1
    pooled = backbone.pool(prompted)
    text_only = prompted._replace(states=prompted.states[:, :-1], mask=prompted.mask[:, :-1], prompts=0)
    assert torch.equal(pooled, backbone.pool(text_only))


def test_the_index_stays_right_with_prompts_on_the_query_side() -> None:
    method = small_pool()
    space, documents = method.document_space(), method.embed(DOCUMENTS, "document")
    queries = method.embed(QUERIES, "query")
    learn(method, STREAM[0])
    assert method.document_space() == space
    assert torch.equal(method.embed(DOCUMENTS, "document"), documents)
    assert not torch.allclose(method.embed(QUERIES, "query"), queries)


def test_prompts_on_both_sides_make_the_index_stale_and_say_so() -> None:
    method = small_pool(side="both")
    space, documents = method.document_space(), method.embed(DOCUMENTS, "document")
    learn(method, STREAM[0])
    assert method.document_space() != space
    assert not torch.allclose(method.embed(DOCUMENTS, "document"), documents)
    result = everlearn.run({"name": "prompt_retriever", "pool_size": 4, "length": 1, "selected": 1, "epochs": 1,
                            "side": "both"}, STREAM, backbone="tiny")  # fmt: skip
    assert result.retrieval["stale_documents"] == 24


def test_more_prompts_selected_than_there_are() -> None:
    with pytest.raises(EverlearnError, match="3 prompts cannot be chosen from a pool of 2"):
        small_pool(pool_size=2)


# -- qdc -------------------------------------------------------------------------------------------
def test_drift_is_the_mean_movement_of_the_training_queries() -> None:
    method = QDC(backbones.load("tiny"), epochs=2, lr=1e-3)
    spaces, seen = [], []
    for task in STREAM:
        spaces.append(method.document_space())
        seen.append({t.index: normalize(method.embed(t.train.inputs, "query")) for t in STREAM})
        learn(method, task)
    last = {t.index: normalize(method.embed(t.train.inputs, "query")) for t in STREAM}
    seen.append(last)
    steps = []
    for t in range(3):
        unique = [STREAM[t].train.inputs.index(text) for text in dict.fromkeys(STREAM[t].train.inputs)]
        steps.append((seen[t + 1][t] - seen[t][t])[unique].mean(0))
    for t, space in enumerate(spaces):
        assert torch.allclose(method.drift.since(space), sum(steps[t:]), atol=1e-5)  # type: ignore[arg-type]
        assert method.reaches(space)
    assert method.drift.since(method.document_space()) is None


@pytest.mark.parametrize("train", ["full", "lora", "prefix"])
def test_the_index_of_the_pretrained_model_can_be_searched(train: str) -> None:
    untouched, method = Finetune(backbones.load("tiny")), QDC(backbones.load("tiny"), train=train, lr=1e-2)
    for task in STREAM.tasks[:2]:
        learn(method, task)
    space = untouched.document_space()
    assert method.reaches(space)
    if train == "prefix":  # it changes the encoder as soon as it is there
        one = QDC(backbones.load("tiny"), train=train)
        learn(one, STREAM[0])
        texts = list(dict.fromkeys(STREAM[0].train.inputs))
        moved = normalize(one.embed(texts, "query")) - normalize(untouched.embed(texts, "query"))
        assert torch.allclose(one.drift.since(space), moved.mean(0), atol=1e-5)  # type: ignore[arg-type]


def test_a_common_drift_is_taken_back_exactly() -> None:
    """Where every query moves by the same vector, the compensated query ranks as the old model did."""
    method = QDC(backbones.load("tiny"))
    random = torch.Generator().manual_seed(0)
    drift, space = torch.randn(32, generator=random), "ab" * 16
    method.drift.record(space, drift)
    old = normalize(torch.randn(9, 32, generator=random))
    documents = normalize(torch.randn(40, 32, generator=random))
    method.embed = lambda inputs, role=None: old + drift  # type: ignore[method-assign]
    method.backbone.similarity = "dot"  # so that the drifted queries are taken as they are
    found = method.queries_for(["q"] * 9, space)
    assert torch.allclose(found, old, atol=1e-6)
    assert nearest(found, documents) == nearest(old, documents)


def test_distillation_keeps_queries_and_documents_near() -> None:
    def drift(weight: float) -> float:
        method = QDC(backbones.load("tiny"), epochs=8, lr=1e-3, distill=weight)
        before = method.embed(QUERIES, "query"), method.embed(DOCUMENTS, "document")
        learn(method, STREAM[1])
        after = method.embed(QUERIES, "query"), method.embed(DOCUMENTS, "document")
        return sum((1 - cosine_similarity(a, b)).mean().item() for a, b in zip(before, after, strict=True))

    assert drift(100.0) < 0.5 * drift(0.0)


def learn_and_keep_the_model_before(method: QDC, task: Task) -> None:
    class Keep(Listener):
        def fitted(self, learning: Learning) -> None:
            self.before = method.before

    keep = Keep()
    learn(method, task, keep)
    method.before = keep.before


def test_the_model_before_is_a_copy_and_not_a_view() -> None:
    method = QDC(backbones.load("tiny"), epochs=2, lr=1e-3)
    untouched = backbones.load("tiny").encode(QUERIES)
    learn_and_keep_the_model_before(method, STREAM[0])
    assert torch.equal(method.embedded_before(QUERIES, "query"), untouched)
    assert not torch.allclose(method.embed(QUERIES, "query"), untouched)


@pytest.mark.parametrize("side", ["query", "both"])
@pytest.mark.parametrize("name", ["qdc", "l2r"])
def test_the_model_before_reads_documents_as_the_method_did(name: str, side: str) -> None:
    method = methods.get(name)(backbones.load("tiny"), train="lora", side=side, epochs=2, lr=0.03, negatives=1)
    learn(method, STREAM[0])
    queries, documents, space = (
        method.embed(QUERIES, "query"),
        method.embed(DOCUMENTS, "document"),
        method.document_space(),
    )
    method.begin_task(STREAM[1].sealed())
    assert torch.allclose(method.before.embed(QUERIES, "query"), queries, atol=1e-6)
    assert torch.allclose(method.before.embed(DOCUMENTS, "document"), documents, atol=1e-6)
    assert method.before.document_space() == space
    found = method.supported(STREAM[1]) if name == "l2r" else method.batches(STREAM[1]).examples
    candidates = mined(method, STREAM[1].train, most=method.candidates if name == "l2r" else 1)
    assert all(set(own) <= set(all_) for own, all_ in zip(found.negatives, candidates.negatives, strict=True))


def test_without_compensation_old_spaces_are_not_reached() -> None:
    method = QDC(backbones.load("tiny"), epochs=1, lr=1e-3, compensate=False)
    space = method.document_space()
    learn(method, STREAM[0])
    assert not method.reaches(space)
    assert torch.equal(method.queries_for(QUERIES, space), normalize(method.embed(QUERIES, "query")))


def test_an_index_of_an_earlier_state_is_searched_and_a_strangers_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    method = QDC(backbones.load("tiny"), epochs=1, lr=1e-3)
    from everlearn.retrieval import stamp_of

    index = everlearn.Index.create(tmp_path / "index", stamp_of(method))
    index.add([f"d{i}" for i in range(len(DOCUMENTS))], DOCUMENTS, by=method)
    learn(method, STREAM[0])
    assert len(index.search(QUERIES, by=method, k=3)[0][0]) == 3
    stranger = QDC(backbones.load("tiny"), epochs=1, lr=1e-2)
    learn(stranger, STREAM[1])
    stranger.drift = DriftLog(32)
    with pytest.raises(EverlearnError, match="embedded by another encoder"):
        index.search(QUERIES, by=stranger)


def test_hard_negatives_are_learned_from() -> None:
    pytest.importorskip("sentence_transformers")
    method = QDC(backbones.load("tiny"), epochs=1, negatives=2, batch_size=8)
    seen = []
    step = method.step
    method.step = lambda batch, optimizer_step: (seen.append(batch), step(batch, optimizer_step))[1]  # type: ignore[method-assign]
    learn(method, STREAM[0])
    assert all(batch.negatives is not None for batch in seen)
    pairs = {query: positive for batch in seen for query, positive in zip(batch.inputs, batch.positives, strict=True)}
    mined = [
        (query, text)
        for batch in seen
        for query, own in zip(batch.inputs, batch.negatives, strict=True)
        for text in own
    ]
    assert mined
    assert all(text != pairs[query] and text in pairs.values() for query, text in mined)


def test_the_negatives_are_distilled_too() -> None:
    pytest.importorskip("sentence_transformers")
    method = QDC(backbones.load("tiny"), epochs=1, lr=1e-2, negatives=2, distill=2.0)
    learn_and_keep_the_model_before(method, STREAM[0])
    batch = method.batches(STREAM[0])[0]
    texts = [*batch.positives, *(text for own in batch.negatives for text in own)]  # type: ignore[union-attr,misc]
    before = backbones.load("tiny")
    apart = [1 - cosine_similarity(method.embed(part, role), before.encode(part)).mean()
             for part, role in ((batch.inputs, "query"), (texts, "document"))]  # fmt: skip
    assert len(texts) > len(batch)
    found = float(method.loss(batch).detach())
    method.distill = 0.0
    assert found - float(method.loss(batch).detach()) == pytest.approx(2 * float(sum(apart)), rel=1e-3)


def test_joint_keeps_the_negatives_that_the_pretrained_model_finds() -> None:
    pytest.importorskip("sentence_transformers")
    from everlearn.retrieval.negatives import mined

    first, second = (task.train for task in toy_stream(goal="ranking", tasks=2))
    method = Joint(backbones.load("tiny"), epochs=1, lr=1e-2, negatives=2, batch_size=8)
    for task in toy_stream(goal="ranking", tasks=2):
        learn(method, task)
    assert not torch.equal(method.embed(DOCUMENTS), backbones.load("tiny").encode(DOCUMENTS))
    kept = method.memory.examples()
    expected = [
        own for pairs in (first, second) for own in mined(backbones.load("tiny"), pairs, most=2).negatives or ()
    ]
    assert any(expected) and [list(own) for own in kept.negatives or ()] == expected


# -- interpolate -----------------------------------------------------------------------------------
def weights_after(method: Finetune) -> dict[str, torch.Tensor]:
    learn(method, STREAM[0])
    return {name: parameter.detach().clone() for name, parameter in method.trained().items()}


def test_interpolation_lies_between_old_and_new() -> None:
    old = {name: p.detach().clone() for name, p in Finetune(backbones.load("tiny"), epochs=2).trained().items()}
    new = weights_after(Finetune(backbones.load("tiny"), epochs=2))
    for weight in (0.0, 0.25, 1.0):
        mixed = weights_after(Interpolate(backbones.load("tiny"), epochs=2, weight=weight))
        for name, value in mixed.items():
            assert torch.allclose(value, weight * new[name] + (1 - weight) * old[name], atol=1e-6), (name, weight)


def test_the_weight_is_the_best_on_validation_pairs() -> None:
    stream = [replace(task, examples={**task.examples, "validation": task.train[range(12)]}) for task in STREAM]
    method = Interpolate(backbones.load("tiny"), epochs=4, lr=1e-3, weight="auto")
    tried: dict[float, float] = {}
    mix, rank = method._mix, method._mean_reciprocal_rank
    now = []
    method._mix = lambda after, weight: (now.append(weight), mix(after, weight))[1]  # type: ignore[method-assign]
    method._mean_reciprocal_rank = lambda part: tried.setdefault(now[-1], rank(part))  # type: ignore[method-assign]
    learn(method, stream[0])
    assert now[-1] == max(tried, key=tried.__getitem__)
    assert len(method.held_out) == 12


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_weights_that_embed_all_alike_are_not_the_best(value: float) -> None:
    method = Interpolate(backbones.load("tiny"), weight="auto")
    method.embed = lambda texts, role=None: torch.full((len(texts), 32), value)  # type: ignore[method-assign]
    assert method._mean_reciprocal_rank(STREAM[0].train[range(8)]) == 1 / len({*STREAM[0].train[range(8)].positives})


def test_auto_needs_validation_pairs() -> None:
    with pytest.raises(EverlearnError, match="auto needs validation pairs"):
        learn(Interpolate(backbones.load("tiny"), epochs=1, weight="auto"), STREAM[0])


# -- one side alone --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lora", "sequential", "er", "joint", "finetune", "qdc"])
def test_query_side_training_leaves_documents_alone(name: str) -> None:
    method = methods.get(name)(backbones.load("tiny"), train="lora", side="query", epochs=2, lr=0.01)
    space, documents, queries = (
        method.document_space(),
        method.embed(DOCUMENTS, "document"),
        method.embed(QUERIES, "query"),
    )
    learn(method, STREAM[0])
    assert method.document_space() == space
    assert torch.equal(method.embed(DOCUMENTS, "document"), documents)
    assert not torch.allclose(method.embed(QUERIES, "query"), queries)


@pytest.mark.parametrize("name", ["lora", "vpt", "sequential", "er", "joint", "finetune", "interpolate"])
def test_training_both_sides_changes_the_space(name: str) -> None:
    method = methods.get(name)(backbones.load("tiny"), epochs=1)
    space = method.document_space()
    learn(method, STREAM[0])
    assert method.document_space() != space
    frozen = methods.get("frozen")(backbones.load("tiny"))
    space = frozen.document_space()
    learn(frozen, STREAM[0])
    assert frozen.document_space() == space


# -- an adapter a domain ---------------------------------------------------------------------------
def adapters(domains: int) -> TaskAdapters:
    method = TaskAdapters(backbones.load("tiny"), train="lora", epochs=2, lr=0.01)
    for task in STREAM.tasks[:domains]:
        learn(method, task)
    return method


def test_adapters_are_for_queries_and_the_index_stays_right() -> None:
    before, method = adapters(0), adapters(2)
    assert method.document_space() == before.document_space()
    assert torch.equal(method.embed(DOCUMENTS, "document"), before.embed(DOCUMENTS, "document"))
    assert torch.equal(before.embed(QUERIES, "query"), before.frozen(QUERIES, "query"))
    assert not torch.allclose(method.embed(QUERIES, "query"), before.embed(QUERIES, "query"))


def test_a_query_goes_through_the_adapter_of_the_nearest_mean_query() -> None:
    method = adapters(3)
    queries = [query for task in STREAM for query in task.test.inputs]
    means = torch.stack([method.frozen(task.train.inputs, "query").mean(0) for task in STREAM])
    expected = (normalize(method.frozen(queries, "query")) @ normalize(means).T).argmax(1)
    found = method.route(queries)
    assert torch.equal(found, expected) and len(found.unique()) == 3
    embedded = method.embed(queries, "query")
    for row in (0, 13, 30):
        method.switch(int(found[row]))
        assert torch.allclose(method.backbone.infer([queries[row]])[0], embedded[row], atol=1e-5)


def test_what_a_domain_has_learned_is_not_touched_by_the_next() -> None:
    first, both = adapters(1), adapters(2)
    own = [query for query, task in zip(STREAM[0].test.inputs, both.route(STREAM[0].test.inputs), strict=True)
           if task == 0]  # fmt: skip
    assert own
    assert torch.allclose(first.embed(own, "query"), both.embed(own, "query"), atol=1e-6)


def test_one_side_alone_needs_an_insertion_and_documents() -> None:
    with pytest.raises(EverlearnError, match="train=full has none: give --method"):
        Finetune(backbones.load("tiny"), side="query")
    with pytest.raises(EverlearnError, match="this stream has classes"):
        learn(Finetune(backbones.load("tiny"), train="lora", side="query"), toy_stream()[0])


def test_joint_ranks_within_one_domain_at_a_time_and_presents_all_pairs() -> None:
    stream = toy_stream(goal="ranking")
    joint = methods.get("joint")(backbones.load("tiny"), epochs=2, batch_size=8)
    for task in stream.tasks[:2]:
        learn(joint, task)
    batches = joint.batches(stream[2])
    seen: list[str] = []
    domains = []
    for number in range(len(batches)):
        ids = list(batches[number].ids)
        of = {task.index for task in stream for id in ids if id in task.train.ids}
        assert len(of) == 1
        domains += of
        seen += ids
    everything = [id for task in stream for id in task.train.ids]
    assert sorted(seen) == sorted(2 * everything)
    assert domains != sorted(domains)
