"""The contract as checks that anyone can run: ``check_method(MyMethod)``.

Every check is named as the promise that it holds a method to. They run on the tiny backbone and a
stream of three two-class tasks, in seconds.
"""

from __future__ import annotations

import copy
import doctest
import inspect
import io
import random
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch

from everlearn import backbones
from everlearn.checkpoint import method_state
from everlearn.errors import ContractError, EverlearnError
from everlearn.evaluation import Evaluation
from everlearn.features import FeatureStore, using_store
from everlearn.method import Method
from everlearn.session import Interrupted, Session
from everlearn.streams.stream import Corpus, Examples, Stream, Task

Builder = Callable[[], Method]
CHECKS: list[tuple[str, Callable[[Case], None]]] = []


class Case:
    """What a check is given: the class, how to build it, and small streams."""

    def __init__(self, cls: type[Method], settings: dict[str, Any]) -> None:
        self.cls, self.settings = cls, settings
        self.stream = toy_stream(cls.tags.modalities[0], kind=cls.tags.kinds[0])

    def build(self, **more: Any) -> Method:
        return self.cls(backbones.load("tiny"), **{**self.settings, **more})

    def learned(self, tasks: int = 3, **more: Any) -> Method:
        """A method that has learned the first tasks of the toy stream."""
        method = self.build(**more)
        stream = Stream(self.stream.name, self.stream.kind, self.stream.modality, self.stream.tasks[:tasks], {})
        session(method, stream).learn()
        return method


def check_method(cls: type[Method], *, only: str | None = None, **settings: Any) -> None:
    """Hold a method to every promise of the contract.

    Args:
        cls: the class.
        only: run this one check instead of all.
        settings: keyword arguments for the constructor, to make it small and quick.

    Raises:
        ContractError: a promise is broken; the message names it.

    >>> from everlearn.methods import SimpleCIL
    >>> check_method(SimpleCIL)
    """
    with tempfile.TemporaryDirectory() as folder, using_store(FeatureStore(folder)):
        case = Case(cls, settings)
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
    case.cls(backbones.load("tiny"))


@promise
def hyper_parameters_are_keyword_only_typed_and_plain(case: Case) -> None:
    parameters = list(inspect.signature(case.cls).parameters.values())[1:]
    hints = get_type_hints(case.cls.__init__)
    expect("seed" in [p.name for p in parameters], "the constructor has no `seed`")
    for p in parameters:
        expect(p.kind is p.KEYWORD_ONLY, f"'{p.name}' is not keyword-only")
        expect(p.name in hints, f"'{p.name}' has no type")
        plain = (bool, int, float, str, tuple, type(None))
        expect(isinstance(p.default, plain), f"the default of '{p.name}' is not a plain value")


@promise
def docstring_names_paper_year_and_link_and_its_example_runs(case: Case) -> None:
    text = inspect.getdoc(case.cls) or ""
    expect(bool(re.search(r"\b(19|20)\d\d\b", text)), "the docstring has no year")
    expect("https://" in text, "the docstring has no link")
    for p in list(inspect.signature(case.cls).parameters)[1:]:
        expect(bool(re.search(rf"^\s*(\w+, )*{p}(, \w+)*:", text, re.M)), f"the docstring does not explain '{p}'")
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
def scores_every_class_seen(case: Case) -> None:
    for tasks in (1, 3):
        method, task = case.learned(tasks), case.stream[tasks - 1]
        if task.modality == "pairs":
            expect(method.embed(task.test.inputs).dim() == 2, "embed does not give one row a text")
            continue
        shape = tuple(method.predict(task.test).shape)
        wanted = (len(task.test), len(task.class_names))
        expect(shape == wanted, f"after task {tasks} predict gives {shape}, expected {wanted}")


@promise
def predict_changes_nothing(case: Case) -> None:
    method, examples = case.learned(), case.stream[2].test
    before, random_state = snapshot(method), torch.get_rng_state()
    first = answers(method, examples)
    expect(same(before, snapshot(method)), "predict changed the method's state")
    expect(torch.equal(first, answers(method, examples)), "asked twice, predict answers differently")
    expect(torch.equal(random_state, torch.get_rng_state()), "predict drew random numbers")


