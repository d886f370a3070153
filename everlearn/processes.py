"""Parallel runs, each in its own process with its share of the cores.

Small backbones do not use many cores well: two parallel runs with one core each finish earlier than two
consecutive runs with two cores. Each process reads a configuration and writes a run folder, as `everlearn run` does.

The standard input of each process is a pipe that nobody writes to. When the process that started it closes the pipe, or
ends for any reason, the run saves and stops.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everlearn.errors import LONGEST, EverlearnError, printable
from everlearn.files import write_whole
from everlearn.interrupts import Interrupted
from everlearn.locks import alone
from everlearn.progress import Progress

Results = dict[str, Any]

POLL = 0.2  # seconds between two checks of the processes

# An empty entry of sys.path is the working directory, from which -c and -m import first: a random.py there would run
# in place of Python's. (The option -P does this only since Python 3.11.) The libraries are imported while a signal
# still ends the process at once: as a KeyboardInterrupt, one of them could catch it.
CHILD = """
import sys
sys.path[:] = filter(None, sys.path)
from everlearn.processes import stop_with_parent
stop_with_parent()
import everlearn.protocol
from everlearn.cli import main
sys.exit(main())
"""


def default_jobs() -> int:
    """The useful number of parallel runs: one on an accelerator, otherwise one per core, at most four."""
    import torch

    return 1 if torch.cuda.is_available() else min(4, torch.get_num_threads())


def side_by_side(
    runs: Sequence[Run], jobs: int, finished: Callable[[str, Results], None], progress: bool = False
) -> None:
    """Execute the runs in the given order, `jobs` at a time.

    Args:
        finished: called at the end of each run with its label and its results, or {"error": reason}.
        progress: show one progress bar per run on stderr.

    Raises:
        Interrupted: the user pressed Ctrl-C. All runs have saved and stopped; the same call continues them.
        Busy: another process learns in the folder of a run. This run was not started.
    """
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    waiting, running = list(runs), list[Run]()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    run.start(Path(scratch), threads, progress)
                    running.append(run)
                time.sleep(POLL)
                for run in [run for run in running if run.has_ended()]:
                    running.remove(run)
                    finished(run.label, run.results())
        except BaseException as error:  # on any error, no run may continue in the background
            for run in running:
                run.stop()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("stopped and saved; repeat the command with the same --out to continue") from None
            raise
        finally:
            for run in running:
                run.process.wait()
                run.bar.__exit__(KeyboardInterrupt, None, None)


def stop_with_parent() -> None:
    """From now on, when standard input ends, this process saves and stops as if a job scheduler had asked for it."""
    learning = threading.main_thread().ident
    assert learning is not None

    def wait() -> None:
        os.read(0, 1)
        signal.pthread_kill(learning, signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@dataclass
class Run:
    """A run in a process of its own."""

    label: str
    folder: Path
    config: dict[str, Any]
    tasks: int
    validate: bool = False
    shown: int = 0
    """The size of the log that the progress bar shows, in bytes."""

    def start(self, scratch: Path, threads: int, progress: bool) -> None:
        """Start the run, or resume it if its folder already holds a configuration."""
        import yaml

        self.said = scratch / f"{self.label}.txt"
        config = scratch / f"{self.label}.yaml"
        config.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        fresh = ["run", "--config", str(config), "--recipe", "none", "--out", str(self.folder)]
        fresh += ["--validate"] if self.validate else []
        verb = ["resume", str(self.folder)] if (self.folder / "config.yaml").is_file() else fresh
        # It is named on the command line, because a class outside of everlearn is not imported at the word of a file.
        verb += ["--method", self.config["method"]["name"]]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(self.said, "wb") as said:
            # In its own session the run gets Ctrl-C only once, from us: a second Ctrl-C cannot interrupt its saving.
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *verb], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=said, env=environment, start_new_session=True,
            )  # fmt: skip
        self.bar = Progress(self.tasks, self.label, progress)
        self.bar.__enter__()

    def stop(self) -> None:
        """Let the run save and stop. A signal could reach it in the middle of the saving that a first one asked for."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def has_ended(self) -> bool:
        """Update the progress bar and return whether the process has ended."""
        self._show_progress()
        if self.process.poll() is None:
            return False
        self.stop()
        self.bar.__exit__(None if self.process.returncode == 0 else EverlearnError, None, None)
        return True

    def _show_progress(self) -> None:
        from everlearn.schemas.logs import read_scores

        log = self.folder / "metrics.jsonl"
        size = log.stat().st_size if log.is_file() else 0
        if size == self.shown:
            return
        self.shown = size
        with contextlib.suppress(EverlearnError):  # of a damaged log the run itself tells, when it goes on from there
            scores = read_scores(log)
            if scores and len(scores) != self.bar.done:
                self.bar.text = f"score {scores[-1]:.3f}"
                self.bar.show(len(scores))

    def results(self) -> Results:
        """The content of results.json; or the reason why it is missing, with the full output in error.txt.

        Raises:
            Busy: the run could not start because another process learns in its folder, which is no failure.
            EverlearnError: results.json is damaged.
        """
        from everlearn.schemas.results import read_results

        if self.process.returncode == 0:
            (self.folder / "error.txt").unlink(missing_ok=True)  # left by an earlier attempt
            return read_results(self.folder / "results.json")
        said = self.said.read_text(encoding="utf-8", errors="replace").strip()
        record_failure(self.folder, said)
        if self.process.returncode < 0:  # it was killed without a message, most often because memory ran out
            return {"error": f"killed by {signal.Signals(-self.process.returncode).name}; --jobs 1 needs less memory"}
        return {"error": printable(_last_words(said), LONGEST)}


def record_failure(folder: Path, text: str) -> None:
    """Keep what a run that failed has said, in error.txt of its folder.

    Raises:
        Busy: another process learns there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        write_whole(folder / "error.txt", text + "\n")


def _last_words(said: str) -> str:
    """The error message at the end of the output; after a traceback it may have several lines."""
    lines = said.splitlines()
    if not lines:
        return "the process ended without a message"
    if lines[-1].startswith("everlearn: "):
        return lines[-1].removeprefix("everlearn: ")
    indented = [number for number, line in enumerate(lines) if line.startswith(" ")]
    return " ".join(lines[indented[-1] + 1 if indented else 0 :])
