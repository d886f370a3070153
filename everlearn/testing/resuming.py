"""The promises about state and whole runs: what a method has learned is in its state dict, and nowhere else."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.checkpoint import load_method_state, method_state
from everlearn.engine import replay
from everlearn.errors import ContractError, EverlearnWarning
from everlearn.features import default_store
from everlearn.method import Method
from everlearn.streams.stream import Stream
from everlearn.testing.case import (
    Case,
    ask,
    ask_all,
    expect,
    lasting,
    same,
    session,
    snapshot,
    stop_in_second_task,
    tests_of,
)  # fmt: skip
from everlearn.testing.fresh import ANSWERS, RESULTS, STATE, FreshProcess, Request, Unbuilt, as_tensor
from everlearn.testing.toy import toy_stream

KEEP_IT = "keep it in a buffer, a parameter or a module"


class Resuming(Case):
    """Each method is a promise, except those that begin with an underscore."""

    def __init__(self, cls: type[Method], settings: dict[str, Any], backbone: Callable[[], Backbone]) -> None:
        super().__init__(cls, settings, backbone)
        self._since, self._asked = time.time(), tests_of(self.stream)
        self._fresh: FreshProcess | None = None

    def two_methods_share_nothing(self) -> None:
        method = self.learned()
        before = ask_all(method, self._asked)
        self.teach(self.build(), self.toy(self.stream.goal, seed=5).tasks)
        expect(same(before, ask_all(method, self._asked)),
               "another method of the class learned, and this one answers differently: they share state (a class "
               "attribute, a default value, a module)")  # fmt: skip

    def a_copy_is_independent(self) -> None:
        method = self.learned(1)
        before, asked = snapshot(method), self._asked[0]
        answered = ask(method, asked)
        twin = copy.deepcopy(method)
        expect(torch.equal(ask(twin, asked), answered), "a copy answers differently")
        self.teach(twin, self.stream.tasks[1:2])
        expect(same(before, snapshot(method)), "training a copy changed the original")
        expect(torch.equal(ask(method, asked), answered), "training a copy changed the original's answers")

    def a_checkpoint_holds_everything(self) -> None:
        for stream in self.streams:
            method, again = self.learned(stream=stream), self.build()
            replay(again, stream.tasks)
            again.drop_helpers()
            load_method_state(again, {name: tensor.detach().clone() for name, tensor in method_state(method).items()})
            expect(same(self._told(method, stream), self._told(again, stream)), "a method built anew from the "
                   f"checkpoint answers differently: something is not in the state dict ({KEEP_IT})")  # fmt: skip

    def resumes_exactly(self) -> None:
        straight = session(self.build(), self.stream)
        expected = straight.learn()
        for verb, where in (("end_task", "after a task"), ("step", "inside a task")):
            with tempfile.TemporaryDirectory() as folder:
                if not stop_in_second_task(session(self.build(), self.stream, Path(folder)), verb):
                    continue  # a method without steps is not stopped inside a task
                resumed = session(self.build(), self.stream, Path(folder))
                resumed.restore()
                found = resumed.learn()
            told = f"a run stopped {where} and resumed ends {{}}: something is not in the state dict ({KEEP_IT})"
            expect(same(snapshot(straight.method), snapshot(resumed.method)), told.format("in another state"))
            expect(expected.accuracy_matrix == found.accuracy_matrix, told.format("with other scores"))
            expect(lasting(expected) == lasting(found), told.format("with other results, beside the scores"))

    def resumes_exactly_in_a_fresh_process(self) -> None:
        if self._fresh is None:
            return  # a warning has said why
        with tempfile.TemporaryDirectory() as place:
            parts = [self._runs(stream, Path(place) / stream.goal) for stream in self.streams]
            try:
                found = self._fresh.carry_out([request for request, _ in parts])
            except Unbuilt as error:
                self._warn(error)
                return
            for (request, expected), resumed in zip(parts, found, strict=True):
                if not same(expected, resumed):
                    self._explain(request, _answers(expected), _answers(resumed))

    def runs_on_every_input_goal_and_kind_it_claims(self) -> None:
        for goal in self.cls.tags.goals:
            for kind in self.kinds if goal == "classes" else ["domain-incremental"]:
                for input in self.cls.tags.inputs if goal == "classes" else ["text"]:
                    session(self.build(), toy_stream(input, goal=goal, kind=kind, tasks=2, per_class=6)).learn()

    def _start_fresh_process(self) -> None:
        """At once: it imports torch while the other checks run, and its environment is still untouched."""
        try:
            self._fresh = FreshProcess(self.cls, self.settings, self.backbone)
        except Unbuilt as error:
            self._warn(error)

    def _warn(self, reason: Unbuilt) -> None:
        told = f"{self.cls.__name__} was not checked in a fresh process: {reason}; define it at the top level of a file"
        warnings.warn(told, EverlearnWarning, stacklevel=4)

    def _runs(self, stream: Stream, place: Path) -> tuple[Request, dict[str, torch.Tensor]]:
        """Learn a stream, once to its end and once until it is stopped: what a fresh process goes on from, and what it
        must find."""
        for name in ("finished", "step", "end_task"):
            (place / name).mkdir(parents=True)
        whole = session(self.build(), stream, place / "finished")
        result = whole.learn()
        for verb in ("step", "end_task"):
            if stop_in_second_task(session(self.build(), stream, place / verb), verb):
                break
        expected = {ANSWERS + task: tensor for task, tensor in self._told(whole.method, stream).items()}
        state = {STATE + name: tensor for name, tensor in snapshot(whole.method).items()}
        request = Request(
            stream.goal, place / "finished", place / verb, tests_of(stream), default_store().root, self._since,
            place / "found.safetensors",
        )  # fmt: skip
        return request, {**expected, **state, RESULTS: as_tensor(lasting(result))}

    def _explain(
        self, request: Request, here: dict[str, torch.Tensor], resumed: dict[str, torch.Tensor]
    ) -> None:  # fmt: skip
        """Say why a fresh process that resumes comes to something else. For that, one learns everything itself.

        Args:
            here: the answers in this process. resumed: those from the checkpoint in the fresh one.
        """
        assert self._fresh is not None
        (learned,) = self._fresh.carry_out([replace(request, finished=None, stopped=None)])
        is_state = same(here, learned)  # where nothing had been learned before, all is as it was here
        is_hash = not is_state and (same(learned, resumed) or same(here, resumed))
        causes = [] if is_hash else ["something is kept in a class, in a module or in a plain object and is not in the "
                                     f"state dict ({KEEP_IT})"]  # fmt: skip
        causes += [] if is_state else ["`hash()` or the order of a set of strings decides something (use zlib.crc32 "
                                       "or hashlib, and sort)"]  # fmt: skip
        raise ContractError("in a fresh process, with another PYTHONHASHSEED, a run that is resumed differs: "
                            + ", or ".join(causes))  # fmt: skip

    def _told(self, method: Method, stream: Stream) -> dict[str, torch.Tensor]:
        """The answers to the test inputs of the tasks that the method has learned."""
        return ask_all(method, tests_of(stream)[: method.task.index + 1])


def _answers(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in found.items() if name.startswith(ANSWERS)}