@promise
def a_prediction_depends_on_its_example_alone(case: Case) -> None:
    method = case.learned()
    examples = Examples.concatenate([task.test for task in case.stream])
    together = answers(method, examples)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1))
    half = order[: len(order) // 2]
    alone = torch.cat([answers(method, examples[[row]]) for row in range(len(examples))])
    for what, expected, found in (
        ("a batch of one", together, alone),
        ("a shuffled batch", together[order], answers(method, examples[order])),
        ("half of the batch", together[half], answers(method, examples[half])),
    ):
        near = torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
        expect(near, f"the scores of an example change in {what}: they depend on the other examples")


@promise
def frozen_stays_frozen(case: Case) -> None:
    method = case.build()
    before = dict(method.backbone.digests())
    session(method, case.stream).learn()
    changed = [name for name, digest in method.backbone.digests().items() if before[name] != digest]
    if case.cls.tags.trains == "backbone":
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
            session(method, case.stream).learn()
        results.append(snapshot(method))
    expect(same(*results), "two runs with one seed differ: the method depends on global random state "
                           "(numpy, random, or torch outside the protocol); draw from its seed")  # fmt: skip


@promise
def learns_the_first_task(case: Case) -> None:
    method, task = case.learned(1), case.stream[0]
    expect(hasattr(method, "task"), "begin_task did not call super().begin_task(task)")
    if task.modality == "pairs":
        return
    right = (answers(method, task.train).argmax(1) == task.train.labels).float().mean().item()
    expect(right >= 0.75, f"it gets {right:.0%} of its own training examples right after task 1 (chance: 50%)")


@promise
def resumes_exactly(case: Case) -> None:
    whole = session(case.build(), case.stream)
    expected = whole.learn()
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
            expect(same(snapshot(whole.method), snapshot(resumed.method)),
                   f"a run stopped {where} and resumed ends in another state: something is not in the state "
                   "dict (keep it in a buffer, a parameter or a module)")  # fmt: skip
            expect(expected.accuracy_matrix == found.accuracy_matrix,
                   f"a run stopped {where} and resumed ends with other scores: something is not in the state "
                   "dict (keep it in a buffer, a parameter or a module)")  # fmt: skip


@promise
def a_copy_is_independent(case: Case) -> None:
    method = case.learned(1)
    before, examples = snapshot(method), case.stream[0].test
    answered = answers(method, examples)
    twin = copy.deepcopy(method)
    expect(torch.equal(answers(twin, examples), answered), "a copy answers differently")
    part = Stream("toy", case.stream.kind, case.stream.modality, case.stream.tasks[:2], {})
    learner = session(twin, part)
    learner.task_index = 1
    learner.rows, learner.seconds = [Evaluation(part, twin).after(part[0]) | {"before": None}], [{}]
    learner.initial = [None] * 2
    learner.learn()
    expect(same(before, snapshot(method)), "training a copy changed the original")
    expect(torch.equal(answers(method, examples), answered), "training a copy changed the original's answers")


@promise
def runs_on_every_modality_and_kind_it_claims(case: Case) -> None:
    for modality in case.cls.tags.modalities:
        kinds = ["domain-incremental"] if modality == "pairs" else case.cls.tags.kinds
        for kind in kinds:
            session(case.build(), toy_stream(modality, kind=kind, tasks=2, per_class=6)).learn()


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
        running._stopping = running.task_index == 1
        return original(*args)

    object.__setattr__(method, verb, stopping)


def answers(method: Method, examples: Examples) -> torch.Tensor:
    """What the method says of each example: scores, or embeddings where it only embeds."""
    method.eval()
    with torch.no_grad():
        scores = method.embed(examples.inputs) if len(examples.labels) == 0 else method.predict(examples)
    return scores.detach().clone().cpu()


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method_state(method).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    modality: str = "text", *, kind: str = "class-incremental", tasks: int = 3, per_class: int = 16, seed: int = 0
) -> Stream:
    """A small stream of two classes a task that a small model can learn.

    >>> [len(task.class_names) for task in toy_stream()]
    [2, 4, 6]
    """
    draw = random.Random(seed)
    by_class = kind not in ("domain-incremental",)
    built = []
    for t in range(tasks):
        labels = (2 * t, 2 * t + 1) if by_class else (0, 1)
        names = tuple(f"class {k}" for k in range(labels[-1] + 1)) if modality != "pairs" else ()
        parts = {part: _toy_examples(modality, labels, count, draw, f"{part}-{t}")
                 for part, count in (("train", per_class), ("test", 6))}  # fmt: skip
        corpus = None
        if modality == "pairs":
            test = parts["test"]
            corpus = Corpus([f"d{i}" for i in range(len(test))], [f"answer to {q!s}" for q in test.inputs])
            relevant = [{f"d{i}": 1} for i in range(len(test))]
            parts["test"] = Examples(test.inputs, torch.empty(0, dtype=torch.long), test.ids, None, relevant)
            train = parts["train"]
            positives = [f"answer to {q!s}" for q in train.inputs]
            parts["train"] = Examples(train.inputs, torch.empty(0, dtype=torch.long), train.ids, positives)
        size = 4 if kind == "online" else None
        classes = labels if modality != "pairs" else ()
        built.append(Task(t, f"task {t + 1}", classes, names, modality, size, parts, corpus))
    return Stream("toy", kind, modality, tuple(built), {"name": "toy"})


def _toy_examples(modality: str, labels: tuple[int, ...], count: int, draw: random.Random, tag: str) -> Examples:
    inputs: list[Any] = []
    truth = [label for label in labels for _ in range(count)]
    for label in truth:
        if modality == "image":
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
