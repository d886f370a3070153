"""`check_method` holds any method to every promise of the contract, on the tiny backbone and toy streams."""

from __future__ import annotations

import copy
import doctest
import inspect
import io
import json
import random
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from everlearn import backbones
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.digests import digest
from everlearn.config import arguments
from everlearn.engine import learn
from everlearn.errors import ContractError, EverlearnError, unknown
from everlearn.evaluation import Evaluation
from everlearn.features import FeatureStore, using_store
from everlearn.method import Method
from everlearn.methods import is_own
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Corpus, Examples, Stream, Task
from everlearn.testing import fresh
from everlearn.testing.case import (
    PROCESS,
    ask,
    ask_all,
    expect,
    global_random_state,
    near,
    process_settings,
    same,
    snapshot,
    tests_of,
)  # fmt: skip
from everlearn.testing.resuming import Resuming
from everlearn.testing.toy import tiny_pair

LARGE = 1024  # as many inputs as an evaluation hands to predict at once


def check_method(
    cls: type[Method], *, only: str | None = None, backbone: Callable[[], Backbone] | None = None, **settings: Any
) -> None:
    """Hold a method to every promise of the contract.

    One of the promises is checked in a fresh Python process, which imports the file of the class. A program that
    calls this function does so under ``if __name__ == "__main__":``, as for multiprocessing.

    Args:
        cls: the class.
        only: run this one check instead of all.
        backbone: gives a new backbone with each call; by default the tiny one, or a pair of tiny ones where the tags
            say that the method needs two towers.
        settings: keyword arguments for the constructor, to make it small and quick.

    Raises:
        ContractError: a promise is broken; the message names it.
        EverlearnError: there is no check called `only`.

    Warns:
        EverlearnWarning: the class cannot be built in another process (it is defined in an interactive session, say),
            so that its promise there was not checked.

    >>> from everlearn.methods import SimpleCIL
    >>> check_method(SimpleCIL)
    >>> check_method(SimpleCIL, only="predict_changes_nothing") is None
    True
    """
    if only is not None and only not in dict(CHECKS):
        raise unknown("check", only, dict(CHECKS))
    if fresh.is_fresh:
        raise EverlearnError("check_method is called while its file is imported: call it in a test, or under "
                             "if __name__ == '__main__'")  # fmt: skip
    with process_settings() as before, tempfile.TemporaryDirectory() as folder, using_store(FeatureStore(folder)):
        usual = tiny_pair if "two towers" in cls.tags.needs else partial(backbones.load, "tiny")
        case = Promises(cls, settings, backbone or usual, before)
        checks = [(name, check) for name, check in CHECKS if only in (None, name)]
        if only in (None, Promises.resumes_exactly_in_a_fresh_process.__name__):
            case._start_fresh_process()
        for name, check in checks:
            try:
                check(case)
            except Exception as error:
                reason = str(error) if isinstance(error, EverlearnError) else f"{type(error).__name__}: {error}"
                raise ContractError(f"{cls.__name__} breaks '{name.replace('_', ' ')}': {reason}") from error


