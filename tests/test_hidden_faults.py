"""Methods whose fault is hidden: each breaks one promise where it is hard to see, and is refused for that promise."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from everlearn import backbones
from everlearn.backbones.backbone import Backbone
from everlearn.engine import learn
from everlearn.errors import ContractError, EverlearnWarning
from everlearn.evaluation import TOLD, Evaluation
from everlearn.method import Method, Tags
from everlearn.methods import ER, Finetune, SequentialLoRA
from everlearn.methods.simplecil import SimpleCIL
from everlearn.settings import Seed
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task
from everlearn.testing import check_method, fresh, session, toy_stream

pytestmark = pytest.mark.filterwarnings("error:.* was not checked in a fresh process")
FAST = {"epochs": 2, "batch_size": 8, "lr": 1e-2}


def documented(cls: type[Method]) -> type[Method]:
    """The class with the rest of a docstring: year, link, arguments and an example."""
    arguments = "backbone: frozen.\n    seed: of everything random." + getattr(cls, "more", "")
    example = f'>>> from everlearn import backbones\n>>> {cls.__name__}(backbones.load("tiny")).seed\n0'
    cls.__doc__ = f"{cls.__doc__}, 2026, https://example.org/wrong\n\nArgs:\n    {arguments}\n\n{example}\n"
    return cls


def means(method: Method, task: Task) -> dict[int, Tensor]:
    """The mean feature of each class of a task."""
    features, labels = method.embed(task.train.inputs), method.labels(task.train)
    return {k: features[labels == k].mean(0) for k in task.classes}


def nearest_mean(method: Method, inputs: Sequence[Input], known: dict[int, Tensor]) -> Tensor:
    blank = torch.full((method.backbone.width,), 9.0)
    return -torch.cdist(method.embed(inputs), torch.stack([known.get(k, blank) for k in range(len(names(method)))]))


def names(method: Method) -> tuple[str, ...]:
    return method.task.class_names


def right_answers(method: Method, inputs: Sequence[Input], found: Examples) -> Tensor:
    """Scores that agree with labels which somebody found."""
    rows = [list(found.inputs).index(item) for item in inputs]
    return nn.functional.one_hot(found.labels[rows], len(names(method))).float()


# -- labels and ids in predict -----------------------------------------------------------------
@documented
class FindsLabelsInTheCallersFrames(SimpleCIL):
    """Looks through the frames of whoever asks for examples with these inputs"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        frame = sys._getframe(1)
        while frame is not None:
            for value in frame.f_locals.values():
                if isinstance(value, Task) and list(value.test.inputs) == list(inputs):
                    return right_answers(self, inputs, value.test)
            frame = frame.f_back
        return super().predict(inputs)


@documented
class FindsLabelsInTheMemoryOfTheProcess(SimpleCIL):
    """Asks the garbage collector for examples with these inputs"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        for value in gc.get_objects():
            if type(value) is Examples and value.inputs == inputs and len(value.labels) and max(value.labels) < 6:
                return right_answers(self, inputs, value)
        return super().predict(inputs)


@documented
class FindsIdsInTheCallersFrames(SimpleCIL):
    """Tells the class of an example from its id"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores, frame = super().predict(inputs), sys._getframe(1)
        while frame is not None:
            chunk = frame.f_locals.get("chunk")
            if isinstance(chunk, Examples):
                favoured = torch.tensor([len(name) * ord(name[-1]) % scores.shape[1] for name in chunk.ids])
                return scores + 10 * nn.functional.one_hot(favoured, scores.shape[1])
            frame = frame.f_back
        return scores


# -- test data in learning ---------------------------------------------------------------------
@documented
class FindsTestDataInTheCallersFrames(SimpleCIL):
    """Learns the test examples of the task that the engine holds"""

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        frame = sys._getframe(1)
        while frame is not None:
            for value in list(frame.f_locals.values()):
                if isinstance(value, Task) and value.index == task.index and "test" in value.examples:
                    test = value.examples["test"]
                    self.head.add(self.embed(test.inputs), self.labels(test))
                    self.head.solve()
                    return
            frame = frame.f_back


