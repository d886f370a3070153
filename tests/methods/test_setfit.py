"""SetFit: its loss is that of sentence-transformers, its pairs are what the paper asks, and classes can be added."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everlearn import backbones
from everlearn.engine import learn
from everlearn.methods import Logistic, SetFit
from everlearn.methods.setfit import drawn_pairs, up_and_down
from everlearn.streams.stream import Examples
from everlearn.testing.toy import toy_stream


def test_the_loss_is_that_of_sentence_transformers() -> None:
    library = pytest.importorskip("sentence_transformers")
    try:
        from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
    except ImportError:  # before release 6
        from sentence_transformers.losses import CosineSimilarityLoss
    task = toy_stream(tasks=1)[0]
    method = SetFit(backbones.load("tiny"), pairs=2)
    method.begin_task(task.sealed())
    batch = method.batches(task)[0]
    features = method.features(batch.inputs).detach()

    class Known(library.SentenceTransformer):
        """Gives the features that it is given."""

        def forward(self, features: dict) -> dict:
            return {"sentence_embedding": features["features"]}

    halves = [{"features": half} for half in features.chunk(2)]
    first, second = batch.labels.chunk(2)
    expected = CosineSimilarityLoss(Known(modules=[torch.nn.Identity()]))(halves, (first == second).float())
    torch.testing.assert_close(method.loss(batch).detach(), expected, rtol=0, atol=1e-6)
    assert 0 < float(expected) < 1


def test_each_example_starts_as_many_equal_as_different_pairs() -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 0, 2])
    rows = drawn_pairs(labels, torch.arange(7), 50, torch.Generator().manual_seed(0))
    one, other = rows.T
    same = labels[one] == labels[other]
    assert torch.equal(one[same].bincount(minlength=7), torch.full((7,), 50))
    assert torch.equal(one[~same].bincount(minlength=7), torch.full((7,), 50))
    alone = labels[one] == 1
    assert bool((one != other)[same & ~alone].all())  # an example is paired with itself only where its class has one
    for example in range(7):  # every partner that is possible occurs
        partners = {*other[one == example].tolist()}
        assert partners == {*range(7)} - ({example} if example != 2 else set())
    assert len(drawn_pairs(torch.tensor([3, 3]), torch.arange(2), 5, torch.Generator())) == 0


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_zero() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = up_and_down(optimizer, 20), []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [0.0, 0.5, 1.0] and rates[11] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True) and schedule.get_last_lr() == [0.0]


def test_later_tasks_pair_old_with_new_and_cost_at_most_twice_as_much() -> None:
    stream = toy_stream(tasks=3, per_class=10)
    method = SetFit(backbones.load("tiny"), pairs=3, memory_per_class=2)
    for task in stream.tasks[:2]:
        learn(method, task)
    kept = method.memory.examples()
    assert kept.labels.bincount().tolist() == [2] * len(stream[1].class_names)
    method.begin_task(stream[2].sealed())
    pairs = method.batches(stream[2])
    joined = Examples.concatenate([pairs[k] for k in range(len(pairs))])
    ends = [torch.cat(halves) for halves in zip(*(pairs[k].labels.chunk(2) for k in range(len(pairs))), strict=True)]
    new = len(stream[1].class_names)  # the first label of the third task
    old_old, mixed = (ends[0] < new) & (ends[1] < new), (ends[0] < new) != (ends[1] < new)
    assert old_old.any() and mixed.any()
    assert len(joined) // 2 == 2 * 3 * (len(stream[2].train) + min(len(kept), len(stream[2].train)))
    again = method.batches(stream[2])
    assert all(pairs[k].ids == again[k].ids for k in range(len(pairs)))  # a resumed run asks twice


def test_a_task_of_one_class_trains_nothing_and_is_answered() -> None:
    task = toy_stream(tasks=1)[0]
    only = task.train[(task.train.labels == 0).nonzero()[:, 0]]
    alone = replace(task, classes=(0,), class_names=task.class_names[:1], examples={"train": only})
    method = SetFit(backbones.load("tiny"))
    assert learn(method, alone).steps == 0
    assert method.predict(only.inputs).argmax(1).tolist() == [0] * len(only)


def test_few_kept_examples_do_not_make_an_old_class_unlikely() -> None:
    """Of two classes that read the same, the one that came first has four of them left, and the new one all 16."""
    task = toy_stream(tasks=1)[0]
    none, one = torch.zeros(16, dtype=torch.long), torch.ones(16, dtype=torch.long)
    same = Examples(["word0x1"] * 16, none, [str(row) for row in range(16)])
    method = SetFit(backbones.load("tiny"), train="head", memory_per_class=4)
    learn(method, replace(task, classes=(0,), class_names=("old",), examples={"train": same}))
    again = replace(same, labels=one, ids=[f"{name} again" for name in same.ids])
    learn(method, replace(task, index=1, classes=(1,), class_names=("old", "new"), examples={"train": again}))
    assert method.head.counts.tolist() == [4, 16]
    old, new = method.predict(same.inputs).mean(0).tolist()
    assert abs(old - new) < 0.01  # and not log 4


def test_with_a_frozen_encoder_it_is_the_head_of_logistic() -> None:
    stream = toy_stream(tasks=2, per_class=4)
    setfit, logistic = SetFit(backbones.load("tiny"), train="head"), Logistic(backbones.load("tiny"))
    for task in stream:
        learn(setfit, task)
        learn(logistic, task)
    inputs = [item for task in stream for item in task.test.inputs]
    torch.testing.assert_close(setfit.predict(inputs), logistic.predict(inputs), rtol=1e-3, atol=1e-3)
