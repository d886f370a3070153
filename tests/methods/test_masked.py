"""What a cross-entropy over the classes of the task alone must not do: let old rows decay, or learn nothing."""

from __future__ import annotations

import pytest
import torch

from everlearn import backbones, methods, streams
from everlearn.engine import learn
from everlearn.errors import EverlearnWarning
from everlearn.method import Method
from everlearn.streams.records import Record
from everlearn.testing import toy_stream

MASKED = {
    "lwf": {"train": "lora"}, "feature_distillation": {"train": "lora"}, "lae": {"train": "lora"},
    "slca": {"samples": 32}, "cofima": {"samples": 32, "fisher_examples": 6},
}  # fmt: skip


def built(name: str, **settings) -> Method:
    return methods.get(name)(backbones.load("tiny"), batch_size=8, **settings)


def of_classes(*names: str) -> list[Record]:
    return [Record(f"{name} number {row}", name) for name in names for row in range(16)]


def test_rows_of_old_classes_do_not_decay() -> None:
    method = built("feature_distillation", train="head", epochs=10, head_lr=1.0)
    first, second, *_ = toy_stream()
    learn(method, first)
    before = method.head.weight.detach().clone()
    learn(method, second)
    assert torch.equal(method.head.weight[:2], before) and before.abs().sum() > 1


@pytest.mark.parametrize("name", MASKED)
def test_a_class_that_comes_alone_is_learned_or_there_is_a_warning(name: str) -> None:
    method, known = built(name, epochs=20, **MASKED[name]), ()
    learn(method, streams.task_from(of_classes("tea", "sofa", "train"), known, index=0))
    alone = streams.task_from(of_classes("garden"), method.task.class_names, index=1)
    if name in ("slca", "cofima"):
        learn(method, alone)
        answers = method.predict([f"garden number {row}" for row in range(16)]).argmax(1)
        assert (answers == 3).float().mean() > 0.8
    else:
        with pytest.warns(EverlearnWarning, match="has the class 'garden' alone: .* it does not learn this one"):
            learn(method, alone)
    asked = [f"{one} number {row}" for one in ("tea", "sofa", "train") for row in range(16)]
    assert (method.predict(asked).argmax(1) == torch.arange(3).repeat_interleave(16)).float().mean() > 0.8


@pytest.mark.parametrize("name", ["slca", "cofima"])
def test_the_head_is_aligned_where_each_task_has_one_class(name: str) -> None:
    method = built(name, epochs=5, **MASKED[name])
    known: tuple[str, ...] = ()
    for index, one in enumerate(["tea", "sofa", "train", "garden"]):
        learn(method, streams.task_from(of_classes(one), known, index=index))
        known = method.task.class_names
    asked = [f"{one} number {row}" for one in known for row in range(16)]
    right = method.predict(asked).argmax(1) == torch.arange(len(known)).repeat_interleave(16)
    assert right.view(len(known), 16).float().mean(1).min() > 0.6
