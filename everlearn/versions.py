"""Versions: what updates leave in a run's folder.

Version 1 is the run itself. Each update writes `versions/version-0002`, `version-0003`, …: a checkpoint with the whole
state of the method, the held-out examples and a record of the update. A version is never changed, and `current.json`
says which one answers. Both are written completely or not at all, the version first, so that a process that is killed
leaves the old version or the new one.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from torch import Tensor

from everlearn import checkpoint
from everlearn.errors import EverlearnError, as_word, printable
from everlearn.files import read_bytes, write_whole
from everlearn.locks import alone
from everlearn.method import Method
from everlearn.results import rounding
from everlearn.schemas.config import read_config
from everlearn.schemas.states import Current, VersionState
from everlearn.schemas.values import MOST_JSON, valid
from everlearn.session import load_saved
from everlearn.strict import from_json

NAME = re.compile(r"version-([0-9]{4,9})")
LEFT = re.compile(rf"\.{NAME.pattern}\.[0-9]+(\.old)?")
"""What an update that was killed has left."""
UPDATING = "learning or updating"


@dataclass(frozen=True)
class Version:
    """One version of a model. Every entry of its record is an attribute: ``version.new_classes``.

    Args:
        record: version (its number), previous (that of the version it was made from), date, data (the name of the
            file), sha256 (of the file, or of the examples), learned, held_out and calibration (numbers of examples),
            new_classes, old and new (examples, and accuracy before and after), temperature, seconds, and notes; merged
            (how and by which weights), where it was made of several runs and `data` names the others.
        directory: the run's folder.

    Raises:
        AttributeError: the record has no such entry.

    >>> Version({"version": 2, "previous": 1, "new_classes": ["garden"]}, Path("run")).new_classes
    ['garden']
    """

    record: dict[str, Any]
    directory: Path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these before there is a record
            raise AttributeError(name)
        try:
            return self.record[name]
        except KeyError:
            raise AttributeError(f"a version has no entry '{name}'; it has {', '.join(self.record)}") from None


def current(folder: Path) -> int:
    """The number of the version that answers.

    Raises:
        EverlearnError: `current.json` is damaged, or the version is not there.
    """
    file = _place(folder) / "current.json"
    if not file.exists():
        return 1
    there = numbers(folder)
    remedy = "remove it to go back to version 1"
    if len(there) > 1:
        remedy += f', or write {{"version": {there[-1]}}} into it (versions: {", ".join(map(str, there))})'
    number: int = valid(from_json(read_bytes(file, MOST_JSON), file, remedy), Current, file, remedy)["version"]
    if number not in there:
        raise EverlearnError(f"{file} names version {number}, which is not there: {remedy}")
    return number


def load(folder: Path, number: int | None = None) -> tuple[int, checkpoint.Checkpoint]:
    """The version that answers, or another one: its number and what it holds.

    Raises:
        EverlearnError: nothing is saved yet, the run is not finished, there is no such version, or what is saved is
            damaged.
    """
    if number is None:
        number = current(folder)
    elif number not in (there := numbers(folder)):
        raise EverlearnError(f"{folder} has no version {number}: it has {', '.join(map(str, there))}")
    if number > 1:
        place = _place(folder)
        saved = checkpoint.load(place, _name(number))
        _checked(saved.state, number, place)
        return number, saved
    name = checkpoint.newest(folder / "checkpoints")
    if name is None:
        if (folder / "results.json").exists():
            raise EverlearnError(f"{folder / 'checkpoints'} holds no checkpoint of the finished run: put it back, or "
                                 "learn the run again in a new folder")  # fmt: skip
        raise EverlearnError(f"{folder} holds no checkpoint yet: run `everlearn resume {as_word(folder)}`")
    saved = load_saved(folder / "checkpoints", name)
    if saved.state["step"]:
        raise EverlearnError(f"{folder} stopped inside task {saved.state['task'] + 1}: run `everlearn resume "
                             f"{as_word(folder)}`")  # fmt: skip
    return number, saved


def versions(folder: str | Path) -> list[Version]:
    """All versions that updates have made, oldest first; version 1, the run itself, has no record.

    Raises:
        EverlearnError: it is not a run's folder, or a record is damaged.

    >>> import everlearn, tempfile
    >>> from everlearn.streams import Record
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> small = {"name": "clinc150", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 1}
    >>> _ = everlearn.run("simplecil", small, backbone="tiny", out=folder)
    >>> texts = ["water the roses", "trim the hedge", "is the lawn dry"]
    >>> _ = everlearn.load(folder).update([Record(text, "garden") for text in texts])
    >>> [(version.version, version.new_classes) for version in versions(folder)]
    [(2, ['garden'])]
    """
    folder = Path(folder)
    read_config(folder)
    place = _place(folder)
    states = {number: checkpoint.read_state(place / _name(number)) for number in numbers(folder)[1:]}
    return [Version(_checked(state, number, place)["record"], folder) for number, state in states.items()]


def header(number: int, previous: int, data: str) -> dict[str, Any]:
    """How the record of a new version begins: its number, that of the version it is made from, when it is made and from
    which data."""
    return {
        "version": number, "previous": previous, "everlearn": version_of("everlearn"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "data": printable(data, 4096),
    }  # fmt: skip


def kept_of(
    method: Method, record: dict[str, Any], tasks: list[dict[str, Any]], held_out: dict[str, Tensor]
) -> checkpoint.Checkpoint:
    """What a new version keeps: the state of the method, its record, the tasks that it has learned, and what is held
    out."""
    state = {
        "backbone": method.backbone.settings, "rounding": rounding(), "record": record,
        "origin": checkpoint.origin_hash(method), "temperature": record["temperature"], "tasks": tasks,
    }  # fmt: skip
    return checkpoint.Checkpoint(state, checkpoint.method_state(method), {}, held_out)


def add(folder: Path, saved: checkpoint.Checkpoint) -> None:
    """Write a version and let it answer. The caller holds the folder's lock.

    Raises:
        EverlearnError: it cannot be written; the version before answers.
    """
    place, number = _place(folder), saved.state["record"]["version"]
    if place.is_symlink():
        raise EverlearnError(f"{place} is a link, and an update writes only into its run's folder: replace it by the "
                             "folder that it points to")  # fmt: skip
    place.mkdir(exist_ok=True)
    for left in place.iterdir():
        if LEFT.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
    checkpoint.save(place, _name(number), saved)
    _set(folder, number)


def numbers(folder: Path) -> list[int]:
    """The numbers of all versions, from 1, the run itself."""
    found = ((NAME.fullmatch(path.name), path) for path in _place(folder).glob("version-*"))
    return [1, *sorted(int(name[1]) for name, path in found if name and path.is_dir() and not path.is_symlink())]


def chain(folder: Path, number: int) -> list[Version]:
    """The versions that led from the run itself to a version, oldest first, with that version itself.

    Raises:
        EverlearnError: one of them is not there, or its record is damaged.
    """
    found = {version.version: version for version in versions(folder)}
    led: list[Version] = []
    while number > 1:
        if number not in found:
            raise EverlearnError(f"version {number} of {folder}, from which later ones were made, is not there: put "
                                 "its folder back")  # fmt: skip
        led.insert(0, found[number])
        number = found[number].previous
    return led


def index_of(folder: Path, number: int) -> Path:
    """Where the index of the documents is kept that the version of a retriever has learned."""
    return _place(folder) / f"{_name(number)}.index"


def new_number(folder: Path) -> int:
    """The number of the next version: a number is never used twice, also after going back."""
    return numbers(folder)[-1] + 1


def rollback(directory: str | Path) -> tuple[int, int]:
    """Let the version answer that the current one was made from.

    Returns:
        The number of the version until now, and that of the version that answers now. Nothing is removed.

    Raises:
        EverlearnError: it is not a run's folder, its current version is the first, the run itself cannot answer any
            more, or another process learns there. The current version still answers.

    >>> import everlearn, tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> few = {"name": "clinc150", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 1}
    >>> _ = everlearn.run("simplecil", few, backbone="tiny", out=folder)
    >>> rows = everlearn.streams.from_rows(["water the roses", "trim the hedge", "is the lawn dry"], ["garden"] * 3)
    >>> _ = everlearn.load(folder).update(rows)
    >>> [version.version for version in versions(folder)], len(everlearn.load(folder).class_names)
    ([2], 151)
    >>> rollback(folder), len(everlearn.load(folder).class_names)
    ((2, 1), 150)
    """
    folder = Path(directory)
    read_config(folder)  # before the lock, which would make the folder
    with alone(folder, UPDATING):
        number = current(folder)
        if number == 1:
            raise EverlearnError(f"{folder} is at version 1, the run itself, and no version is before it")
        place = _place(folder)
        state = _checked(checkpoint.read_state(place / _name(number)), number, place)
        previous: int = state["record"]["previous"]
        if previous not in numbers(folder):
            raise EverlearnError(f"version {previous} of {folder}, which version {number} was made from, is not there: "
                                 f'put its folder back, or write {{"version": 1}} into {place / "current.json"} to go '
                                 "back to the run itself")  # fmt: skip
        if previous == 1:
            load(folder, 1)  # no version is before it, and no command goes forward again: it must be able to answer
        _set(folder, previous)
    return number, previous


def describe(version: Version) -> str:
    """What an update did, in lines for the terminal.

    >>> record = dict(version=2, previous=1, data="may.csv", learned=8, new_classes=["garden"], notes=[],
    ...               old=dict(examples=20, before=0.9, after=0.85), new=dict(examples=2, before=0.0, after=1.0))
    >>> print(describe(Version(record, Path("run"))))
    version 2 of run, made from version 1: learned 8 examples of may.csv
                     examples  before   after
    old tasks              20    90.0    85.0
    new data                2     0.0   100.0
    accuracy in % on held-out examples; a class that was not known before counts as wrong
    new classes: garden
    """
    merged = version.record.get("merged")
    did = f"merged ({merged['how']}) with" if merged else (
        f"learned {version.learned:,} {'pairs' if 'retrieval' in version.record else 'examples'} of")  # fmt: skip
    lines = [f"version {version.version} of {version.directory}, made from version {version.previous}: {did} "
             f"{version.data}",
             f"{'':<16} {'queries' if 'retrieval' in version.record else 'examples':>8}  before   after"]  # fmt: skip
    names = ("the first run", "the others") if merged else ("old tasks", "new data")
    for name, change in zip(names, (version.old, version.new), strict=True):
        scores = (
            f"{'-':>8}" if score is None else f"{100 * score:8.1f}" for score in (change["before"], change["after"])
        )
        lines.append(f"{name:<16} {change['examples']:>8,}{''.join(scores)}")
    if "retrieval" in version.record:
        lines += ["nDCG@10 in % on held-out queries", *_index_lines(version.retrieval)]
    else:
        lines.append("accuracy in % on held-out examples; a class that was not known before counts as wrong")
    lines += [f"new classes: {', '.join(version.new_classes)}"] if version.new_classes else []
    return "\n".join(printable(line, 2000) for line in [*lines, *version.notes])


def _index_lines(retrieval: dict[str, Any]) -> list[str]:
    """What becomes of the old indexes."""
    verdict, stale = retrieval["verdict"], retrieval["stale_documents"]
    cost = f"{stale:,} of {retrieval['documents']:,} documents are embedded otherwise than before" if stale else (
        "documents are embedded as before, so that none has to be encoded again")  # fmt: skip
    return [f"index: {verdict['answer']}: {verdict['reason']}" if verdict else "index: no verdict", cost]


def _set(folder: Path, number: int) -> None:
    write_whole(_place(folder) / "current.json", json.dumps({"version": number}))


def _checked(state: dict[str, Any], number: int, place: Path) -> dict[str, Any]:
    file = place / _name(number) / "state.json"
    remedy = f"remove {file.parent}, and update again"
    checked: dict[str, Any] = valid(state, VersionState, file, remedy)
    if checked["record"]["version"] != number:
        raise EverlearnError(f"{file} is of version {checked['record']['version']}: {remedy}")
    return checked


def _place(folder: Path) -> Path:
    return folder / "versions"


def _name(number: int) -> str:
    return f"version-{number:04d}"
