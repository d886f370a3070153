"""Methods that keep examples and ask the nearest: to learn is to add, and to forget is to remove."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everlearn import backbones, methods
from everlearn.engine import learn
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.streams.stream import Examples, Stream, Task
from everlearn.testing import toy_stream


def taught(name: str, tasks: Stream | list[Task], **settings) -> Method:
    method = methods.get(name)(backbones.load("tiny"), **settings)
    for task in tasks:
        learn(method, task)
    return method


def with_only(task: Task, rows: list[int]) -> Task:
    return replace(task, examples={"train": task.train[rows]})


@pytest.mark.parametrize("head", ["logistic", "lda", "ridge"])
def test_knn_forgets_and_merges_to_the_bit(head: str) -> None:
    stream = toy_stream(per_class=20)
    inputs = [text for task in stream for text in task.test.inputs]
    some, rest = list(range(10)), list(range(10, 40))
    settings = {"head": head, "interpolation": 0.5, "neighbours": 64}  # the temperature is chosen
    never = taught("knn", [with_only(stream[0], rest), *stream[1:]], **settings)
    method = taught("knn", stream, **settings)
    assert not torch.equal(method.predict(inputs), never.predict(inputs))
    method.forget(stream[0].train[some])
    assert torch.equal(method.predict(inputs), never.predict(inputs))
    with pytest.raises(EverlearnError):
        method.forget(Examples(["never seen"], torch.tensor([0]), ["x"]))
    assert torch.equal(method.predict(inputs), never.predict(inputs))
    method.merge(taught("knn", [with_only(stream[0], some)], **settings))
    assert torch.equal(method.predict(inputs), taught("knn", stream, **settings).predict(inputs))


def test_knn_learns_the_same_in_any_number_of_tasks() -> None:
    stream = toy_stream()
    inputs = [text for task in stream for text in task.test.inputs]
    everything = Examples.concatenate([task.train for task in stream])
    at_once = replace(stream[-1], index=0, classes=tuple(range(6)), examples={"train": everything})
    assert torch.equal(taught("knn", [at_once]).predict(inputs), taught("knn", stream).predict(inputs))


def test_knn_without_votes_is_logistic_regression() -> None:
    stream = toy_stream()
    inputs = [text for task in stream for text in task.test.inputs]
    found = taught("knn", stream, interpolation=0.0).predict(inputs).argmax(1)
    assert torch.equal(found, taught("logistic", stream).predict(inputs).argmax(1))


def test_an_example_is_read_with_the_labels_of_its_nearest_and_never_with_itself() -> None:
    stream = toy_stream()
    method = methods.get("retrieval_augmented")(backbones.load("tiny"), train="head", neighbours=3)
    method.begin_task(stream[0].sealed())
    assert method.with_neighbours(["word0x1"]) == ["word0x1"]  # there are none yet
    train = stream[0].train
    rows = method.frozen(train.inputs)
    for text, read in zip(train.inputs, method.with_neighbours(train.inputs, train), strict=True):
        similar = rows @ method.frozen([text])[0]
        similar[list(train.inputs).index(text)] = -1
        parts = read.split(" | ")
        assert parts[0] == text and len(parts) == 4
        for part, place in zip(parts[1:], similar.argsort(descending=True)[:3].tolist(), strict=True):
            assert part == f"{train.inputs[place]}: class {int(train.labels[place])}"
    assert method.with_neighbours(train.inputs[:1], train[[0]]) == [train.inputs[0]]  # it is alone


def test_labels_of_later_batches_are_not_read_in_an_online_stream() -> None:
    assert "online" not in methods.get("retrieval_augmented").tags.kinds


def test_to_learn_is_to_add_without_a_step_of_training() -> None:
    """What an added example says is read at once: its label is the name that the text is nearest to."""
    stream = toy_stream()
    method = taught("retrieval_augmented", stream, train="head", neighbours=4)
    assert not method.trained() and len(method.memory) == sum(len(task.train) for task in stream)
    untold = taught("frozen", stream)
    told, blind = (
        sum((m.predict(task.test.inputs).argmax(1) == task.test.labels).sum() for task in stream)
        for m in (method, untold)
    )  # fmt: skip
    assert told > blind + 5
    before = method.with_neighbours(["word5x1 noise3"])
    method.memory.remove(method.memory.examples().ids)
    assert before != ["word5x1 noise3"] == method.with_neighbours(["word5x1 noise3"])


def test_only_the_reading_is_tuned_and_no_index_goes_stale() -> None:
    stream = toy_stream()
    method = taught("retrieval_augmented", stream, epochs=2, batch_size=8, lr=0.01)
    assert all(delta.b.abs().sum() > 0 for delta in method.deltas)
    held, plain = method.memory.examples(), backbones.load("tiny")
    expected = torch.nn.functional.normalize(plain.infer(held.inputs), dim=1)
    torch.testing.assert_close(held.columns["feature"].float(), expected, rtol=1e-3, atol=1e-3)
    names = torch.nn.functional.normalize(plain.infer([f"class {k}" for k in range(6)]), dim=1)
    torch.testing.assert_close(method.head.embeddings, names)
    with pytest.raises(EverlearnError, match=r"method\.train: full would change the encoder"):
        methods.get("retrieval_augmented")(backbones.load("tiny"), train="full")
    with pytest.raises(EverlearnError, match="cannot be undone exactly"):
        method.forget(stream[0].train)
