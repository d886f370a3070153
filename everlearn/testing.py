"""`check_method` holds any method to every promise of the contract, on the tiny backbone and toy streams."""

from __future__ import annotations

import copy
import doctest
import inspect
import io
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn import backbones
from everlearn.backbones.backbone import Backbone
from everlearn.checkpoint import load_method_state, method_state
from everlearn.config import arguments
from everlearn.engine import learn, replay
from everlearn.errors import ContractError, EverlearnError
from everlearn.features import FeatureStore, using_store
from everlearn.interrupts import Interrupted
from everlearn.method import Method
from everlearn.session import Session
from everlearn.streams.stream import Corpus, Examples, Stream, Task

CHECKS: list[tuple[str, Callable[[Case], None]]] = []


class Case:
    """What a check is given: the class, how to build it, and small streams."""

    def __init__(self, cls: type[Method], settings: dict[str, Any], backbone: Callable[[], Backbone]) -> None:
        self.cls, self.settings, self.backbone = cls, settings, backbone
        self.stream = toy_stream(cls.tags.inputs[0], goal=cls.tags.goals[0], kind=self.kinds[0])

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds of stream that it can learn; one that needs the task at test needs to be told it."""
        tags = self.cls.tags
        return tags.kinds if tags.task_at_test != "needed" else [k for k in tags.kinds if k == "task-incremental"]

    def build(self, **more: Any) -> Method:
        return self.cls(self.backbone(), **{**self.settings, **more})

    def learned(self, tasks: int = 3, **more: Any) -> Method:
        """A method that has learned the first tasks of the toy stream."""
        return self.teach(self.build(**more), self.stream.tasks[:tasks])

    def teach(self, method: Method, tasks: Sequence[Task]) -> Method:
        for task in tasks:
            learn(method, task)
        return method

    def answers(self, method: Method, examples: Examples, task: int = 0) -> torch.Tensor:
        """What the method says of each example: scores, or embeddings where it ranks."""
        method.eval()
        with torch.no_grad():
            if self.cls.tags.goals[0] == "ranking":
                return method.embed(examples.inputs).detach().clone().cpu()
            told = {"task": task} if self.cls.tags.task_at_test == "needed" else {}
            return method.predict(list(examples.inputs), **told).detach().clone().cpu()


def check_method(
    cls: type[Method], *, only: str | None = None, backbone: Callable[[], Backbone] | None = None, **settings: Any
) -> None:
    """Hold a method to every promise of the contract.

    Args:
        cls: the class.
        only: run this one check instead of all.
        backbone: gives a new backbone with each call; by default the tiny one.
        settings: keyword arguments for the constructor, to make it small and quick.

    Raises:
        ContractError: a promise is broken; the message names it.

    >>> from everlearn.methods import SimpleCIL
    >>> check_method(SimpleCIL)
    """
    with tempfile.TemporaryDirectory() as folder, using_store(FeatureStore(folder)):
        case = Case(cls, settings, backbone or partial(backbones.load, "tiny"))
        for name, check in CHECKS:
            if only not in (None, name):
                continue
            try:
                check(case)
            except Exception as error:
                if isinstance(error, ContractError) and str(error).startswith(cls.__name__):
                    raise
                reason = f"{type(error).__name__}: {error}" if not isinstance(error, EverlearnError) else str(error)
                raise ContractError(f"{cls.__name__} breaks '{name.replace('_', ' ')}': {reason}") from error


def promise(check: Callable[[Case], None]) -> Callable[[Case], None]:
    CHECKS.append((check.__name__, check))
    return check


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


# -- the promises ------------------------------------------------------------------------------
@promise
def builds_from_a_backbone_alone(case: Case) -> None:
    case.cls(case.backbone())


@promise
def hyper_parameters_are_keyword_only_typed_and_plain(case: Case) -> None:
    parameters = list(inspect.signature(case.cls).parameters.values())[1:]
    known = arguments(case.cls)
    expect("seed" in [p.name for p in parameters], "the constructor has no `seed`")
    for p in parameters:
        expect(p.kind is p.KEYWORD_ONLY, f"'{p.name}' is not keyword-only")
        expect(known[p.name].type is not Any, f"'{p.name}' has no type")
        plain = (bool, int, float, str, tuple, type(None))
        expect(isinstance(p.default, plain), f"the default of '{p.name}' is not a plain value")


@promise
def docstring_names_paper_year_and_link_and_its_example_runs(case: Case) -> None:
    text = inspect.getdoc(case.cls) or ""
    expect(bool(re.search(r"\b(19|20)\d\d\b", text)), "the docstring has no year")
    expect("https://" in text, "the docstring has no link")
    for name, argument in arguments(case.cls).items():
        expect(bool(argument.help), f"the docstring does not explain '{name}'")
    module = sys.modules[case.cls.__module__]
    examples = doctest.DocTestFinder(recurse=False).find(case.cls, case.cls.__name__, module=module)
    expect(any(example.examples for example in examples), "the docstring has no example")
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in examples:
        runner.run(example, out=report.write)
    expect(runner.failures == 0, f"the example in the docstring fails: {report.getvalue()[-300:]}")


@promise
def begin_task_reads_no_data(case: Case) -> None:
    method = case.build()
    for task in case.stream:
        method.begin_task(task.sealed())


@promise
def learning_reads_no_test_data(case: Case) -> None:
    case.learned(2)  # the engine hides it; whoever reaches for it fails


@promise
def a_batch_is_not_changed(case: Case) -> None:
    stream = copy.deepcopy(case.stream)
    before = [(list(task.train.inputs), task.train.labels.clone(), list(task.train.ids)) for task in stream]
    case.teach(case.build(), stream.tasks)
    for task, (inputs, labels, ids) in zip(stream, before, strict=True):
        unchanged = list(task.train.inputs) == inputs and list(task.train.ids) == ids
        expect(unchanged and torch.equal(task.train.labels, labels), "learning changed the examples it was given: "
               "copy before writing")  # fmt: skip


@promise
def predicts_from_inputs_alone(case: Case) -> None:
    method, task = case.learned(2), case.stream[1]
    try:
        case.answers(method, task.test, task.index)
    except (AttributeError, TypeError) as error:
        raise ContractError(f"predict was given a list of inputs, and failed with {type(error).__name__}: {error}; "
                            "no label, id or document reaches it") from error  # fmt: skip


@promise
def scores_every_class_seen(case: Case) -> None:
    for tasks in (1, 3):
        method, task = case.learned(tasks), case.stream[tasks - 1]
        shape = tuple(case.answers(method, task.test, task.index).shape)
        if task.goal == "ranking":
            expect(len(shape) == 2, "embed does not give one row per text")
            continue
        wanted = (len(task.test), len(task.class_names))
        expect(shape == wanted, f"after task {tasks} predict gives {shape}, expected {wanted}")


@promise
def predict_changes_nothing(case: Case) -> None:
    method, examples = case.learned(), case.stream[2].test
    before, random_state = snapshot(method), torch.get_rng_state()
    first = case.answers(method, examples, 2)
    method.measures(examples.inputs, 2)
    expect(same(before, snapshot(method)), "predict changed the method's state")
    expect(torch.equal(first, case.answers(method, examples, 2)), "asked twice, predict answers differently")
    expect(torch.equal(random_state, torch.get_rng_state()), "predict drew random numbers")


@promise
def a_prediction_depends_on_its_example_alone(case: Case) -> None:
    method = case.learned()
    examples = Examples.concatenate([task.test for task in case.stream])
    together = case.answers(method, examples)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1))
    half = order[: len(order) // 2]
    alone = torch.cat([case.answers(method, examples[[row]]) for row in range(len(examples))])
    for what, expected, found in (
        ("a batch of one", together, alone),
        ("a shuffled batch", together[order], case.answers(method, examples[order])),
        ("half of the batch", together[half], case.answers(method, examples[half])),
    ):
        near = torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
        expect(near, f"the scores of an example change in {what}: they depend on the other examples")


@promise
def frozen_stays_frozen(case: Case) -> None:
    method = case.build()
    encoders = [module for module in method.modules() if isinstance(module, Backbone)]
    before = [dict(encoder.digests()) for encoder in encoders]
    case.teach(method, case.stream.tasks)
    changed = [name for encoder, digests in zip(encoders, before, strict=True)
               for name, digest in encoder.digests().items() if digests[name] != digest]  # fmt: skip
    if case.cls.tags.trained_by(case.settings) == "backbone":
        expect(bool(changed), "the tags say that the backbone is trained, but no weight of it moved")
    else:
        expect(not changed, f"the tags say that the backbone is frozen, but {len(changed)} tensors of it moved "
                            f"({changed[0] if changed else ''}, …)")  # fmt: skip


@promise
def the_same_seed_gives_the_same_result(case: Case) -> None:
    results = []
    for ambient in (1, 2):
        with global_random_state(ambient):
            method = case.build(seed=7)
        with global_random_state(10 * ambient):
            case.teach(method, case.stream.tasks)
        results.append(snapshot(method))
    expect(same(*results), "two runs with one seed differ: the method depends on global random state "
                           "(numpy, random, or torch outside the protocol), on the time or on the system; draw from "
                           "its seed")  # fmt: skip


@promise
def ids_decide_nothing(case: Case) -> None:
    renamed = [replace(task, examples={part: replace(examples, ids=[f"x{hash_of(name)}" for name in examples.ids])
                                       for part, examples in task.examples.items()})
               for task in case.stream]  # fmt: skip
    asked = case.stream[0].test
    one, other = case.learned(), case.teach(case.build(), renamed)
    expect(torch.equal(case.answers(one, asked), case.answers(other, asked)),
           "the records under other ids give other answers: an id is a name, and nothing may be learned from it")


@promise
def learns_the_first_task(case: Case) -> None:
    method, task = case.learned(1), case.stream[0]
    expect(hasattr(method, "task"), "begin_task did not call super().begin_task(task)")
    if task.goal == "ranking":
        return
    right = (case.answers(method, task.train).argmax(1) == task.train.labels).float().mean().item()
    expect(right >= 0.75, f"it gets {right:.0%} of its own training examples right right after task 1 (chance: 50%)")


@promise
def two_methods_share_nothing(case: Case) -> None:
    method, asked = case.learned(), case.stream[0].test
    before = case.answers(method, asked)
    case.teach(case.build(), toy_stream(case.stream.input, goal=case.stream.goal, kind=case.stream.kind, seed=5).tasks)
    expect(torch.equal(before, case.answers(method, asked)),
           "another method of the class learned, and this one answers differently: they share state (a class "
           "attribute, a default value, a module)")  # fmt: skip


@promise
def a_checkpoint_holds_everything(case: Case) -> None:
    method, asked = case.learned(), case.stream[0].test
    again = case.build()
    replay(again, case.stream.tasks)
    load_method_state(again, snapshot(method))
    expect(torch.equal(case.answers(method, asked), case.answers(again, asked)),
           "a method built anew from the checkpoint answers differently: something is not in the state dict (keep it "
           "in a buffer, a parameter or a module)")  # fmt: skip


@promise
def resumes_exactly(case: Case) -> None:
    straight = session(case.build(), case.stream)
    expected = straight.learn()
    for stop in ("boundary", "step"):
        with tempfile.TemporaryDirectory() as folder:
            interrupted = session(case.build(), case.stream, Path(folder))
            stop_in_second_task(interrupted, stop)
            try:
                interrupted.learn()
                continue  # a method without steps is not stopped inside a task
            except Interrupted:
                pass
            resumed = session(case.build(), case.stream, Path(folder))
            resumed.restore()
            found = resumed.learn()
            where = "after a task" if stop == "boundary" else "inside a task"
            equal = same(snapshot(straight.method), snapshot(resumed.method))
            for what, holds in (("in another state", equal),
                                ("with other scores", expected.accuracy_matrix == found.accuracy_matrix)):  # fmt: skip
                expect(holds, f"a run stopped {where} and resumed ends {what}: something is not in the state "
                              "dict (keep it in a buffer, a parameter or a module)")  # fmt: skip


@promise
def a_copy_is_independent(case: Case) -> None:
    method = case.learned(1)
    before, asked = snapshot(method), case.stream[0].test
    answered = case.answers(method, asked)
    twin = copy.deepcopy(method)
    expect(torch.equal(case.answers(twin, asked), answered), "a copy answers differently")
    case.teach(twin, case.stream.tasks[1:2])
    expect(same(before, snapshot(method)), "training a copy changed the original")
    expect(torch.equal(case.answers(method, asked), answered), "training a copy changed the original's answers")


@promise
def runs_on_every_input_goal_and_kind_it_claims(case: Case) -> None:
    for goal in case.cls.tags.goals:
        for kind in case.kinds if goal == "classes" else ["domain-incremental"]:
            for input in case.cls.tags.inputs if goal == "classes" else ["text"]:
                session(case.build(), toy_stream(input, goal=goal, kind=kind, tasks=2, per_class=6)).learn()


# -- tools -------------------------------------------------------------------------------------
def session(method: Method, stream: Stream, folder: Path | None = None) -> Session:
    config = {"stream": {"name": stream.name}, "method": {"name": "toy"}, "backbone": "tiny", "seed": method.seed}
    return Session(method, stream, config, folder, save_minutes=5.0, save_steps=None, progress=False)


def stop_in_second_task(running: Session, where: str) -> None:
    """Have a session asked to stop inside its second task, after its first step or at its end."""
    method = running.method
    verb = "end_task" if where == "boundary" else "step"
    original = getattr(method, verb)

    def stopping(*args: Any) -> Any:
        running.stop.asked = running.task_index == 1
        return original(*args)

    object.__setattr__(method, verb, stopping)


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method_state(method).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    # NaN stands for what is unknown, as in a memory's columns, and is the same as NaN.
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(7.7), b[k].nan_to_num(7.7)) for k in a)


def hash_of(name: str) -> int:
    return random.Random(name).randrange(10**9)


@contextmanager
def global_random_state(seed: int) -> Any:
    """Set every global generator inside the block; as they were afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def toy_stream(
    input: str = "text", *, goal: str = "classes", kind: str = "class-incremental", tasks: int = 3,
    per_class: int = 16, seed: int = 0,
) -> Stream:  # fmt: skip
    """A small stream of two classes per task that a small model can learn.

    >>> [len(task.class_names) for task in toy_stream()]
    [2, 4, 6]
    """
    draw = random.Random(seed)
    by_class = kind not in ("domain-incremental",)
    built = []
    for t in range(tasks):
        labels = (2 * t, 2 * t + 1) if by_class else (0, 1)
        parts = {part: _toy_examples(input, labels, count, draw, f"{part}-{t}")
                 for part, count in (("train", per_class), ("test", 6))}  # fmt: skip
        size = 4 if kind == "online" else None
        if goal == "ranking":
            none, train, test = torch.empty(0, dtype=torch.long), parts["train"], parts["test"]
            corpus = Corpus([f"d{i}" for i in range(len(test))], [f"answer to {q!s}" for q in test.inputs])
            positives = [f"answer to {q!s}" for q in train.inputs]
            parts = {"train": replace(train, labels=none, positives=positives),
                     "test": replace(test, labels=none, relevant=[{f"d{i}": 1} for i in range(len(test))])}  # fmt: skip
            built.append(Task(t, f"task {t + 1}", (), (), input, goal, size, examples=parts, corpus=corpus))
        else:
            names = tuple(f"class {k}" for k in range(labels[-1] + 1))
            built.append(Task(t, f"task {t + 1}", labels, names, input, goal, size, examples=parts))
    return Stream("toy", kind, tuple(built), {"name": "toy"})


def _toy_examples(kind: str, labels: tuple[int, ...], count: int, draw: random.Random, tag: str) -> Examples:
    inputs: list[Any] = []
    truth = [label for label in labels for _ in range(count)]
    for label in truth:
        if kind == "image":
            inputs.append(_toy_image(label, draw))
        else:
            own = [f"word{label}x{draw.randrange(3)}" for _ in range(3)]
            inputs.append(" ".join([*own, f"noise{draw.randrange(20)}"]))
    return Examples(inputs, torch.tensor(truth), [f"{tag}-{row}" for row in range(len(truth))])


def _toy_image(label: int, draw: random.Random) -> bytes:
    from PIL import Image

    pixels = np.zeros((16, 16), np.uint8)
    across, down = divmod(label, 4)
    pixels[4 * down : 4 * down + 4, 4 * across : 4 * across + 6] = 200
    noise = np.array([[draw.randrange(40) for _ in range(16)] for _ in range(16)], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels + noise).save(buffer, "PNG")
    return buffer.getvalue()