class Promises(Resuming):
    """The promises of the contract: each method is one, except those that begin with an underscore. These are about
    what a method is, how it learns and how it answers; those about its state come after them.

    Args:
        before: the settings of the process before the method was built.
    """

    def __init__(
        self, cls: type[Method], settings: dict[str, Any], backbone: Callable[[], Backbone], before: dict[str, Any]
    ) -> None:
        super().__init__(cls, settings, backbone)
        self._process_before = before
        untouched = backbone()
        self._weights, self._features = _digests(untouched), untouched.infer(self._asked[0])

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

    def docstring_explains_the_settings_and_its_example_runs(self) -> None:
        text = inspect.getdoc(self.cls) or ""
        if is_own(self.cls):  # what everlearn offers under the name of a paper says which; a method of yours need not
            expect(bool(re.search(r"\b(19|20)\d\d\b", text)), "the docstring has no year")
            expect("https://" in text, "the docstring has no link")
            expect(">>> " in text, "the docstring has no example")
        for name, argument in arguments(self.cls).items():
            expect(bool(argument.help), f"the docstring does not explain '{name}'")
        module = sys.modules[self.cls.__module__]
        examples = doctest.DocTestFinder(recurse=False).find(self.cls, self.cls.__name__, module=module)
        report = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        for example in examples:
            runner.run(example, out=report.write)
        expect(runner.failures == 0, f"the example in the docstring fails: {report.getvalue()[-300:]}")

    def leaves_the_process_as_it_was(self) -> None:
        generators = []
        for ambient in (1, 2):
            with global_random_state(ambient):
                with suppress(Exception):  # what fails here fails in the check of another promise
                    ask_all(self.learned(1), self._asked[:1])
                generators.append([random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()])
        for name, (read, _) in PROCESS.items():
            found, before = read(), self._process_before[name]
            expect(found == before, f"it changes {name} for everything that runs in the process ({before} before, "
                                    f"{found} now)")  # fmt: skip
        expect(not any(one == two for one, two in zip(*generators, strict=True)), "it seeds a generator that the whole "
               "process shares (of `random`, `numpy.random` or torch): use everlearn.seeds.seeded, or a generator of "
               "its own")  # fmt: skip

    def begin_task_reads_no_data(self) -> None:
        method = self.build()
        for task in self.stream:
            method.begin_task(task.sealed())

    def learning_reads_no_test_data(self) -> None:
        for goal in self.cls.tags.goals:
            other = [replace(task, examples={**task.examples, "test": unlike.test})
                     for task, unlike in zip(self.toy(goal), self.toy(goal, seed=3), strict=True)]  # fmt: skip
            one = snapshot(self.learned(2, self.toy(goal)))  # the engine hides it; whoever reaches for it fails
            if not same(one, snapshot(self.teach(self.build(), other[:2]))):
                # Whoever learns the same data differently as well breaks another promise.
                expect(not same(one, snapshot(self.learned(2, self.toy(goal)))), "with other test data it learns "
                       "something else: it finds test data, though what it is given holds none")  # fmt: skip

    def a_batch_is_not_changed(self) -> None:
        for stream in self.streams:
            given = copy.deepcopy(stream)
            self.teach(self.build(), given.tasks)
            ids = [[list(getattr(task, part).ids) for task in s for part in ("train", "test")] for s in (stream, given)]
            expect(stream.fingerprint() == given.fingerprint() and ids[0] == ids[1],
                   "learning changed the examples it was given: copy before writing")  # fmt: skip

    def predicts_from_inputs_alone(self) -> None:
        method = self.learned(2)
        try:
            ask(method, self._asked[1], 1)
        except (AttributeError, TypeError) as error:
            raise ContractError(f"predict was given a list of inputs, and failed with {type(error).__name__}: {error}; "
                                "no label, id or document reaches it") from error  # fmt: skip

    def scores_every_class_seen(self) -> None:
        for tasks in (1, len(self.stream)):
            method, task = self.learned(tasks), self.stream[tasks - 1]
            for inputs in (list(task.test.inputs), list(task.test.inputs[:1])):
                scores = ask(method, inputs, task.index)
                if task.goal == "ranking":
                    expect(scores.dim() == 2 and len(scores) == len(inputs), "embed does not give one row per text")
                    continue
                shape, wanted = tuple(scores.shape), (len(inputs), len(task.class_names))
                expect(shape == wanted, f"after task {tasks} predict gives {shape}, expected {wanted}")
                expect(scores.is_floating_point(), f"predict gives {scores.dtype}, expected floating-point scores")
                expect(not scores.isnan().any(), "predict gives scores that are NaN")

    def labels_and_ids_at_test_decide_nothing(self) -> None:
        for goal in self.cls.tags.goals:
            method, asked = self.learned(stream=self.toy(goal)), tests_of(self.toy(goal, seed=9))
            planted = tuple(self._planted(method, inputs, index) for index, inputs in enumerate(asked))
            stream = Stream("toy", self.kinds[0] if goal == "classes" else "domain-incremental", planted)
            evaluation = Evaluation(stream, method)
            found = [evaluation.score(task)[evaluation.metric] for task in stream]
            expect(not any(found), "wrong labels and other ids that were planted beside the test inputs change the "
                   "answers: the method finds them, though it is given inputs alone")  # fmt: skip

    def _planted(self, method: Method, inputs: list[Input], index: int) -> Task:
        """A task with these test inputs, whose labels are all unlike what the method answers when it is asked where
        there are none."""
        task = replace(self.stream[index], class_names=self.stream.class_names, examples={}, corpus=None)
        ids = [f"{index}-{row}" for row in range(len(inputs))]
        if method.task.goal == "ranking":
            texts = [f"answer to {text!s}" for text in inputs]
            corpus = Corpus([f"d{99 - row}" for row in range(len(texts))], texts)
            with torch.no_grad():
                ranked = method.search(list(inputs), texts)
            left = [next(row for row in range(len(texts)) if row not in found) for found in ranked]
            test = Examples(inputs, torch.empty(0, dtype=torch.long), ids, relevant=[{corpus.ids[i]: 1} for i in left])
            return replace(task, goal="ranking", examples={"test": test}, corpus=corpus)
        known = self.kinds[0] == "task-incremental"  # the stream tells the task
        among = torch.tensor(task.classes if known else range(len(task.class_names)))
        told = {"task": index} if known and method.tags.task_at_test != "ignored" else {}
        with torch.no_grad():
            answered = method.predict(list(inputs), **told).cpu()[:, among].argmax(1)
        return replace(task, examples={"test": Examples(inputs, among[(answered + 1) % len(among)], ids)})

    def the_same_seed_gives_the_same_result(self) -> None:
        results = []
        for ambient in (1, 2):
            with global_random_state(ambient):
                method = self.build(seed=7)
            with global_random_state(10 * ambient):
                self.teach(method, self.stream.tasks)
            results.append((snapshot(method), ask_all(method, self._asked)))
        expect(all(same(*pair) for pair in zip(*results, strict=True)),
               "two runs with one seed differ: the method depends on global random state (numpy, random, or torch "
               "outside the protocol), on the time or on the system; draw from its seed")  # fmt: skip

    def predict_changes_nothing(self) -> None:
        for stream in self.streams:
            method, last, inputs = self.learned(stream=stream), len(stream) - 1, list(stream[-1].test.inputs)
            before, random_state, twin = snapshot(method), torch.get_rng_state(), copy.deepcopy(method)
            first = ask(method, inputs, last)
            with torch.no_grad():
                method.measures(inputs, last)
            expect(same(before, snapshot(method)), "predict changed the method's state")
            expect(torch.equal(first, ask(method, inputs, last)), "asked twice, predict answers differently")
            expect(torch.equal(random_state, torch.get_rng_state()), "predict drew random numbers")
            self._ask_everything(twin, stream)
            expect(near(first, ask(twin, inputs, last)), "what it was asked before changes what predict answers: it "
                   "remembers its inputs")  # fmt: skip
            asked_between = self.build()
            for task in stream:
                learn(asked_between, task)
                self._ask_everything(asked_between, stream.tasks[: task.index + 1])
            expect(same(before, snapshot(asked_between)), "what it was asked between two tasks changes what it learns: "
                   "it remembers its inputs, which are test data")  # fmt: skip

    def _ask_everything(self, method: Method, tasks: Stream | Sequence[Task]) -> None:
        """Ask about other inputs, and measure each task's as if they were of another one."""
        for task in tasks:
            inputs = list(task.test.inputs)[::-1]
            ask(method, inputs[: len(inputs) // 2], task.index)
            with torch.no_grad():
                method.measures(inputs, len(list(tasks)) - 1 - task.index)

    def a_prediction_depends_on_its_example_alone(self) -> None:
        for stream in self.streams:
            method, inputs = self.learned(stream=stream), [item for asked in tests_of(stream) for item in asked]
            together = ask(method, inputs)
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(1)).tolist()
            half, many = order[: len(order) // 2], [row % len(inputs) for row in range(LARGE)]
            alone = torch.cat([ask(method, [item]) for item in inputs])
            expect(near(together, alone), self._OTHERS.format("a batch of one"))
            for what, rows in (("a shuffled batch", order), ("half of the batch", half), ("a large batch", many)):
                found = ask(method, [inputs[row] for row in rows])
                expect(near(together[rows], found), self._OTHERS.format(what))

    _OTHERS = "the scores of an example change in {}: they depend on the other examples"

    def measures_stand_beside_the_score(self) -> None:
        for stream in self.streams:
            method = self.learned(stream=stream)
            before, evaluation = snapshot(method), Evaluation(stream, method)
            with torch.no_grad():
                first, again = ([evaluation.others(task) for task in stream] for _ in range(2))
            expect(first == again, "asked twice, measures gives other values")
            expect(same(before, snapshot(method)), "measures changed the method's state")
            try:
                json.dumps(method.diagnostics(), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ContractError(f"diagnostics gives what JSON cannot keep: {error}") from error

    def frozen_stays_frozen(self) -> None:
        backbone = self.backbone()
        before = _digests(backbone)
        method = self.cls(backbone, **self.settings)
        trained = sum(learn(method, task).trainable for task in self.stream)
        claimed, changed = self.cls.tags.trained_by(self.settings), _changed(before, _digests(backbone))
        if claimed == "nothing":
            expect(not trained, f"the tags say that nothing is trained, but {trained:,} parameters received gradient")
        if claimed == "head":
            deltas = [delta for encoder in backbone.encoders() for delta in encoder.attached]
            expect(not any(p.requires_grad for delta in deltas for p in delta.parameters()),
                   "the tags say that a head is trained, but parameters inside the backbone are trained")  # fmt: skip
        copies = [module for module in method.modules() if isinstance(module, Backbone)]
        moved = changed or [name for copied in copies for name in _changed(before, _digests(copied), partly=True)]
        if claimed == "backbone" and not self.cls.tags.own_weights:
            expect(bool(moved), "the tags say that the backbone is trained, but no weight of it moved")
            return
        expect(not moved, f"the tags say that the backbone is frozen, but {len(moved)} tensors of it moved "
                          f"({moved[0] if moved else ''}, …)")  # fmt: skip
        for encoder in (method.backbone, self.backbone()) if before == self._weights else ():
            with encoder.pretrained():
                found = encoder.infer(self._asked[0])
            expect(near(self._features, found), "the frozen backbone gives other features than before, though its "
                   "weights are the same: attach what changes it with backbone.attach, so that the feature store "
                   "knows it")  # fmt: skip

    def ids_decide_nothing(self) -> None:
        def renamed(examples: Examples) -> Examples:
            return replace(examples, ids=[f"x{zlib.crc32(name.encode())}" for name in examples.ids])

        for stream in self.streams:
            tasks = [replace(task, examples={part: renamed(examples) for part, examples in task.examples.items()})
                     for task in stream]  # fmt: skip
            one, other = self.learned(stream=stream), self.teach(self.build(), tasks)
            expect(same(self._told(one, stream), self._told(other, stream)),
                   "the records under other ids give other answers: an id is a name, and nothing may be learned "
                   "from it")  # fmt: skip

    def learns_the_first_task(self) -> None:
        method, task = self.learned(1), self.stream[0]
        expect(hasattr(method, "task"), "begin_task did not call super().begin_task(task)")
        if task.goal == "ranking":
            return
        share = (ask(method, task.train.inputs).argmax(1) == task.train.labels).float().mean().item()
        told = f"it gets {share:.0%} of its own training examples right right after task 1 (chance: 50%)"
        expect(share >= 0.75, told)


CHECKS: list[tuple[str, Callable[[Promises], None]]] = [
    (name, check) for cls in (Promises, Resuming) for name, check in vars(cls).items() if not name.startswith("_")
]


def _digests(backbone: Backbone) -> dict[str, str]:
    """SHA-256 of every tensor by name, hashed now: what is written through `.data` or numpy has its old version."""
    return {name: digest(tensor) for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]}


def _changed(before: dict[str, str], after: dict[str, str], partly: bool = False) -> list[str]:
    """The names whose digests differ; `partly`: of a backbone that may be one of several towers."""
    names = before.keys() & after.keys() if partly else before.keys() | after.keys()
    return sorted(name for name in names if before.get(name) != after.get(name))
