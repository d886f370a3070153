"""Joint, the upper reference: its five solutions, and the rate of a head that follows the features."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from everlearn import backbones, methods
from everlearn.engine import Listener, feature_norm, learn, replay
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.testing import toy_stream


def learned(name: str, tasks: int = 2, **settings: Any) -> Method:
    method = methods.get(name)(backbones.load("tiny"), **settings)
    for task in toy_stream(tasks=tasks):
        learn(method, task)
    return method


@pytest.mark.parametrize(
    ("solution", "name", "settings"),
    [("lda", "lda", {}), ("lp", "logistic", {}), ("ridge", "ranpac", {"first_session": False})],
)
def test_a_fitted_solution_is_the_method_of_that_head(solution: str, name: str, settings: dict[str, Any]) -> None:
    inputs = toy_stream(tasks=2)[1].test.inputs
    joint, same = learned("joint", solution=solution), learned(name, **settings)
    assert torch.equal(joint.predict(inputs), same.predict(inputs))
    assert len(joint.memory) == 0  # what the head keeps is enough


def test_lp_ft_begins_as_the_linear_probe() -> None:
    stream = toy_stream(tasks=2)
    inputs = [*stream[0].test.inputs, *stream[1].test.inputs]
    begun = learned("joint", solution="lp-ft", lr=1e-12, head_lr=1e-12, epochs=1).predict(inputs)
    probe = learned("joint", solution="lp")
    # The probe of `logistic` reads directions, that of joint features of norm 1 in the mean: the answers are the same.
    assert torch.equal(begun.argmax(1), probe.predict(inputs).argmax(1))


def test_every_task_begins_at_the_first_weights_and_lp_ft_with_the_probe() -> None:
    probe, ft = (learned("joint", solution=solution, epochs=1) for solution in ("lp-ft", "ft"))
    assert not torch.equal(probe.head.weight, ft.head.weight)
    alone = methods.get("joint")(backbones.load("tiny"), solution="lp-ft", epochs=1)
    stream = toy_stream(tasks=2)
    alone.memory.add(stream[0].train)  # the old data, and nothing trained on them
    replay(alone, [stream[0]])
    learn(alone, stream[1])
    assert torch.equal(probe.head.weight, alone.head.weight)


def test_a_head_that_is_fitted_cannot_rank() -> None:
    joint = methods.get("joint")(backbones.load("tiny"), solution="lda")
    with pytest.raises(EverlearnError, match="lda fits a head to classes"):
        learn(joint, toy_stream(goal="ranking")[0])


def test_the_rate_of_a_head_is_for_features_of_norm_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Watch(Listener):
        def stepped(self, learning: Any) -> None:
            rates.append([group["lr"] for group in learning.optimizer_step.optimizer.param_groups])

    task = toy_stream()[0]
    for times in (1.0, 50.0):
        backbone = backbones.load("tiny")
        encode = backbone.encode
        monkeypatch.setattr(backbone, "encode", lambda inputs, encode=encode, times=times: times * encode(inputs))
        method = methods.get("finetune")(backbone, train="head", head_lr=0.02, epochs=1)
        norm = feature_norm(method, task.train.inputs)
        learn(method, task, Watch())
        assert rates[-1] == [pytest.approx(0.02 / norm)]
    assert rates[0][0] == pytest.approx(50 * rates[-1][0], rel=1e-2)
