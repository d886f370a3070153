"""Several lists of inputs that one pass reads: as passes apart, in less time."""

import numpy as np
import pytest
import torch

from everlearn import backbones, methods
from everlearn.backbones.backbone import Backbone
from everlearn.engine import learn
from everlearn.testing import toy_stream

NEW, OLD, MORE = ["a cup of tea", "a sofa"], ["a lamp"], ["tea, please, and a table for two", "a cup", "tea"]


@pytest.fixture
def tiny() -> Backbone:
    return backbones.load("tiny").requires_grad_(True)


def gradients(encoder: Backbone, features: list[torch.Tensor]) -> np.ndarray:
    encoder.zero_grad()
    sum(feature.square().sum() for feature in features).backward()
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]).numpy()


def test_one_pass_gives_the_features_and_gradients_of_passes_apart(tiny):
    apart = [tiny(part) for part in (NEW, OLD, MORE)]
    expected = gradients(tiny, apart)
    passed = Backbone.passed
    with tiny.together(NEW, OLD, MORE):
        together = [tiny(part) for part in (OLD, MORE, NEW)]
    assert Backbone.passed - passed == 6
    for one, other in zip(together, (apart[1], apart[2], apart[0]), strict=True):
        torch.testing.assert_close(one, other)
    np.testing.assert_allclose(gradients(tiny, together), expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-2


def test_other_inputs_and_passes_without_gradients_are_apart(tiny):
    with tiny.together(NEW, OLD):
        features, passed = tiny(NEW), Backbone.passed
        tiny(list(NEW))
        tiny.infer(OLD)
        with torch.no_grad():
            assert not tiny(NEW).requires_grad
        assert Backbone.passed - passed == 5 and tiny(NEW) is features


def test_afterwards_nothing_is_kept(tiny):
    with pytest.raises(RuntimeError, match="stop"), tiny.together(NEW, OLD):
        before = tiny(NEW)
        raise RuntimeError("stop")
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.mul_(1.1)
    assert (tiny(NEW) - before).abs().max() > 1e-3


def test_encoders_side_by_side_read_together():
    pair = backbones.load("tiny+tiny").requires_grad_(True)
    apart, passed = pair(OLD), Backbone.passed
    with pair.together(NEW, OLD):
        together = [pair(OLD), pair(NEW)]
    assert Backbone.passed - passed == 2 * 3
    torch.testing.assert_close(together[0], apart)


@pytest.mark.parametrize(("name", "drawn"), [("er", 1), ("er_ace", 1), ("der", 1), ("der_pp", 2)])
def test_replay_makes_one_pass_in_a_step(name, drawn, monkeypatch):
    stream = toy_stream(tasks=2)
    method = methods.get(name)(backbones.load("tiny"), epochs=1, batch_size=8, replay_batch_size=4)
    learn(method, stream[0])
    read, sizes = method.backbone.read, []
    monkeypatch.setattr(method.backbone, "read", lambda inputs: sizes.append(len(inputs)) or read(inputs))
    method.begin_task(stream[1].sealed())
    method.loss(stream[1].train[range(8)])
    assert sizes == [8 + drawn * 4]


def test_kept_features_are_not_read_again(monkeypatch):
    stream = toy_stream(tasks=2)
    method = methods.get("feature_replay")(backbones.load("tiny"), train="full", epochs=1, batch_size=8)
    learn(method, stream[0])
    read, sizes = method.backbone.read, []
    monkeypatch.setattr(method.backbone, "read", lambda inputs: sizes.append(len(inputs)) or read(inputs))
    method.begin_task(stream[1].sealed())
    method.loss(stream[1].train[range(8)])
    assert sizes == [8]
