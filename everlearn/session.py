"""One run in progress: for each task begin, fit, end, evaluate; saved as it goes, resumed to the same bits."""

from __future__ import annotations

import inspect
import math
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from everlearn import checkpoint
from everlearn.console import Progress
from everlearn.errors import EverlearnError, EverlearnWarning
from everlearn.evaluation import Evaluation
from everlearn.features import default_store
from everlearn.method import Method, Update, seeded
from everlearn.results import Result, assemble, reset_peak_memory, write_results
from everlearn.streams.stream import Stream, Task

BEGIN, FIT, END = range(3)  # what a seed is derived for
SOON = 20.0  # seconds: a task boundary this close to the last checkpoint is cheaper to repeat than to save


class Interrupted(EverlearnError):
    """Ctrl-C: the step was finished and saved; the message holds the command that goes on."""


@dataclass
class Session:
    """One run in progress."""

    method: Method
    stream: Stream
    config: dict[str, Any]
    folder: Path | None
    save_minutes: float
    save_steps: int | None
    progress: bool
    task_index: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    initial: list[float | None] = field(default_factory=list)
    before: float | None = None
    trainable: int = 0
    _training: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None
    _last_save: float = field(default_factory=time.monotonic)
    _stopping: bool = False

    def learn(self) -> Result:
        """Every task that is left, then the results."""
        reset_peak_memory()
        store = default_store()
        counted = store.encoded, store.served, store.seconds
        evaluation = Evaluation(self.stream, self.method)
        with self._interruptible(), self._warnings(), Progress(
            len(self.stream), f"{self.config['method']['name']} on {self.stream.name}", self.progress
        ) as bar:  # fmt: skip
            bar.advance(self.task_index)
            for task in self.stream.tasks[self.task_index :]:
                self._learn_task(task, evaluation)
                bar.advance(1, f"score {self.rows[-1]['all']:.3f}")
            if self.folder:
                self._save()
        costs = {
            "examples_encoded": store.encoded - counted[0], "examples_served": store.served - counted[1],
            "encode_seconds": store.seconds - counted[2],
        }  # fmt: skip
        results = assemble(self, costs)
        if self.folder:
            write_results(self.folder, results)
        return Result(results, self.folder)

    def _learn_task(self, task: Task, evaluation: Evaluation) -> None:
        method, seed = self.method, self.method.seed
        clock = Clock()
        if self.step == 0:
            self.seconds = [*self.seconds[: task.index], {}]
            if task.index == 0:
                self.initial = evaluation.initial()
            self.before = evaluation.before(task)
            clock.stop("evaluate", self.seconds[-1])
            with seeded(seed, task.index, BEGIN):
                method.begin_task(task.sealed())
            clock.stop("begin", self.seconds[-1])
        with seeded(seed, task.index, FIT):
            self._fit(task)
        clock.stop("train", self.seconds[-1])
        method.eval()
        with seeded(seed, task.index, END):
            method.end_task(task)
        clock.stop("end", self.seconds[-1])
        method.eval()
        self.rows.append({**evaluation.after(task), "before": self.before})
        clock.stop("evaluate", self.seconds[-1])
        self.task_index, self.step = task.index + 1, 0
        if self.folder:
            line = {"task": task.index, "step": None, "score": self.rows[-1]["all"], "seconds": self.seconds[-1]}
            checkpoint.append_line(self.folder / "metrics.jsonl", line)
            if self._stopping or self.save_steps or time.monotonic() - self._last_save > SOON:
                self._save()
        self._stop_if_asked()

    def _fit(self, task: Task) -> None:
        """Train on the task's batches, from `self.step` on."""
        groups = self.method.param_groups()
        if not groups:
            return
        self.trainable = max(self.trainable, sum(p.numel() for group in groups for p in group["params"]))
        batches = self.method.batches(task)
        optimizer = _optimizer(self.method, groups)
        schedule = _schedule(self.method, optimizer, len(batches))
        update = Update(optimizer, schedule, self.method.clip)
        if self._training is not None:
            tensors, plain = self._training
            checkpoint.load_optimizer_state(optimizer, tensors, plain["optimizer"])
            schedule.load_state_dict(plain["schedule"])
            torch.set_rng_state(tensors["random"])
            if "random_cuda" in tensors and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors["random_cuda"])
            self._training = None
        self.method.train()
        label = f"task {task.index + 1} of {len(self.stream)}"
        with Progress(len(batches), label, self.progress) as bar:
            bar.advance(self.step)
            for number in range(self.step, len(batches)):
                update.batch = batches[number]
                loss = self.method.step(update.batch, update)
                self.step = number + 1
                is_last = self.step == len(batches)
                if self.step % 10 == 0 or is_last:
                    bar.advance(self.step % 10 or 10, f"loss {loss.item():.3f}")
                if self.folder and not is_last and self._is_due():
                    # The line first: resume drops lines beyond the checkpoint, but cannot write one again.
                    checkpoint.append_line(self.folder / "metrics.jsonl",
                                           {"task": task.index, "step": self.step, "loss": loss.item()})  # fmt: skip
                    self._save(optimizer, schedule)
                if self._stopping and not is_last:
                    if self.folder:
                        self._save(optimizer, schedule)
                    self._stop_if_asked()

    def _is_due(self) -> bool:
        by_steps = self.save_steps is not None and self.step % self.save_steps == 0
        return by_steps or time.monotonic() - self._last_save > 60 * self.save_minutes

    # -- saving and resuming -------------------------------------------------------------------
    def _save(self, optimizer: Any = None, schedule: Any = None) -> None:
        assert self.folder is not None
        training: dict[str, torch.Tensor] = {}
        plain: dict[str, Any] = {}
        if optimizer is not None:
            training, plain["optimizer"] = checkpoint.optimizer_state(optimizer)
            plain["schedule"] = {k: v for k, v in schedule.state_dict().items() if _is_plain(v)}
            training["random"] = torch.get_rng_state()
            if torch.cuda.is_available():
                training["random_cuda"] = torch.cuda.get_rng_state()
        seen = self.stream.tasks[: self.task_index + bool(self.step)]
        state = {
            "task": self.task_index, "step": self.step, "rows": self.rows, "seconds": self.seconds,
            "initial": self.initial, "before": self.before, "warnings": self.warned, "trainable": self.trainable,
            "training": plain,
            "fingerprint": self.stream.fingerprint(), "backbone": self.method.backbone.settings,
            "origin": checkpoint.origin_hash(self.method.backbone), "tasks": [task.metadata() for task in seen],
        }  # fmt: skip
        name = f"task-{self.task_index:03d}-step-{self.step:06d}"
        saved = checkpoint.Checkpoint(state, checkpoint.method_state(self.method), training)
        checkpoint.save(self.folder / "checkpoints", name, saved)
        self._last_save = time.monotonic()

    def restore(self) -> None:
        """Take up the newest checkpoint of the folder; without one the run starts at its beginning."""
        assert self.folder is not None
        name = checkpoint.newest(self.folder / "checkpoints")
        if name is None:
            checkpoint.rewrite_lines(self.folder / "metrics.jsonl", [])
            return
        saved = checkpoint.load(self.folder / "checkpoints", name)
        state = saved.state
        if state["fingerprint"] != self.stream.fingerprint():
            raise EverlearnError(
                f"the data of stream '{self.stream.name}' has changed since {self.folder} was saved: "
                "restore the data, or start a new run"
            )
        restore_method(self.method, saved)
        self.task_index, self.step, self.rows = state["task"], state["step"], state["rows"]
        self.initial, self.before = state["initial"], state["before"]
        self.seconds, self.warned, self.trainable = state["seconds"], state["warnings"], state["trainable"]
        if self.step:
            self._training = saved.training, state["training"]
        position = (self.task_index, self.step)
        log = self.folder / "metrics.jsonl"
        checkpoint.rewrite_lines(log, [line for line in checkpoint.read_lines(log) if _position(line) <= position])

    # -- stopping ------------------------------------------------------------------------------
    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Inside the block the first Ctrl-C asks the run to save and stop; the second stops at once."""

        def ask(signum: int, frame: Any) -> None:
            self._stopping = True
            signal.signal(signal.SIGINT, before)

        store = default_store()
        try:
            before: Any = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not the main thread: whoever runs the thread handles Ctrl-C
            yield
            return
        store.on_progress = _Encoding(self)
        try:
            yield
        finally:
            store.on_progress = None
            signal.signal(signal.SIGINT, before)

    def _stop_if_asked(self) -> None:
        if self._stopping:
            how = f"go on with: everlearn resume {self.folder}" if self.folder else "nothing was kept: no folder given"
            inside = f"at step {self.step} of task {self.task_index + 1}"
            raise Interrupted(f"stopped {inside if self.step else f'after task {self.task_index}'}; {how}")

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        """Collect our own warnings for the report; everybody else's go where they went before."""
        show = warnings.showwarning

        def collect(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if issubclass(category, EverlearnWarning):
                if str(message) not in self.warned:
                    self.warned.append(str(message))
            else:
                show(message, category, *rest, **more)

        with warnings.catch_warnings():
            warnings.simplefilter("always", EverlearnWarning)
            warnings.showwarning = collect
            yield


class Clock:
    """Adds the seconds since the last stop to a named phase."""

    def __init__(self) -> None:
        self.since = time.perf_counter()

    def stop(self, phase: str, seconds: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds[phase] = seconds.get(phase, 0.0) + now - self.since
        self.since = now


def restore_method(method: Method, saved: checkpoint.Checkpoint) -> None:
    """Replay the structure of the tasks seen, then load what was learned."""
    if saved.state["origin"] != checkpoint.origin_hash(method.backbone):
        raise EverlearnError(
            f"backbone '{method.backbone.name}' is not the one that the checkpoint was made with "
            "(its pre-trained weights differ): give the same weights"
        )
    for metadata in saved.state["tasks"]:
        with seeded(method.seed, metadata["index"], BEGIN):
            method.begin_task(Task.from_metadata(metadata))
    checkpoint.load_method_state(method, saved.method)


def _optimizer(method: Method, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    # Fused, where the optimizer can: one pass over the weights a step instead of ten.
    fused: dict[str, Any] = {"fused": True} if "fused" in inspect.signature(method.Optimizer).parameters else {}
    return method.Optimizer(groups, lr=method.lr, **fused)  # type: ignore[call-arg]


def _schedule(method: Method, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    if method.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
    if method.schedule == "quarter_cosine":
        epochs, last = method.epochs, max(1, method.epochs - 1)  # of an online stream's one pass: as many parts
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: math.cos(0.495 * math.pi * max(0, step * epochs // max(1, steps) - 1) / last)
        )
    if method.schedule == "step":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, steps * 9 // 10)], gamma=0.1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


class _Encoding:
    """Shows a bar while the store encodes, and lets Ctrl-C stop it between chunks."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = Progress(total, "encoding", self.session.progress)
            self.bar.__enter__()
        self.bar.advance(done - self.bar.done)
        if done == total:
            self.bar.__exit__(None, None, None)
            self.bar = None
        elif self.session._stopping:
            self.bar.__exit__(None, None, None)
            self.session._stop_if_asked()  # what was encoded is kept: the resumed run finds it in the store


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | bool | str | list) or value is None


def _position(line: dict[str, Any]) -> tuple[int, int]:
    """Where in the stream a line of metrics.jsonl was written: (tasks finished, steps in the next)."""
    return (line["task"] + 1, 0) if line["step"] is None else (line["task"], line["step"])
