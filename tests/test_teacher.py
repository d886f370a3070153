"""The model as it was before a task is there while the task is learned, and not afterwards."""

from __future__ import annotations

import pytest

from everlearn import backbones, methods
from everlearn.checkpoint import Checkpoint, method_state, origin_hash, stored_bytes
from everlearn.engine import learn, replay
from everlearn.method import Method
from everlearn.session import restore_method
from everlearn.streams.stream import Stream
from everlearn.teacher import FrozenEncoder
from everlearn.testing import toy_stream
from everlearn.testing.case import same, snapshot

NAMES = ("lwf", "feature_distillation", "icarl", "qdc", "l2r")


def stream_for(name: str) -> Stream:
    if name == "l2r":  # it mines negatives with the model before
        pytest.importorskip("sentence_transformers")
        pytest.importorskip("datasets")
    return toy_stream(goal=methods.get(name).tags.goals[0])


def built(name: str) -> Method:
    return methods.get(name)(backbones.load("tiny"), train="lora", epochs=1, batch_size=16)


def has_teacher(method: Method) -> bool:
    return any(isinstance(module, FrozenEncoder) for module in method.modules())


def saved(method: Method, stream: Stream) -> Checkpoint:
    state = {"origin": origin_hash(method), "tasks": [task.metadata() for task in stream]}
    return Checkpoint(state, method_state(method), training={})


@pytest.mark.parametrize("name", NAMES)
def test_between_tasks_there_is_no_teacher_and_none_is_stored(name: str) -> None:
    method, stream = built(name), stream_for(name)
    for task in stream:
        learn(method, task)
        assert not has_teacher(method)
    without = stored_bytes(method)
    replay(method, stream.tasks[-1:])
    assert has_teacher(method) and stored_bytes(method) > without


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_from_between_two_tasks_is_read_with_a_teacher_in_it_and_without(name: str) -> None:
    method, stream = built(name), stream_for(name)
    for task in stream:
        learn(method, task)
    plain = saved(method, stream)
    method.begin_task(stream.tasks[-1].sealed())
    older = saved(method, stream)
    assert len(older.method) > len(plain.method)
    method.drop_helpers()
    for checkpoint in (plain, older):
        again = built(name)
        restore_method(again, checkpoint)
        assert not has_teacher(again) and same(snapshot(method), snapshot(again))
