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
import zlib
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
from everlearn.streams.digits import as_png
from everlearn.streams.stream import Corpus, Examples, Stream, Task


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
        case = Promises(cls, settings, backbone or partial(backbones.load, "tiny"))
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


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


class Promises(Case):
    """The promises of the contract: each method is one."""

    def builds_from_a_backbone_alone(self) -> None:
        self.cls(self.backbone())

    def hyper_parameters_are_keyword_only_typed_and_plain(self) -> None:
        parameters = list(inspect.signature(self.cls).parameters.values())[1:]
        known = arguments(self.cls)
        expect("seed" in [p.name for p in parameters], "the constructor has no `seed`")
        for p in parameters:
            expect(p.kind is p.KEYWORD_ONLY, f"'{p.name}' is not keyword-only")
            expect(known[p.name].type is not Any, f"'{p.name}' has no type")
            plain = (bool, int, float, str, tuple, type(None))
            expect(isinstance(p.default, plain), f"the default of '{p.name}' is not a plain value")

    def docstring_names_paper_year_and_link_and_its_example_runs(self) -> None:
        text = inspect.getdoc(self.cls) or ""
        expect(bool(re.search(r"\b(19|20)\d\d\b", text)), "the docstring has no year")
        expect("https://" in text, "the docstring has no link")
        for name, argument in arguments(self.cls).items():
            expect(bool(argument.help), f"the docstring does not explain '{name}'")
        module = sys.modules[self.cls.__module__]
        examples = doctest.DocTestFinder(recurse=False).find(self.cls, self.cls.__name__, module=module)
        expect(any(example.examples for example in examples), "the docstring has no example")
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        for example in examples:
            runner.run(example, out=report.write)
        expect(runner.failures == 0, f"the example in the docstring fails: {report.getvalue()[-300:]}")

    def begin_task_reads_no_data(self) -> None:
        method = self.build()
        for task in self.stream:
            method.begin_task(task.sealed())

    def learning_reads_no_test_data(self) -> None:
        self.learned(2)  # the engine hides it; whoever reaches for it fails

    def a_batch_is_not_changed(self) -> None:
        stream = copy.deepcopy(self.stream)
        before = [(list(task.train.inputs), task.train.labels.clone(), list(task.train.ids)) for task in stream]
        self.teach(self.build(), stream.tasks)
        for task, (inputs, labels, ids) in zip(stream, before, strict=True):
            unchanged = list(task.train.inputs) == inputs and list(task.train.ids) == ids
            expect(unchanged and torch.equal(task.train.labels, labels), "learning changed the examples it was given: "
                   "copy before writing")  # fmt: skip

    def predicts_from_inputs_alone(self) -> None:
        method, task = self.learned(2), self.stream[1]
        try:
            self.answers(method, task.test, task.index)
        except (AttributeError, TypeError) as error:
            raise ContractError(f"predict was given a list of inputs, and failed with {type(error).__name__}: {error}; "
                                "no label, id or document reaches it") from error  # fmt: skip

    def scores_every_class_seen(self) -> None:
        for tasks in (1, 3):
            method, task = self.learned(tasks), self.stream[tasks - 1]
            shape = tuple(self.answers(method, task.test, task.index).shape)
            if task.goal == "ranking":
                expect(len(shape) == 2, "embed does not give one row per text")
                continue
            wanted = (len(task.test), len(task.class_names))
            expect(shape == wanted, f"after task {tasks} predict gives {shape}, expected {wanted}")

    def predict_changes_nothing(self) -> None:
        method, examples = self.learned(), self.stream[2].test
        before, random_state = snapshot(method), torch.get_rng_state()
        first = self.answers(method, examples, 2)
        method.measures(examples.inputs, 2)
        expect(same(before, snapshot(method)), "predict changed the method's state")
        expect(torch.equal(first, self.answers(method, examples, 2)), "asked twice, predict answers differently")
        expect(torch.equal(random_state, torch.get_rng_state()), "predict drew random numbers")

    def a_prediction_depends_on_its_example_alone(self) -> None:
        method = self.learned()
        examples = Examples.concatenate([task.test for task in self.stream])
        together = self.answers(method, examples)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1))
        half = order[: len(order) // 2]
        alone = torch.cat([self.answers(method, examples[[row]]) for row in range(len(examples))])
        for what, expected, found in (
            ("a batch of one", together, alone),
            ("a shuffled batch", together[order], self.answers(method, examples[order])),
            ("half of the batch", together[half], self.answers(method, examples[half])),
        ):
            near = torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
            expect(near, f"the scores of an example change in {what}: they depend on the other examples")

    def frozen_stays_frozen(self) -> None:
        method = self.build()
        encoders = [module for module in method.modules() if isinstance(module, Backbone)]
        before = [dict(encoder.digests()) for encoder in encoders]
        self.teach(method, self.stream.tasks)
        changed = [name for encoder, digests in zip(encoders, before, strict=True)
                   for name, digest in encoder.digests().items() if digests[name] != digest]  # fmt: skip
        if self.cls.tags.trained_by(self.settings) == "backbone":
            expect(bool(changed), "the tags say that the backbone is trained, but no weight of it moved")
        else:
            expect(not changed, f"the tags say that the backbone is frozen, but {len(changed)} tensors of it moved "
                                f"({changed[0] if changed else ''}, …)")  # fmt: skip

    def the_same_seed_gives_the_same_result(self) -> None:
        results = []
        for ambient in (1, 2):
            with global_random_state(ambient):
                method = self.build(seed=7)
            with global_random_state(10 * ambient):
                self.teach(method, self.stream.tasks)
            results.append(snapshot(method))
        expect(same(*results), "two runs with one seed differ: the method depends on global random state (numpy, "
               "random, or torch outside the protocol), on the time or on the system; draw from its seed")  # fmt: skip

    def ids_decide_nothing(self) -> None:
        def renamed(examples: Examples) -> Examples:
            return replace(examples, ids=[f"x{zlib.crc32(name.encode())}" for name in examples.ids])

        tasks = [replace(task, examples={part: renamed(examples) for part, examples in task.examples.items()})
                 for task in self.stream]  # fmt: skip
        asked = self.stream[0].test
        one, other = self.learned(), self.teach(self.build(), tasks)
        expect(torch.equal(self.answers(one, asked), self.answers(other, asked)),
               "the records under other ids give other answers: an id is a name, and nothing may be learned "
               "from it")  # fmt: skip

    def learns_the_first_task(self) -> None:
        method, task = self.learned(1), self.stream[0]
        expect(hasattr(method, "task"), "begin_task did not call super().begin_task(task)")
        if task.goal == "ranking":
            return
        share = (self.answers(method, task.train).argmax(1) == task.train.labels).float().mean().item()
        told = f"it gets {share:.0%} of its own training examples right right after task 1 (chance: 50%)"
        expect(share >= 0.75, told)

    def two_methods_share_nothing(self) -> None:
        method, asked = self.learned(), self.stream[0].test
        before = self.answers(method, asked)
        other = toy_stream(self.stream.input, goal=self.stream.goal, kind=self.stream.kind, seed=5)
        self.teach(self.build(), other.tasks)
        expect(torch.equal(before, self.answers(method, asked)),
               "another method of the class learned, and this one answers differently: they share state (a class "
               "attribute, a default value, a module)")  # fmt: skip

    def a_checkpoint_holds_everything(self) -> None:
        method, asked = self.learned(), self.stream[0].test
        again = self.build()
        replay(again, self.stream.tasks)
        load_method_state(again, snapshot(method))
        expect(torch.equal(self.answers(method, asked), self.answers(again, asked)),
               "a method built anew from the checkpoint answers differently: something is not in the state dict (keep "
               "it in a buffer, a parameter or a module)")  # fmt: skip

    def resumes_exactly(self) -> None:
        straight = session(self.build(), self.stream)
        expected = straight.learn()
        for verb, where in (("end_task", "after a task"), ("step", "inside a task")):
            with tempfile.TemporaryDirectory() as folder:
                interrupted = session(self.build(), self.stream, Path(folder))
                stop_in_second_task(interrupted, verb)
                try:
                    interrupted.learn()
                    continue  # a method without steps is not stopped inside a task
                except Interrupted:
                    pass
                resumed = session(self.build(), self.stream, Path(folder))
                resumed.restore()
                found = resumed.learn()
            told = (f"a run stopped {where} and resumed ends {{}}: something is not in the state dict (keep it in a "
                    "buffer, a parameter or a module)")  # fmt: skip
            expect(same(snapshot(straight.method), snapshot(resumed.method)), told.format("in another state"))
            expect(expected.accuracy_matrix == found.accuracy_matrix, told.format("with other scores"))

    def a_copy_is_independent(self) -> None:
        method = self.learned(1)
        before, asked = snapshot(method), self.stream[0].test
        answered = self.answers(method, asked)
        twin = copy.deepcopy(method)
        expect(torch.equal(self.answers(twin, asked), answered), "a copy answers differently")
        self.teach(twin, self.stream.tasks[1:2])
        expect(same(before, snapshot(method)), "training a copy changed the original")
        expect(torch.equal(self.answers(method, asked), answered), "training a copy changed the original's answers")

    def runs_on_every_input_goal_and_kind_it_claims(self) -> None:
        for goal in self.cls.tags.goals:
            for kind in self.kinds if goal == "classes" else ["domain-incremental"]:
                for input in self.cls.tags.inputs if goal == "classes" else ["text"]:
                    session(self.build(), toy_stream(input, goal=goal, kind=kind, tasks=2, per_class=6)).learn()


CHECKS: list[tuple[str, Callable[[Promises], None]]] = [
    (name, check) for name, check in vars(Promises).items() if not name.startswith("_")
]


# -- tools -------------------------------------------------------------------------------------
def session(method: Method, stream: Stream, folder: Path | None = None) -> Session:
    config = {"stream": {"name": stream.name}, "method": {"name": "toy"}, "backbone": "tiny", "seed": method.seed}
    return Session(method, stream, config, folder, save_minutes=5.0, save_steps=None, progress=False)


def stop_in_second_task(running: Session, verb: str) -> None:
    """Have a session asked to stop inside its second task: when its method's `verb`, step or end_task, is called."""
    original = getattr(running.method, verb)

    def stopping(*args: Any) -> Any:
        running.stop.asked = running.task_index == 1
        return original(*args)

    object.__setattr__(running.method, verb, stopping)


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in method_state(method).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    # NaN stands for what is unknown, as in a memory's columns, and is the same as NaN.
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(7.7), b[k].nan_to_num(7.7)) for k in a)


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
    built = []
    for t in range(tasks):
        labels: tuple[int, ...] = (0, 1) if kind == "domain-incremental" else (2 * t, 2 * t + 1)
        names = tuple(f"class {k}" for k in range(labels[-1] + 1))
        parts = {part: _toy_examples(input, labels, count, draw, f"{part}-{t}")
                 for part, count in (("train", per_class), ("test", 6))}  # fmt: skip
        corpus = None
        if goal == "ranking":
            labels, names, none = (), (), torch.empty(0, dtype=torch.long)
            train, test = parts["train"], parts["test"]
            corpus = Corpus([f"d{i}" for i in range(len(test))], [f"answer to {q!s}" for q in test.inputs])
            parts = {"train": replace(train, labels=none, positives=[f"answer to {q!s}" for q in train.inputs]),
                     "test": replace(test, labels=none, relevant=[{id: 1} for id in corpus.ids])}  # fmt: skip
        size = 4 if kind == "online" else None
        built.append(Task(t, f"task {t + 1}", labels, names, input, goal, size, examples=parts, corpus=corpus))
    return Stream("toy", kind, tuple(built), {"name": "toy"})


def _toy_examples(kind: str, labels: tuple[int, ...], count: int, draw: random.Random, tag: str) -> Examples:
    make: Callable[[int, random.Random], Any] = _toy_image if kind == "image" else _toy_text
    truth = [label for label in labels for _ in range(count)]
    inputs = [make(label, draw) for label in truth]
    return Examples(inputs, torch.tensor(truth), [f"{tag}-{row}" for row in range(len(truth))])


def _toy_text(label: int, draw: random.Random) -> str:
    own = [f"word{label}x{draw.randrange(3)}" for _ in range(3)]
    return " ".join([*own, f"noise{draw.randrange(20)}"])


def _toy_image(label: int, draw: random.Random) -> bytes:
    pixels = np.zeros((16, 16), np.uint8)
    across, down = divmod(label, 4)
    pixels[4 * down : 4 * down + 4, 4 * across : 4 * across + 6] = 200
    noise = np.array([[draw.randrange(40) for _ in range(16)] for _ in range(16)], np.uint8)
    return as_png(pixels + noise)
