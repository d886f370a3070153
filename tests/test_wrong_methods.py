"""Six methods that each break one promise: the contract's checks catch every one by name, and pass the right one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from everlearn.backbones.backbone import Backbone
from everlearn.errors import ContractError
from everlearn.method import Method, Tags, seeded
from everlearn.methods.simplecil import SimpleCIL
from everlearn.streams.stream import Examples, Task
from everlearn.testing import check_method


class Right(SimpleCIL):
    """A method that holds every promise, 2026, https://example.org/right

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> Right(backbones.load("tiny")).seed
    0
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


class PredictsByBatch(SimpleCIL):
    """Subtracts the mean of the test batch, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        seed: unused.

    >>> from everlearn import backbones
    >>> PredictsByBatch(backbones.load("tiny")).seed
    0
    """

    def predict(self, batch: Examples) -> torch.Tensor:
        scores = super().predict(batch)
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

    def predict(self, batch: Examples) -> torch.Tensor:
        scores = super().predict(batch)
        self.head.add(self.embed(batch.inputs), scores.argmax(1))
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

    def predict(self, batch: Examples) -> torch.Tensor:
        missing = len(self.task.class_names) - len(self.means)
        means = torch.stack([torch.zeros(self.backbone.width)] * missing + self.means)
        return -torch.cdist(self.embed(batch.inputs), means)


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

    def embed(self, inputs: Any) -> torch.Tensor:
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
    ReadsDataInBeginTask: ("begin task reads no data", "read the train data"),
    PredictsByBatch: ("a prediction depends on its example alone", "depend on the other examples"),
    ChangesStateInPredict: ("predict changes nothing", "changed the method's state"),
    ForgetsToSaveState: ("resumes exactly", "not in the state dict"),
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
