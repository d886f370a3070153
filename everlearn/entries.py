"""Learn one stream with several methods or settings, cheapest first, each in a folder of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import backbones
from everlearn.config import Config
from everlearn.errors import LONGEST, EverlearnError, printable
from everlearn.locks import Busy, alone
from everlearn.schemas.results import read_results

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone
    from everlearn.method import Method
    from everlearn.streams.stream import Stream

Results = dict[str, Any]

Say = Callable[["Entry", str], None]

COST = ("nothing", "head", "peft", "backbone")  # what a method trains, cheapest first

PATIENCE = 60.0  # seconds for a run whose comparison was killed to finish its step, save and stop


@dataclass(frozen=True)
class Entry:
    """One method of a comparison: the name of its sub-folder, its class, its settings and its recipe."""

    label: str
    cls: type[Method]
    settings: Config
    recipe: Path | None
    backbone: str | None = None
    """The one that its recipe names, which `run` takes; in a comparison all methods have the same."""

    @property
    def origin(self) -> str:
        """The source of its settings."""
        if self.recipe is None:
            return "the method's own"
        other = f", without its backbone {self.backbone}: all methods have the same" if self.backbone else ""
        return f"recipe {self.recipe.parent.name}/{self.recipe.stem}{other}"

    @property
    def cost(self) -> tuple[int, bool, str]:
        """A sort key: cheapest methods first; of those that train as much, the ones that retrain on all data last."""
        return COST.index(self.cls.tags.trained_by(self.settings)), self.cls.tags.retrains, self.label


def learn_each(
    entries: Sequence[Entry], stream: Stream, config: Config, folder: Path | None, jobs: int, progress: bool,
    write: Callable[[list[Results]], None], say: Say | None = None,
) -> list[Results]:  # fmt: skip
    """Learn with each method that has not finished; `write` is given the results so far after each of them, and `say`
    what happens: by default it is printed."""
    found: dict[str, Results] = {}

    def keep(label: str, result: Results) -> None:
        found[label] = {**result, "method": label}
        write([found[entry.label] for entry in entries if entry.label in found])

    def printed(entry: Entry, text: str) -> None:
        if progress:
            print(f"{entry.label}: {text}", file=sys.stderr)

    say = say or printed
    encoder = cache(lambda: encoder_of(stream, config))  # not needed where all have finished
    todo = []
    for entry in entries:
        if folder is not None:
            _wait_for_orphan(entry, folder / entry.label, say)
        if (known := _known(entry, stream, encoder, folder, say)) is not None:
            keep(entry.label, known)
        else:
            todo.append(entry)
    # Methods that train at most a head run in this process: the first of them encodes for all.
    beside = [entry for entry in todo if jobs > 1 and entry.cost[0] > COST.index("head")]
    for entry in todo:
        if entry not in beside:
            keep(entry.label, _learn(entry, stream, config, folder, progress, say))
    if beside:
        assert folder is not None
        _learn_beside(beside, len(stream), config, folder, jobs, progress, say, keep)
    return [found[entry.label] for entry in entries]


def _wait_for_orphan(entry: Entry, directory: Path, say: Say) -> None:
    """Wait until no process learns in the method's folder: one whose comparison was killed saves and stops.

    Raises:
        Busy: it did not stop.
    """
    if not directory.is_dir():
        return
    try:
        with alone(directory):
            return
    except Busy:
        say(entry, f"waiting until another process that learns in {directory} has saved, at most {PATIENCE:.0f} s")
    with alone(directory, patience=PATIENCE):
        pass


def encoder_of(stream: Stream, config: Config) -> Backbone:
    """The encoder that all methods learn with; it is asked what it is, and not yet loaded where that is known."""
    return backbones.load_when_needed(config["backbone"] or backbones.default_for(stream.input))


def _known(
    entry: Entry, stream: Stream, encoder: Callable[[], Backbone], folder: Path | None, say: Say
) -> Results | None:  # fmt: skip
    """The result of a method that has already finished or cannot learn this stream; None if it must run."""
    if folder is not None and (folder / entry.label / "results.json").is_file():
        say(entry, "already finished, not repeated")
        return read_results(folder / entry.label / "results.json")
    if reason := reason_against(entry, stream, encoder()):
        say(entry, f"skipped: {reason}")
        return {"skipped": reason}
    return None


def reason_against(entry: Entry, stream: Stream, encoder: Backbone) -> str | None:
    """Why a method cannot learn this stream with this backbone; None if it can."""
    from everlearn.evaluation import supports

    return supports(entry.cls.tags, stream, encoder, entry.settings)


def _learn(entry: Entry, stream: Stream, config: Config, folder: Path | None, progress: bool, say: Say) -> Results:
    """Start or resume one method in this process; return its results, or the error."""
    from everlearn.interrupts import Interrupted
    from everlearn.processes import record_failure
    from everlearn.protocol import resume, run

    directory = folder / entry.label if folder is not None else None
    say(entry, f"settings: {entry.origin}")
    try:
        if directory is not None and (directory / "config.yaml").is_file():
            result = resume(directory, method=entry.settings["name"], stream=stream, progress=progress)
        else:
            result = run(entry.settings, stream, backbone=config["backbone"], seed=config["seed"],
                         out=directory, validate=True, progress=progress)  # fmt: skip
    except Interrupted:
        say(entry, "stopped and saved; repeat the command with the same --out to continue")
        raise
    except Exception as error:  # after any error the other methods still run
        reason = str(error) if isinstance(error, EverlearnError) else f"{type(error).__name__}: {error}"
        reason = printable(reason, LONGEST)
        if directory is not None:
            record_failure(directory, traceback.format_exc())
        say(entry, f"failed: {reason}")
        return {"error": reason}
    if directory is not None:
        (directory / "error.txt").unlink(missing_ok=True)  # left by an earlier attempt
    return result.results


def _learn_beside(
    entries: Sequence[Entry], tasks: int, config: Config, folder: Path, jobs: int, progress: bool, say: Say,
    keep: Callable[[str, Results], None],
) -> None:  # fmt: skip
    """Run the methods in parallel; methods that retrain on all data take longest, so they start first."""
    from everlearn.processes import Run, side_by_side

    by_label = {entry.label: entry for entry in sorted(entries, key=lambda e: not e.cls.tags.retrains)}
    runs = [
        Run(label, folder / label, {**config, "method": e.settings}, tasks, validate=True)
        for label, e in by_label.items()
    ]
    for entry in by_label.values():
        say(entry, f"settings: {entry.origin}")

    def finished(label: str, result: Results) -> None:
        if "error" in result:
            say(by_label[label], f"failed: {result['error']}")
        keep(label, result)

    side_by_side(runs, jobs, finished, progress)


def refuse_links(folder: Path, labels: Iterable[str]) -> None:
    """See that no link leads out of the folders of some runs.

    Raises:
        EverlearnError: one does.
    """
    for place in (folder / label for label in labels):
        for found in (place, *(place.iterdir() if place.is_dir() else ())):
            if found.is_symlink():
                raise EverlearnError(f"{found} is a symbolic link, and a comparison writes only into its own folder: "
                                     "replace it by what it points to")  # fmt: skip
