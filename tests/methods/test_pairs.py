"""What the papers of methods with two towers claim and the contract cannot know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from everlearn import backbones, methods
from everlearn.engine import Learning, Listener, learn
from everlearn.errors import EverlearnError
from everlearn.method import Method, Tags
from everlearn.schedules import cosine
from everlearn.streams.stream import Examples
from everlearn.testing import tiny_pair, toy_stream

SMALL = {"epochs": 2, "batch_size": 8, "lr": 1e-3}


def weights_of(method: Method) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in method.backbone.parameters()])


class Plain(Method):
    """Fine-tuning of both encoders, and nothing else."""

    tags = Tags(family="baseline", trains="backbone", inputs=("image",), needs=("class names", "two towers"))
    schedule = staticmethod(cosine)

    def __init__(self, backbone, **settings) -> None:
        super().__init__(backbone, **settings)
        backbone.requires_grad_(True)

    def losses(self, batch: Examples) -> torch.Tensor:
        names = [self.task.class_names[k] for k in self.task.classes]
        texts = self.backbone.class_features(names, self.backbone)
        scores = self.backbone.scale * normalize(self.backbone(batch.inputs)) @ texts.T
        return cross_entropy(scores, batch.labels - self.task.classes[0], reduction="none", label_smoothing=0.2)


# -- zscl --------------------------------------------------------------------------------------------
def test_zscl_without_its_three_terms_is_plain_fine_tuning():
    stream = toy_stream("image")
    plain, none = Plain(tiny_pair(), **SMALL), methods.get("zscl")(tiny_pair(), strength=0, pull=0, every=0, **SMALL)
    for task in stream:
        learn(plain, task)
        learn(none, task)
    assert torch.equal(weights_of(plain), weights_of(none))
    assert not torch.equal(weights_of(none), weights_of(Plain(tiny_pair())))
    for name in ("strength", "pull"):
        other = methods.get("zscl")(tiny_pair(), **{"strength": 0, "pull": 0, "every": 0, name: 1.0}, **SMALL)
        for task in stream:
            learn(other, task)
        assert not torch.equal(weights_of(other), weights_of(none))


class Snapshots(Listener):
    def __init__(self, every: int) -> None:
        self.every, self.kept = every, []

    def begun(self, learning: Learning) -> None:
        self.kept = [weights_of(learning.method)]

    def stepped(self, learning: Learning) -> None:
        if learning.step % self.every == 0 or learning.step == learning.steps:
            self.kept.append(weights_of(learning.method))


@pytest.mark.parametrize("every", [3, 4, 100])
def test_zscl_leaves_the_running_mean_of_its_snapshots(every):
    method, seen = methods.get("zscl")(tiny_pair(), every=every, **SMALL), Snapshots(every)
    for task in toy_stream("image", tasks=2):
        learning = learn(method, task, seen)
        assert learning.steps == 8 and len(seen.kept) == {3: 4, 4: 3, 100: 2}[every]
        torch.testing.assert_close(weights_of(method), torch.stack(seen.kept).mean(0), rtol=1e-5, atol=1e-6)
        assert method.kept.stored_bytes() == 16  # two counters: nothing of the task is stored


def test_zscl_compares_with_the_pair_before_the_first_task():
    stream, untouched = toy_stream("image"), tiny_pair()
    method = methods.get("zscl")(tiny_pair(), **SMALL)
    learn(method, stream[0])
    method.begin_task(stream[1].sealed())
    moved = weights_of(method)
    method.batches(stream[1].for_learning())
    assert torch.equal(moved, weights_of(method)) and not torch.equal(moved, weights_of(Plain(untouched)))
    torch.testing.assert_close(method._reference.seen, normalize(untouched.encode(stream[1].train.inputs)))
    texts = untouched.class_features(stream[1].class_names)
    torch.testing.assert_close(method._reference.read, texts)
    assert method._drift(method._reference) > 1e-4
    with method._initially():
        assert method._drift(method._reference).item() == pytest.approx(0, abs=1e-4)


def test_zscl_takes_a_reference_by_name_and_refuses_one_without_images():
    stream = toy_stream("image")
    method = methods.get("zscl")(tiny_pair(), reference="digits", reference_size=30, **SMALL)
    learning = learn(method, stream[0])
    assert learning.steps == 8 and "a photo of a 7." in method._of_file()[1] and len(method._of_file()[0]) == 30
    with pytest.raises(EverlearnError, match=r"method\.reference: clinc150 holds no images"):
        learn(methods.get("zscl")(tiny_pair(), reference="clinc150", **SMALL), stream[0])


@pytest.mark.parametrize("name", ["zscl"])
def test_a_backbone_that_is_no_pair_is_refused(name):
    with pytest.raises(EverlearnError, match="is no pair of an image encoder and a text encoder"):
        methods.get(name)(backbones.load("tiny"))


@pytest.mark.parametrize("name", ["zscl"])
def test_what_is_read_of_classes_is_their_names(name):
    """With the names of two classes exchanged, nothing else of the data tells that anything has changed."""
    stream = toy_stream("image", tasks=1)
    other = replace(stream[0], class_names=stream[0].class_names[::-1])
    learned = []
    for task in (stream[0], other):
        method = methods.get(name)(tiny_pair(), **SMALL)
        learn(method, task)
        learned.append(method.predict(task.test.inputs))
    assert not torch.allclose(*learned)
