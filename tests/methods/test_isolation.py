"""What the papers of parameter isolation claim: piggyback, packnet and hat."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from everlearn import backbones, methods
from everlearn.engine import learn
from everlearn.errors import EverlearnError
from everlearn.evaluation import TOLD, Evaluation
from everlearn.features import FeatureStore, using_store
from everlearn.peft.mask import packed, unpacked
from everlearn.testing import toy_stream

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 8}


def taught(name: str, tasks: int = 1, input: str = "text", **settings: Any) -> tuple[Any, Any]:
    stream = toy_stream(input)
    method = methods.get(name)(backbones.load("tiny"), **{**QUICK, **settings})
    for task in stream.tasks[:tasks]:
        learn(method, task)
    return method, stream


@pytest.mark.parametrize("input", ["text", "image"])
@pytest.mark.parametrize(("name", "settings"), [("piggyback", {"lr": 1e-3})])
def test_answers_to_old_tasks_stay_the_same_to_the_bit(name, settings, input, tmp_path):
    method, stream = taught(name, input=input, **settings)
    first = list(stream[0].test.inputs)
    answers, told = [method.predict(first, 0)], [Evaluation(stream, method).others(stream[0])[TOLD]]
    frozen = method.frozen(first)
    for task in stream.tasks[1:]:
        learn(method, task)
        with using_store(FeatureStore(tmp_path / task.name)):  # nothing is remembered of the answers before
            answers.append(method.predict(first, 0)[:, :2])
            assert torch.equal(method.frozen(first), frozen)
        told.append(Evaluation(stream, method).others(stream[0])[TOLD])
    assert all(torch.equal(later, answers[0]) for later in answers[1:]) and len(set(told)) == 1


def test_where_the_task_is_not_told_the_router_decides():
    method, stream = taught("piggyback", tasks=3, lr=1e-3)
    inputs = [text for task in stream for text in task.test.inputs]
    found, scores = method.route(inputs), method.predict(inputs)
    assert len(found.unique()) == 3
    for task in range(3):
        rows = (found == task).nonzero()[:, 0]
        chosen = [inputs[row] for row in rows]
        assert torch.equal(scores[rows].isfinite().nonzero()[:, 1].unique(), torch.tensor([2 * task, 2 * task + 1]))
        torch.testing.assert_close(scores[rows], method.predict(chosen, task))


# -- piggyback -------------------------------------------------------------------------------------
def test_a_mask_of_all_ones_is_the_pretrained_model_to_the_bit():
    stream, backbone = toy_stream(), backbones.load("tiny")
    texts = list(stream[0].test.inputs)
    before = backbone(texts)
    method = methods.get("piggyback")(backbone)
    method.begin_task(stream[0].sealed())
    assert len(backbone.active) == 12 and all(bool(mask.mask().all()) for mask in backbone.active)
    assert torch.equal(backbone(texts), before)
    method._settle()
    assert torch.equal(backbone(texts), before)


def test_a_mask_is_one_bit_a_weight_and_leaves_some_weights_out():
    method, _ = taught("piggyback", tasks=2, lr=1e-3)
    weights = sum(mask.site.weight.numel() for mask in method.masks[0])
    for masks in method.masks:
        assert sum(p.numel() for p in masks.parameters()) == 0
        assert sum(tensor.nbytes for tensor in masks.state_dict().values()) == weights / 8
        used = torch.cat([mask.mask().flatten() for mask in masks]).float().mean()
        assert 0.3 < used < 1


def test_the_gradient_of_a_mask_is_passed_straight_through_to_the_scores():
    stream = toy_stream()
    method = methods.get("piggyback")(backbones.load("tiny"))
    method.begin_task(stream[0].sealed())
    mask = method.masks[0][0]
    with torch.no_grad():
        mask.scores[0] = 0.0  # below the threshold
    assert mask.mask()[0].sum() == 0 and mask.mask()[1:].all()
    (2 * mask.mask()).sum().backward()
    assert torch.equal(mask.scores.grad, torch.full_like(mask.scores, 2.0))
    with pytest.raises(EverlearnError, match="no weight would be used"):
        methods.get("piggyback")(backbones.load("tiny"), score=1e-3)


@pytest.mark.parametrize("size", [0, 1, 8, 13])
def test_packed_bits_come_back(size):
    mask = torch.arange(size) % 3 == 0
    assert torch.equal(unpacked(packed(mask), size), mask) and len(packed(mask)) == -(-size // 8)
