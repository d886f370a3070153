"""Methods that each break one promise: the contract's checks catch every one by name, and pass the right one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from everlearn.backbones.backbone import Backbone
from everlearn.errors import ContractError, EverlearnError
from everlearn.method import Method, Tags
from everlearn.methods.simplecil import SimpleCIL
from everlearn.seeds import seeded
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Task
from everlearn.testing import check_method

pytestmark = pytest.mark.filterwarnings("error:.* was not checked in a fresh process")


class Right(SimpleCIL):
    """A method that holds every promise, 2026, https://example.org/right

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> Right(backbones.load("tiny")).seed
    0
    """


class OwnIdea(SimpleCIL):
    """A method of one's own, of which there is no paper.

    Args:
        backbone: frozen.
        seed: unused.
    """


class ReadsDataInBeginTask(SimpleCIL):
    """Learns where it may only build, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> ReadsDataInBeginTask(backbones.load("tiny")).seed
    0
    """

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.head.add(self.embed(task.train.inputs), self.labels(task.train))

    def end_task(self, task: Task) -> None:
        pass


class NormalisesByTheBatch(SimpleCIL):
    """Subtracts the mean of the test batch, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> NormalisesByTheBatch(backbones.load("tiny")).seed
    0
    """

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> torch.Tensor:
        scores = super().predict(inputs)
        return scores - 0.1 * scores.mean(0)


class ChangesStateInPredict(SimpleCIL):
    """Learns from the test examples, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> ChangesStateInPredict(backbones.load("tiny")).seed
    0
    """

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> torch.Tensor:
        scores = super().predict(inputs)
        self.head.add(self.embed(inputs), scores.argmax(1))
        return scores


class ForgetsToSaveState(SimpleCIL):
    """Keeps its means in a list that no state dict holds, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> ForgetsToSaveState(backbones.load("tiny")).seed
    0
    """

    def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.means: list[torch.Tensor] = []

    def end_task(self, task: Task) -> None:
        features, labels = self.embed(task.train.inputs), self.labels(task.train)
        self.means += [features[labels == k].mean(0) for k in task.classes]

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> torch.Tensor:
        missing = len(self.task.class_names) - len(self.means)
        means = torch.stack([torch.zeros(self.backbone.width)] * missing + self.means)
        return -torch.cdist(self.embed(inputs), means)


class ReadsLabelsInPredict(SimpleCIL):
    """Answers with the labels that it hopes to be given, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> ReadsLabelsInPredict(backbones.load("tiny")).seed
    0
    """

    def predict(self, batch: Any, task: int | None = None) -> torch.Tensor:
        return torch.nn.functional.one_hot(batch.labels, len(self.task.class_names)).float()


class KeepsStateInTheClass(SimpleCIL):
    """Keeps its means in an attribute of the class, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> KeepsStateInTheClass(backbones.load("tiny")).seed
    0
    """

    means: ClassVar[dict[int, torch.Tensor]] = {}

    def end_task(self, task: Task) -> None:
        features, labels = self.embed(task.train.inputs), self.labels(task.train)
        self.means.update({k: features[labels == k].mean(0) for k in task.classes})

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> torch.Tensor:
        means = [self.means[k] for k in range(len(self.task.class_names))]
        return -torch.cdist(self.embed(inputs), torch.stack(means))


class ReadsTestDataInEndTask(SimpleCIL):
    """Learns the test examples as well, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> ReadsTestDataInEndTask(backbones.load("tiny")).seed
    0
    """

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.head.add(self.embed(task.test.inputs), self.labels(task.test))


class ReadsIds(SimpleCIL):
    """Leaves out every other record, by its id, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> ReadsIds(backbones.load("tiny")).seed
    0
    """

    def end_task(self, task: Task) -> None:
        rows = [row for row, name in enumerate(task.train.ids) if name.endswith(("1", "3", "5", "7", "9"))]
        self.head.add(self.embed(task.train[rows].inputs), self.labels(task.train[rows]))


class MutatesItsBatch(SimpleCIL):
    """Numbers the classes of each task from 0, in place, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> MutatesItsBatch(backbones.load("tiny")).seed
    0
    """

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        task.train.labels.sub_(min(task.classes))


class IsNotDeterministic(SimpleCIL):
    """Disturbs its features by the time of day, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> IsNotDeterministic(backbones.load("tiny")).seed
    0
    """

    def end_task(self, task: Task) -> None:
        noise = 1e-3 * (time.time_ns() % 1000)
        self.head.add(self.embed(task.train.inputs) + noise, self.labels(task.train))


class TrainsTheFrozenBackbone(Method):
    """Says that it trains a head, and trains everything, 2026, https://example.org/wrong

    Args:
        backbone: said to be frozen.
        seed: of the order of examples.

    >>> from everlearn import backbones
    >>> TrainsTheFrozenBackbone(backbones.load("tiny")).seed
    0
    """

    tags = Tags(family="baseline", trains="head")

    def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
        super().__init__(backbone, epochs=8, batch_size=8, lr=1e-2, seed=seed)
        backbone.requires_grad_(True)


class DrawsFromGlobalState(SimpleCIL):
    """Projects at random, from whatever generator is at hand, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: without effect, which is the fault.

    >>> from everlearn import backbones
    >>> DrawsFromGlobalState(backbones.load("tiny")).seed
    0
    """

    def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("turn", torch.linalg.qr(self.draw(backbone.width))[0])

    def draw(self, width: int) -> torch.Tensor:
        return torch.from_numpy(np.random.standard_normal((width, width)).astype(np.float32))

    def embed(self, inputs: Sequence[Input], role: Any = "query") -> torch.Tensor:
        return super().embed(inputs) @ self.turn


class DrawsFromTorchOutsideItsSeed(DrawsFromGlobalState):
    """The same with torch's generator, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: without effect, which is the fault.

    >>> from everlearn import backbones
    >>> DrawsFromTorchOutsideItsSeed(backbones.load("tiny")).seed
    0
    """

    def draw(self, width: int) -> torch.Tensor:
        return torch.randn(width, width)


class DrawsFromItsSeed(DrawsFromGlobalState):
    """The same done right, 2026, https://example.org/right

    Args:
        backbone: frozen.
        seed: of the projection.

    >>> from everlearn import backbones
    >>> DrawsFromItsSeed(backbones.load("tiny")).seed
    0
    """

    def draw(self, width: int) -> torch.Tensor:
        with seeded(self.seed):
            return torch.randn(width, width)


WRONG = {
    ReadsLabelsInPredict: ("predicts from inputs alone", "was given a list of inputs"),
    KeepsStateInTheClass: ("two methods share nothing", "they share state"),
    ReadsTestDataInEndTask: ("learning reads no test data", "read the test data of task 0"),
    ReadsIds: ("ids decide nothing", "an id is a name"),
    MutatesItsBatch: ("a batch is not changed", "changed the examples it was given"),
    IsNotDeterministic: ("the same seed gives the same result", "on the time"),
    ReadsDataInBeginTask: ("begin task reads no data", "read the train data"),
    NormalisesByTheBatch: ("a prediction depends on its example alone", "depend on the other examples"),
    ChangesStateInPredict: ("predict changes nothing", "changed the method's state"),
    ForgetsToSaveState: ("a checkpoint holds everything", "not in the state dict"),
    TrainsTheFrozenBackbone: ("frozen stays frozen", "the tags say that the backbone is frozen"),
    DrawsFromGlobalState: ("the same seed gives the same result", "global random state"),
    DrawsFromTorchOutsideItsSeed: ("the same seed gives the same result", "global random state"),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_a_broken_promise_is_named(cls):
    promise, why = WRONG[cls]
    with pytest.raises(ContractError) as error:
        check_method(cls)
    message = str(error.value)
    assert message.startswith(f"{cls.__name__} breaks '{promise}': ") and why in message


@pytest.mark.parametrize("cls", [Right, DrawsFromItsSeed], ids=lambda cls: cls.__name__)
def test_a_right_method_passes(cls):
    check_method(cls)


DOCSTRING = "docstring_explains_the_settings_and_its_example_runs"


def test_a_method_of_ones_own_needs_no_paper_but_one_of_everlearn_does(monkeypatch):
    check_method(OwnIdea, only=DOCSTRING)
    monkeypatch.setattr(OwnIdea, "__module__", "everlearn.methods.own_idea")
    with pytest.raises(ContractError, match="the docstring has no year"):
        check_method(OwnIdea, only=DOCSTRING)


def test_an_example_that_fails_is_noticed_in_a_method_of_ones_own_too(monkeypatch):
    monkeypatch.setattr(OwnIdea, "__doc__", f"{Right.__doc__}\n    >>> 1 + 1\n    3\n")
    with pytest.raises(ContractError, match="the example in the docstring fails"):
        check_method(OwnIdea, only=DOCSTRING)


def test_an_unknown_check_is_not_one_that_passes() -> None:
    with pytest.raises(EverlearnError, match="did you mean 'predict_changes_nothing'"):
        check_method(SimpleCIL, only="predict_changes_nothin")
