"""Interrupts: the first Ctrl-C asks whoever is learning to save and stop, the second stops at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from everlearn.errors import EverlearnError


class Interrupted(EverlearnError):
    """Ctrl-C: the step was finished and saved; the message holds the command that goes on."""


class Stop:
    """Whether somebody has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def on_ctrl_c(self) -> Iterator[bool]:
        """Inside the block Ctrl-C asks. Gives False where the main thread, not this one, hears Ctrl-C."""

        def ask(signum: int, frame: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, before)

        try:
            before: Any = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not the main thread
            yield False
            return
        try:
            yield True
        finally:
            signal.signal(signal.SIGINT, before)
