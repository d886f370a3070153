"""Listeners of the engine: progress bars, the log of losses, seconds per phase."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from everlearn.engine import Learning, Listener
from everlearn.features import default_store
from everlearn.files import append_lines
from everlearn.progress import Progress

BATCH = 50  # steps whose losses are written together: asking an accelerator for each would make it wait


class Bar(Listener):
    """A progress bar that appears with the first step."""

    def __init__(self, label: str, enabled: bool, always: bool = True) -> None:
        self.label, self.enabled, self.always = label, enabled, always
        self.bar: Progress | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kind)

    def show(self, done: int, total: int, text: str = "") -> None:
        """Show how many steps are done."""
        if self.bar is None:
            self.bar = Progress(total, self.label, self.enabled, done, self.always)
            self.bar.__enter__()
        self.bar.text = text
        self.bar.show(done)

    def close(self, kind: type[BaseException] | None = None) -> None:
        """Remove the bar; `kind` is the error that stopped the work, if any."""
        if self.bar is not None:
            self.bar.__exit__(kind, None, None)
            self.bar = None

    def stepped(self, learning: Learning) -> None:
        if learning.step % 10 == 0 or learning.step in (1, learning.steps):
            self.show(learning.step, learning.steps, f"loss {learning.loss.item():.3f}")

    def fitted(self, learning: Learning) -> None:
        self.close()


@contextmanager
def encoding(progress: bool, pause: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside the block a progress bar shows how far the feature store is; `pause` is called between two chunks that it
    encodes, and may raise: what was encoded is kept."""
    store, bar = default_store(), Bar("encoding", progress, always=False)

    def show(done: int, total: int) -> None:
        bar.show(done, total)
        if done == total:
            bar.close()
        elif pause is not None:
            pause()

    store.on_progress = show
    try:
        yield
    finally:
        store.on_progress = None
        bar.close()


class Log(Listener):
    """Writes the loss of every step to a JSON Lines file: {"task", "step", "loss"}; a loss that is not
    finite is null."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.waiting: list[tuple[int, int, torch.Tensor]] = []

    def stepped(self, learning: Learning) -> None:
        self.waiting.append((learning.task.index, learning.step, learning.loss))
        if len(self.waiting) >= BATCH:
            self.flush()

    def fitted(self, learning: Learning) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        waiting, self.waiting = self.waiting, []
        losses = torch.stack([loss for _, _, loss in waiting]).tolist() if waiting else []
        append_lines(self.file, ({"task": task, "step": step, "loss": loss if math.isfinite(loss) else None}
                                 for (task, step, _), loss in zip(waiting, losses, strict=True)))  # fmt: skip


class Clock(Listener):
    """Adds the seconds of each phase up: begin, train, end, and what `stop` is told."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.since = seconds, time.perf_counter()

    def stop(self, phase: str) -> None:
        """Count the seconds since the last call for this phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.since
        self.since = now

    def begun(self, learning: Learning) -> None:
        self.stop("begin")

    def fitted(self, learning: Learning) -> None:
        self.stop("train")

    def ended(self, learning: Learning) -> None:
        self.stop("end")
