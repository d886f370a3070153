"""The file `current` of an index, which names the generation that answers, and how generations are opened and made."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from everlearn.errors import DataError, EverlearnError, printable, remedy_for
from everlearn.files import read_bytes, read_text
from everlearn.retrieval.bridge import read_bridges
from everlearn.retrieval.generation import REMEDY, SETTINGS, Generation
from everlearn.retrieval.logged import LoggedGeneration
from everlearn.schemas.retrieval import IndexSettings
from everlearn.schemas.values import valid
from everlearn.strict import from_json

CURRENT, FIRST = "current", "g000001"
GENERATION = re.compile(r"g[0-9]{6,9}")


def current(place: Path, read: Callable[[Path], Generation]) -> Generation:
    """What `read` makes of the current generation."""
    if not (place / CURRENT).exists():
        raise EverlearnError(f"{place} is not an index: it has no file '{CURRENT}'; make one with `everlearn index "
                             "create`")  # fmt: skip
    while True:
        name = read_text(place / CURRENT, 100).strip()
        if not GENERATION.fullmatch(name):
            raise DataError(f"{place / CURRENT} names no generation: {REMEDY}")
        try:
            found = read(place / name)
        except EverlearnError:
            # Between the two reads another process may have cut over to the next generation.
            if read_text(place / CURRENT, 100).strip() == name:
                raise
            continue
        if read_text(place / CURRENT, 100).strip() == name:  # or some of its files may have been removed already
            return found


def opened(folder: Path) -> Generation:
    file = folder / SETTINGS
    told = valid(from_json(read_bytes(file, 2**20), file, REMEDY), IndexSettings, file, REMEDY)
    generation = keeper(told["kind"])(folder)
    generation.bridges = read_bridges(folder, generation.stamp)
    return generation


def as_saved(folder: Path) -> Generation:
    if (folder / "documents.lance").exists():
        raise EverlearnError(f"{folder.parent} is of the kind lance, whose changes are whole or not there: there is "
                             "nothing to restore")  # fmt: skip
    generation = LoggedGeneration(folder, as_saved=True)
    with one_line(folder):
        generation.recover()
    return generation


def keeper(kind: str) -> type[Generation]:
    """The class that keeps the documents of an index of this kind."""
    if kind != "lance":
        return LoggedGeneration
    from everlearn.retrieval.lance import LanceGeneration

    return LanceGeneration


def is_unfinished(place: Path, making: str) -> bool:
    """Whether the folder is empty, or holds only what a process that was killed while it made an index has left."""
    left = {file.name for file in place.iterdir() if not file.name.startswith(f".{CURRENT}.")}
    return left <= {".lock", CURRENT, making}


def check_free(place: Path, making: str) -> None:
    """Raise an EverlearnError unless an index can be made in the folder: it is not there, or is unfinished."""
    if place.exists() and (not place.is_dir() or not is_unfinished(place, making)):
        raise EverlearnError(f"{place} exists already: give a new folder, or load the index that it holds")


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Within this context errors of the disk become one line."""
    try:
        yield
    except OSError as error:
        reason = printable(error.strerror or error)
        raise EverlearnError(f"{folder} cannot be written ({reason}), and the index is as before: {remedy_for(error)}, "
                             "and try again") from None  # fmt: skip


@contextmanager
def removed_on_failure(place: Path) -> Iterator[None]:
    """A folder to be made in this context; one that a process that was killed has left is removed first."""
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def linked(source: str, place: str) -> None:
    """The same file under another name; a copy where the disk cannot do that."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
