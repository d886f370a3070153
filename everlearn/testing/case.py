"""What the checks of a method stand on: how it is built, taught, asked and compared."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn.backbones.backbone import Backbone
from everlearn.engine import learn
from everlearn.errors import ContractError
from everlearn.interrupts import Interrupted
from everlearn.method import Method
from everlearn.results import TIMINGS, Result
from everlearn.session import Session
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Stream, Task
from everlearn.testing.toy import toy_stream


class Case:
    """What a check is given: the class, how to build it, and small streams.

    Args:
        cls: the class. settings: keyword arguments of its constructor.
        backbone: gives a new backbone with each call.
    """

    def __init__(self, cls: type[Method], settings: dict[str, Any], backbone: Callable[[], Backbone]) -> None:
        self.cls, self.settings, self.backbone = cls, settings, backbone

    @cached_property
    def streams(self) -> list[Stream]:
        """A toy stream for each goal that the method claims; made when it is needed, because a method that is asked
        where there are none finds no labels."""
        return [self.toy(goal) for goal in self.cls.tags.goals]

    @property
    def stream(self) -> Stream:
        return self.streams[0]

    def toy(self, goal: str, seed: int = 0) -> Stream:
        """A toy stream of the first kind and input that the method claims; a small one of rankings."""
        if goal == "ranking":
            return toy_stream("text", goal=goal, kind="domain-incremental", tasks=2, per_class=8, seed=seed)
        return toy_stream(self.cls.tags.inputs[0], kind=self.kinds[0], seed=seed)

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds of stream that it can learn; one that needs the task at test needs to be told it."""
        tags = self.cls.tags
        return tags.kinds if tags.task_at_test != "needed" else [k for k in tags.kinds if k == "task-incremental"]

    def build(self, **more: Any) -> Method:
        return self.cls(self.backbone(), **{**self.settings, **more})

    def learned(self, tasks: int = 3, stream: Stream | None = None, **more: Any) -> Method:
        """A method that has learned the first tasks of a toy stream."""
        return self.teach(self.build(**more), (stream or self.stream).tasks[:tasks])

    def teach(self, method: Method, tasks: Sequence[Task]) -> Method:
        for task in tasks:
            learn(method, task)
        return method


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def ask(method: Method, inputs: Sequence[Input], task: int = 0) -> torch.Tensor:
    """What the method says of each input: scores, or embeddings where it ranks. It is given nothing but the inputs,
    and the task where it needs that."""
    method.eval()
    with torch.no_grad():
        if method.task.goal == "ranking":
            return method.embed(list(inputs)).detach().clone().cpu()
        told = {"task": task} if method.tags.task_at_test == "needed" else {}
        return method.predict(list(inputs), **told).detach().clone().cpu()


def ask_all(method: Method, asked: Sequence[Sequence[Input]]) -> dict[str, torch.Tensor]:
    """The answers to the inputs of every task, the last task first; where it ranks, its rankings as well."""
    answers = {}
    for index, inputs in reversed(list(enumerate(asked))):
        answers[f"task {index + 1}"] = ask(method, inputs, index)
        if method.task.goal == "ranking":
            documents = [f"answer to {text!s}" for text in inputs]
            answers[f"rankings {index + 1}"] = torch.tensor(method.search(list(inputs), documents))
    return answers


def tests_of(stream: Stream) -> list[list[Input]]:
    """The test inputs of every task."""
    return [list(task.test.inputs) for task in stream]


def snapshot(method: Method) -> dict[str, torch.Tensor]:
    """Every tensor of the state dict, those of the backbone as well: no version of a tensor is trusted."""
    return {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two dicts hold the same bits. NaN stands for what is unknown, as in a memory's columns, and is
    the same as NaN."""
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(7.7), b[k].nan_to_num(7.7)) for k in a)


def lasting(result: Result) -> str:
    """The results of a run that are equal to the bit when it is repeated or resumed, as JSON."""
    return json.dumps({name: value for name, value in result.results.items() if name not in TIMINGS}, sort_keys=True)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether answers differ only as much as sums that are rounded in another order. Where all of them are small, so
    is what they may differ by."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * min(1.0, float(a.abs().max())))


def session(method: Method, stream: Stream, folder: Path | None = None) -> Session:
    config = {"stream": {"name": stream.name}, "method": {"name": "toy"}, "backbone": "tiny", "seed": method.seed}
    return Session(method, stream, config, folder, save_minutes=5.0, save_steps=None, progress=False)


def stop_in_second_task(running: Session, verb: str) -> bool:
    """Run a session and have it stopped inside its second task, when its method's `verb`, step or end_task, is
    called. Returns whether it was: a method without steps is not stopped inside a task."""
    original = getattr(running.method, verb)

    def stopping(*args: Any) -> Any:
        running.stop.asked = running.task_index == 1
        return original(*args)

    object.__setattr__(running.method, verb, stopping)
    try:
        running.learn()
    except Interrupted:
        return True
    return False


PROCESS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether gradients are computed": (torch.is_grad_enabled, torch.set_grad_enabled),
    "whether algorithms are deterministic": (
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms,
    ),
    "the precision of matrix products": (
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision,
    ),
    "the working directory": (os.getcwd, os.chdir),
}  # fmt: skip
"""Settings of the whole process that a method may not change: how each is read, and how it is set again."""


@contextmanager
def process_settings() -> Iterator[dict[str, Any]]:
    """The settings of the process as they are now; they are so again afterwards, whatever ran in between."""
    now = {name: read() for name, (read, _) in PROCESS.items()}
    try:
        yield now
    finally:
        for name, (read, write) in PROCESS.items():
            if read() != now[name]:
                write(now[name])


@contextmanager
def global_random_state(seed: int) -> Iterator[None]:
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
