"""Progress on standard error: a bar with the remaining time, or plain lines where no terminal shows them."""

from __future__ import annotations

import sys
import threading
import time
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from everlearn.console import WIDTH, safe
from everlearn.errors import printable
from everlearn.formats import duration


class Progress:
    """A progress bar on stderr with the remaining time; nested bars share one display.

    A finished bar leaves one line of text, except a nested bar that took less than a second. If stderr is not a
    terminal, there are plain lines instead: one for each step of the outermost bar, unless the steps are quick, and
    one every half minute. If not `enabled`, nothing is printed.

    Args:
        total: number of steps.
        label: what is in progress, for example "task 3 of 10".
        done: how many steps were done before.
        always: whether an outermost bar leaves its line also where it took less than a second.

    >>> with Progress(2, "task 1 of 1", enabled=False) as bar:
    ...     bar.advance(2, "loss 0.3")
    """

    EVERY: ClassVar[float] = 30.0  # seconds
    display: ClassVar[Bars | None] = None
    active: ClassVar[list[Progress]] = []
    ended: ClassVar[threading.Event]
    said: ClassVar[float]

    def __init__(self, total: int, label: str, enabled: bool = True, done: int = 0, always: bool = True) -> None:
        self.total, self.label, self.enabled, self.always = total, printable(label), enabled, always
        self.done, self.before, self.text = done, done, ""

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        if not self.enabled:
            return self
        if not Progress.active:
            Progress.said = self.started
            if sys.stderr.isatty():
                Progress.display = Bars(
                    TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
                    TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False),
                    console=Console(stderr=True), transient=True,
                )  # fmt: skip
                Progress.display.start()
            else:
                Progress.ended = threading.Event()
                threading.Thread(target=_say_regularly, args=[Progress.ended], daemon=True).start()
        Progress.active.append(self)
        if Progress.display:
            self.bar = Progress.display.add_task(self.label, total=self.total, completed=self.done, text="")
        return self

    def advance(self, n: int = 1, text: str | None = None) -> None:
        """Count n more steps; `text`, if given, replaces the text after the bar."""
        self.text = self.text if text is None else text
        self.show(self.done + n)

    def show(self, done: int) -> None:
        """Show that `done` of all steps are done."""
        self.done = done
        if not self.enabled:
            return
        if Progress.display:
            Progress.display.update(self.bar, completed=done, text=self.text)
        elif self is Progress.active[0] and done < self.total and time.monotonic() - Progress.said >= 1:
            _say()

    def position(self) -> str:
        """How far it is, in words: "task 3 of 10: 120 of 400, loss 0.3"."""
        return f"{self.label}: {self.done:,} of {self.total:,}" + (f", {self.text}" if self.text else "")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.enabled:
            return
        Progress.active.remove(self)
        if Progress.display:
            Progress.display.remove_task(self.bar)
            if not Progress.active:
                Progress.display.stop()
        elif not Progress.active:
            Progress.ended.set()
        seconds = time.monotonic() - self.started
        if kind is None and (seconds >= 1 or (self.always and not Progress.active)):
            _to_stderr(f"{self.label}: {duration(seconds)}" + (f", {self.text}" if self.text else ""))
        if not Progress.active:
            Progress.display = None


def _say_regularly(ended: threading.Event) -> None:
    while not ended.wait(max(Progress.said + Progress.EVERY - time.monotonic(), 0)):
        if time.monotonic() - Progress.said >= Progress.EVERY:  # nothing was said meanwhile
            _say()


def _say() -> None:
    """Print where all active bars are, and how long the outermost of them takes."""
    bars = list(Progress.active)
    if not bars:
        return
    Progress.said = time.monotonic()
    first, elapsed = bars[0], Progress.said - bars[0].started
    news = first.done - first.before
    left = f", about {duration(elapsed / news * (first.total - first.done))} left" if news else ""
    _to_stderr("; ".join(bar.position() for bar in bars) + f" ({duration(elapsed)}{left})")


def _to_stderr(line: str) -> None:
    console = Progress.display.console if Progress.display else Console(stderr=True, width=WIDTH)
    console.print(safe(line), soft_wrap=True, highlight=False)