@documented
class ReachesPastTheSeal(SimpleCIL):
    """Takes the test examples out of the task's dictionary"""

    def end_task(self, task: Task) -> None:
        test = object.__getattribute__(task, "examples")["test"]
        self.head.add(self.embed(test.inputs), self.labels(test))
        self.head.solve()


@documented
class LearnsFromWhatItIsAsked(SimpleCIL):
    """Keeps every input of predict, and counts it to the nearest class when the next task ends"""

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.asked: list[Input] = []

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        self.asked += inputs
        return super().predict(inputs)

    def end_task(self, task: Task) -> None:
        if self.asked:
            self.head.add(self.embed(self.asked), super().predict(self.asked).argmax(1))
            self.asked.clear()
        super().end_task(task)


# -- ids in learning ---------------------------------------------------------------------------
@documented
class SortsByIdsFromTheSecondTaskOn(SimpleCIL):
    """Keeps half of the examples, those whose ids come first, once the first task is over"""

    def end_task(self, task: Task) -> None:
        order = sorted(range(len(task.train)), key=lambda row: task.train.ids[row][::-1])
        kept = task.train if task.index == 0 else task.train[order[: len(order) // 2]]
        self.head.add(self.embed(kept.inputs), self.labels(kept))
        self.head.solve()


# -- state outside of the state dict -----------------------------------------------------------
@documented
class KeepsStateInTheClassByContent(SimpleCIL):
    """Keeps means in a class attribute, by the content they were made of, so that two methods do not disturb
    each other"""

    shelf: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("shift", torch.zeros(6))

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.shelf.update({f"{task.index} {k} {list(task.class_names)}": m for k, m in means(self, task).items()})

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return scores + 0.1 * any(key.startswith("0 0 ") for key in self.shelf) * torch.arange(scores.shape[1])


_MEANS: dict[tuple[int, int], Tensor] = {}


@documented
class KeepsStateInTheModule(SimpleCIL):
    """Remembers the first means that anybody computed, in a global of the module"""

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        for k, mean in means(self, task).items():
            _MEANS.setdefault((task.index, k), mean)

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        found = [_MEANS[key] for key in sorted(_MEANS)]
        similarity = self.embed(inputs) @ torch.stack(found).mean(0) if found else torch.zeros(len(inputs))
        return super().predict(inputs) + similarity.tanh()[:, None] * torch.linspace(0, 0.1, len(names(self)))


def _counter() -> tuple[Any, Any]:
    seen: list[int] = []
    return seen.append, lambda: len(set(seen))


_count, _counted = _counter()


@documented
class KeepsStateInAClosure(SimpleCIL):
    """Counts the tasks that were ever learned, in the closure of a function"""

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        _count(task.index)

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        return super().predict(inputs) * (1 + min(_counted(), 1))


@documented
class KeepsStateInAFile(SimpleCIL):
    """Writes its means to a file outside of the run, named by what it learned, and reads them again"""

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.register_buffer("key", torch.tensor(0))

    @property
    def file(self) -> Path:
        return Path(os.environ["TMPDIR"]) / f"means-{int(self.key)}.json"

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.key += zlib.crc32(repr(task.train.inputs).encode())
        self.file.write_text(json.dumps({k: mean.tolist() for k, mean in means(self, task).items()}))

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        known = {int(k): torch.tensor(mean) for k, mean in json.loads(self.file.read_text()).items()}
        return super().predict(inputs) + 1e-2 * nearest_mean(self, inputs, known)


@documented
class KeepsStateInTheEnvironment(SimpleCIL):
    """Notes in an environment variable that it has learned"""

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        os.environ["FAULTY_METHOD_LEARNED"] = "yes"

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        return super().predict(inputs) * (2 if "FAULTY_METHOD_LEARNED" in os.environ else 1)


@dataclass
class Notes:
    of: dict[int, Tensor] = field(default_factory=dict)


@documented
class KeepsStateInADataclass(SimpleCIL):
    """Corrects the classes of later tasks by means in a plain object"""

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.notes = Notes()

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.notes.of.update(means(self, task) if task.index else {})

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        near = torch.stack([self.embed(inputs) @ m for m in self.notes.of.values()] or [torch.zeros(len(inputs))])
        return super().predict(inputs) + 1e-2 * near.T.sum(1, keepdim=True) * torch.arange(len(names(self)))


class CountsTasksPlainly(Finetune):
    """Fine-tuning whose loss fades with the number of tasks in a plain attribute, 2026, https://example.org/wrong

    Args:
        backbone: trained.

    >>> CountsTasksPlainly(backbones.load("tiny")).seed
    0
    """

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.learned: deque[int] = deque(maxlen=9)

    def loss(self, batch: Examples) -> Tensor:
        return super().loss(batch) / (1 + len(self.learned))

    def end_task(self, task: Task) -> None:
        self.learned.append(task.index)


class IndexesInAList(Finetune):
    """A retriever whose index is a plain list, 2026, https://example.org/wrong

    Args:
        backbone: trained.

    >>> IndexesInAList(backbones.load("tiny")).seed
    0
    """

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.known: list[str] = []

    def end_task(self, task: Task) -> None:
        self.known += task.corpus.texts[::2] if task.corpus else []

    def search(self, queries: Sequence[Input], documents: Sequence[Input], k: int = 10) -> list[list[int]]:
        found = super().search(queries, documents, len(documents))
        return [sorted(row, key=lambda i: documents[i] not in self.known)[:k] for row in found]


# -- strings' hashes ---------------------------------------------------------------------------
@documented
class RoutesByHash(SimpleCIL):
    """Lowers some scores of a text by the hash of its first word"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return scores - 0.1 * torch.tensor([[hash((str(x).split()[0], k)) % 2 for k in range(scores.shape[1])]
                                            for x in inputs])  # fmt: skip


@documented
class LearnsInTheOrderOfASet(SimpleCIL):
    """Learns the first ten of a set of texts once more"""

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        kept = set(list(set(task.train.inputs))[:10])
        rows = [row for row, item in enumerate(task.train.inputs) if item in kept]
        self.head.add(self.embed(task.train[rows].inputs), self.labels(task.train[rows]))
        self.head.solve()


# -- writes that leave the version of a tensor as it was ---------------------------------------
@documented
class WritesThroughNumpy(SimpleCIL):
    """Doubles a weight of the frozen backbone through its numpy array"""

    def end_task(self, task: Task) -> None:
        self.backbone.cls.detach().numpy()[...] *= 2
        super().end_task(task)


@documented
class WritesThroughData(SimpleCIL):
    """Adds to the weights of the frozen backbone through .data"""

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        for parameter in self.backbone.parameters():
            parameter.data.add_(1e-3)


@documented
class SwapsTheStorage(SimpleCIL):
    """Gives a parameter of the frozen backbone another storage"""

    def end_task(self, task: Task) -> None:
        with torch.no_grad():
            self.backbone.cls.set_(self.backbone.cls.clone() + 1)
        super().end_task(task)


@documented
class WritesWhilePredicting(SimpleCIL):
    """Moves the backbone's weights through numpy whenever it is asked"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        self.backbone.cls.detach().numpy()[...] += 1e-6
        return scores


@documented
class ReplacesTheForwardPass(SimpleCIL):
    """Patches the backbone, so that equal weights give other features"""

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        pool = backbone.pool
        object.__setattr__(backbone, "pool", lambda hidden: pool(hidden) * 2)


@documented
class TrainsACopy(SimpleCIL):
    """Puts a copy with other weights in the place of the frozen backbone"""

    def end_task(self, task: Task) -> None:
        import copy

        self.backbone = copy.deepcopy(self.backbone)
        with torch.no_grad():
            self.backbone.cls.add_(1)
        super().end_task(task)


class SaysThatNothingIsTrained(Finetune):
    """Says that it trains nothing, and trains a head, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        epochs: passes.
        batch_size: examples per step.
        lr: learning rate.
        seed: of the order of examples.

    >>> SaysThatNothingIsTrained(backbones.load("tiny")).seed
    0
    """

    tags = Tags(family="baseline", trains="nothing")

    def __init__(
        self, backbone: Backbone, *, epochs: int = 2, batch_size: int = 8, lr: float = 1e-2, seed: Seed = 0
    ) -> None:  # fmt: skip
        super().__init__(backbone, train="head", epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)


class SaysThatAHeadIsTrained(SequentialLoRA):
    """Says that it trains a head, and trains LoRA, 2026, https://example.org/wrong

    Args:
        backbone: frozen.
        epochs: passes.
        batch_size: examples per step.
        lr: learning rate.
        seed: of the order of examples.

    >>> SaysThatAHeadIsTrained(backbones.load("tiny")).seed
    0
    """

    tags = Tags(family="baseline", trains="head")

    def __init__(
        self, backbone: Backbone, *, epochs: int = 2, batch_size: int = 8, lr: float = 1e-2, seed: Seed = 0
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)


# -- measures ----------------------------------------------------------------------------------
@documented
class OverwritesTheScore(SimpleCIL):
    """Measures its own accuracy"""

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        return {"accuracy": 1.0}


@documented
class OverwritesTheScoreInCapitals(SimpleCIL):
    """Measures its own accuracy, in other letters"""

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        return {" Accuracy ": 1.0}


@documented
class MeasuresOtherThingsForEachTask(SimpleCIL):
    """Gives a value a new name for each task"""

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        return {f"share {task}": 1.0}


@documented
class MeasuresNoNumber(SimpleCIL):
    """Gives a tensor, which JSON cannot keep"""

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, Any]:
        return {"scores": super().predict(inputs)}


@documented
class LearnsTheTaskFromMeasures(SimpleCIL):
    """Remembers of which task its measures were told the inputs are"""

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.known: dict[Input, int] = {}

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        self.known.update(dict.fromkeys(inputs, task))
        return {}

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        tasks = torch.tensor([self.known.get(item, -1) for item in inputs])[:, None]
        return super().predict(inputs) + (torch.arange(len(names(self))) // 2 == tasks)


# -- predictions by batch ----------------------------------------------------------------------
@documented
class NormalisesLargeBatches(SimpleCIL):
    """Subtracts the mean of a batch that is large enough to have one"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return scores - scores.mean(0) if len(inputs) > 100 else scores


@documented
class DependsOnThePosition(SimpleCIL):
    """Prefers a class by the position of the example in its batch"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return scores + 0.1 * nn.functional.one_hot(torch.arange(len(inputs)) % scores.shape[1], scores.shape[1])


@documented
class CentresByTheFirstBatch(SimpleCIL):
    """Keeps the mean of the first inputs that it is asked, in a plain attribute"""

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.centre: Tensor | None = None

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        features = self.embed(inputs)
        if self.centre is None:
            self.centre = features.mean(0)
        return self.head(features - self.centre)


@documented
class WidensBatches(SimpleCIL):
    """Gives a single example one score less"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return scores[:, :-1] if len(inputs) == 1 else scores


@documented
class GivesClassesForScores(SimpleCIL):
    """Gives whole numbers: 1 for the best class"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return nn.functional.one_hot(scores.argmax(1), scores.shape[1])


@documented
class GivesNaN(SimpleCIL):
    """Gives NaN for a single example, whose standard deviation is unknown"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return scores * torch.nan if len(inputs) == 1 else scores


# -- randomness and settings of the process ----------------------------------------------------
@documented
class DrawsWithoutASeed(SimpleCIL):
    """Draws a plain vector from a new generator that has no seed"""

    def __init__(self, backbone: Backbone, *, seed: Seed = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.turn = torch.from_numpy(1 + 0.1 * np.random.default_rng().standard_normal(backbone.width)).float()

    def embed(self, inputs: Sequence[Input], role: Any = "query") -> Tensor:
        return super().embed(inputs) * self.turn


@documented
class DependsOnAddresses(SimpleCIL):
    """Lowers scores by the address of an object"""

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = super().predict(inputs)
        return scores - 0.1 * torch.tensor([id(self.task) // 16 % (k + 2) for k in range(scores.shape[1])])


@documented
class SeedsTheProcess(SimpleCIL):
    """Seeds numpy for everybody"""

    def begin_task(self, task: Task) -> None:
        np.random.seed(self.seed)
        super().begin_task(task)


@documented
class ChangesTheDefaultDtype(SimpleCIL):
    """Has the whole process compute in float64"""

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        torch.set_default_dtype(torch.float64)


@documented
class TakesAllThreads(SimpleCIL):
    """Sets the number of threads of the whole process"""

    def end_task(self, task: Task) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)
        super().end_task(task)


class ChangesTheMemoryOfOthers(ER):
    """Replaces the labels of the examples that it was given, past their being frozen, 2026,
    https://example.org/wrong

    Args:
        backbone: trained.

    >>> ChangesTheMemoryOfOthers(backbones.load("tiny")).seed
    0
    """

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        object.__setattr__(task.train, "labels", task.train.labels.flip(0))


PLANTED = "labels and ids at test decide nothing"
PLAIN = "not in the state dict"
FRESH = "resumes exactly in a fresh process"
WRONG: dict[type[Method], tuple[str, str]] = {
    FindsLabelsInTheCallersFrames: (PLANTED, "the method finds them"),
    FindsLabelsInTheMemoryOfTheProcess: (PLANTED, "the method finds them"),
    FindsIdsInTheCallersFrames: (PLANTED, "the method finds them"),
    FindsTestDataInTheCallersFrames: ("learning reads no test data", "with other test data it learns something else"),
    ReachesPastTheSeal: ("learning reads no test data", "'test'"),
    LearnsFromWhatItIsAsked: ("predict changes nothing", "changes what it learns"),
    SortsByIdsFromTheSecondTaskOn: ("ids decide nothing", "an id is a name"),
    KeepsStateInTheClassByContent: (FRESH, PLAIN),
    KeepsStateInTheModule: (FRESH, PLAIN),
    KeepsStateInAClosure: (FRESH, PLAIN),
    KeepsStateInAFile: (FRESH, "which was written while it learned"),
    KeepsStateInTheEnvironment: (FRESH, PLAIN),
    KeepsStateInADataclass: ("a checkpoint holds everything", PLAIN),
    CountsTasksPlainly: ("resumes exactly", PLAIN),
    IndexesInAList: ("a checkpoint holds everything", PLAIN),
    RoutesByHash: (FRESH, "`hash()` or the order of a set"),
    LearnsInTheOrderOfASet: (FRESH, "`hash()` or the order of a set"),
    WritesThroughNumpy: ("frozen stays frozen", "1 tensors of it moved (cls"),
    WritesThroughData: ("frozen stays frozen", "tensors of it moved"),
    SwapsTheStorage: ("frozen stays frozen", "1 tensors of it moved (cls"),
    WritesWhilePredicting: ("predict changes nothing", "changed the method's state"),
    ReplacesTheForwardPass: ("frozen stays frozen", "gives other features than before"),
    TrainsACopy: ("frozen stays frozen", "1 tensors of it moved (cls"),
    SaysThatNothingIsTrained: ("frozen stays frozen", "the tags say that nothing is trained"),
    SaysThatAHeadIsTrained: ("frozen stays frozen", "the tags say that a head is trained"),
    OverwritesTheScore: ("measures stand beside the score", "'accuracy', which would replace the score"),
    OverwritesTheScoreInCapitals: ("measures stand beside the score", "which would replace the score"),
    MeasuresOtherThingsForEachTask: ("measures stand beside the score", "the same names every time"),
    MeasuresNoNumber: ("measures stand beside the score", "give a finite number"),
    LearnsTheTaskFromMeasures: ("predict changes nothing", "asked twice, predict answers differently"),
    NormalisesLargeBatches: ("a prediction depends on its example alone", "in a large batch"),
    DependsOnThePosition: ("a prediction depends on its example alone", "in a batch of one"),
    CentresByTheFirstBatch: ("predict changes nothing", "it remembers its inputs"),
    WidensBatches: ("scores every class seen", "predict gives (1, 1), expected (1, 2)"),
    GivesClassesForScores: ("scores every class seen", "expected floating-point scores"),
    GivesNaN: ("scores every class seen", "NaN"),
    DrawsWithoutASeed: ("the same seed gives the same result", "draw from its seed"),
    DependsOnAddresses: ("the same seed gives the same result", "draw from its seed"),
    SeedsTheProcess: ("leaves the process as it was", "it seeds a generator"),
    ChangesTheDefaultDtype: ("leaves the process as it was", "the default dtype"),
    TakesAllThreads: ("leaves the process as it was", "the number of threads"),
    ChangesTheMemoryOfOthers: ("a batch is not changed", "changed the examples it was given"),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_a_hidden_fault_is_refused_for_the_promise_it_breaks(
    cls: type[Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("FAULTY_METHOD_LEARNED", raising=False)
    promise, why = WRONG[cls]
    settings = FAST if issubclass(cls, Finetune) and "Says" not in cls.__name__ else {}
    with pytest.raises(ContractError) as error:
        check_method(cls, **settings)
    message = str(error.value)
    assert message.startswith(f"{cls.__name__} breaks '{promise}': ") and why in message, message
    assert torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == 1


@pytest.mark.parametrize("cls", [OverwritesTheScore, MeasuresOtherThingsForEachTask, MeasuresNoNumber])
def test_a_run_refuses_measures_that_overwrite_the_score_or_change_their_names(cls: type[Method]) -> None:
    with pytest.raises(ContractError, match="measures gave"):
        session(cls(backbones.load("tiny")), toy_stream()).learn()


def test_every_reserved_name_is_refused() -> None:
    stream, method = toy_stream(), SimpleCIL(backbones.load("tiny"))
    learn(method, stream[0])
    for name in ("accuracy", "nDCG@10", "recall@10", "mrr@10", TOLD, 7):
        method.measures = lambda inputs, task, name=name: {name: 0.5}
        with pytest.raises(ContractError, match="would replace the score"):
            Evaluation(stream, method).others(stream[0])


@pytest.mark.parametrize("cls", [GivesClassesForScores, WidensBatches])
def test_a_run_refuses_scores_of_another_shape_or_type(cls: type[Method]) -> None:
    stream = toy_stream()
    task = replace(stream[0], examples={**stream[0].examples, "test": stream[0].test[[0]]})
    with pytest.raises(ContractError, match="predict gave"):
        session(cls(backbones.load("tiny")), replace(stream, tasks=(task,))).learn()


@pytest.mark.parametrize("ranking", [[0, 0], [-1], [99], ["d1"]])
def test_a_run_refuses_rankings_that_are_none(ranking: list) -> None:
    stream = toy_stream(goal="ranking", kind="domain-incremental")
    method = Finetune(backbones.load("tiny"), **FAST)
    method.search = lambda queries, documents, k=10: [ranking] * len(queries)
    with pytest.raises(ContractError, match="search gives"):
        session(method, stream).learn()


def test_at_test_an_image_comes_without_its_path(tmp_path: Path) -> None:
    stream = toy_stream("image", tasks=1)
    asked: list[Input] = []
    for part in ("train", "test"):
        examples = stream[0].examples[part]
        for row, (image, label) in enumerate(zip(examples.inputs, examples.labels.tolist(), strict=True)):
            (tmp_path / part / f"class-{label}").mkdir(parents=True, exist_ok=True)
            (tmp_path / part / f"class-{label}" / f"{row}.png").write_bytes(image)
    parts = {part: replace(stream[0].examples[part], inputs=sorted((tmp_path / part).rglob("*.png")))
             for part in ("train", "test")}  # fmt: skip
    labels = {part: torch.tensor([int(path.parent.name[-1]) for path in parts[part].inputs]) for part in parts}
    parts = {part: replace(examples, labels=labels[part]) for part, examples in parts.items()}
    stored = replace(stream, tasks=(replace(stream[0], examples=parts),))

    class Curious(SimpleCIL):
        def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
            asked.extend(inputs)
            return super().predict(inputs)

    result = session(Curious(backbones.load("tiny")), stored).learn()
    assert len(asked) == 12 + 6 and result.final_accuracy == 1.0  # six train examples, for calibration
    assert not any(isinstance(item, Path) or "class-" in repr(getattr(item, "__dict__", {}).keys()) + repr(item)
                   for item in asked)  # fmt: skip


def test_a_class_in_a_function_is_checked_in_a_fresh_process_where_it_can_be() -> None:
    @documented
    class Local(SimpleCIL):
        """Right"""

    @documented
    class LocalAndWrong(SimpleCIL):
        """Routes by hash"""

        def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
            return super().predict(inputs) * torch.tensor([[1 + hash(str(x)) % 2] for x in inputs])

    factor = 1.0

    @documented
    class Bound(SimpleCIL):
        """Uses a variable of the function around it"""

        def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
            return super().predict(inputs) * factor

    only = "resumes_exactly_in_a_fresh_process"
    check_method(Local, only=only)
    with pytest.raises(ContractError, match="hash"):
        check_method(LocalAndWrong, only=only)
    with pytest.warns(EverlearnWarning, match="was not checked in a fresh process: .* uses the function's factor"):
        check_method(Bound, only=only)


def test_where_nothing_can_be_forked_each_check_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "import serve; serve()", "import serve; serve.__globals__['FORKS'] = False; serve()"
    assert old in fresh.START
    monkeypatch.setattr(fresh, "START", fresh.START.replace(old, new))
    monkeypatch.setattr(fresh, "FORKS", False)
    monkeypatch.setattr(fresh, "_running", None)
    for cls, why in ((SimpleCIL, None), (RoutesByHash, "hash")):
        refusal = pytest.raises(ContractError, match=why) if why else nullcontext()
        with refusal:
            check_method(cls, only="resumes_exactly_in_a_fresh_process")
        assert fresh._running.poll() == 0  # type: ignore[union-attr]


def test_a_program_that_checks_its_own_classes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from everlearn.errors import ContractError\n"
        "from everlearn.methods.simplecil import SimpleCIL\n"
        "from everlearn.testing import check_method\n"
        "SEEN = []\n"
        "class Right(SimpleCIL):\n"
        "    pass\n"
        "class Wrong(SimpleCIL):\n"
        "    def end_task(self, task):\n"
        "        super().end_task(task)\n"
        "        SEEN.append(1)\n"
        "    def predict(self, inputs, task=None):\n"
        "        return super().predict(inputs) * (2 if SEEN else 1)\n"
        "if __name__ == '__main__':\n"
        "    check_method(Right, only='resumes_exactly_in_a_fresh_process')\n"
        "    try:\n"
        "        check_method(Wrong, only='resumes_exactly_in_a_fresh_process')\n"
        "    except ContractError as error:\n"
        "        print(error)\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit('code from the working directory')")  # nothing may import it
    command = [sys.executable, "-W", "error", str(program)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere)
    assert found.stdout.startswith("Wrong breaks 'resumes exactly in a fresh process'"), found.stderr
    assert "not in the state dict" in found.stdout and not found.stderr
