"""Shelves: the stored features of one backbone identity, a folder of segments in which damage is found and dropped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import EverlearnError, printable
from everlearn.files import write_whole
from everlearn.segments import Damaged, Segment, delete_segment, open_segment, write_segment

_log = logging.getLogger("everlearn")


@contextlib.contextmanager
def usable(root: Path, verb: str) -> Iterator[None]:
    """Inside the `with` statement an error of the operating system becomes one line about the store at `root`."""
    try:
        yield
    except OSError as error:
        raise EverlearnError(
            f"the feature store at {printable(root)} cannot be {verb} ({printable(error.strerror or error)}): correct "
            "its permissions, free disk space, or set EVERLEARN_CACHE to another folder"
        ) from error


def listing(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is no such folder. (`Path.glob` finds nothing in one it may not read.)

    Raises:
        OSError: the folder may not be read, or it is none.
    """
    try:
        return [folder / name for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
    except ValueError as error:  # a null character
        raise OSError(str(error)) from None


class Shelf:
    """The stored features of one backbone identity.

    Attributes:
        index: for each key the number of its row, counted through all segments.
    """

    def __init__(self, folder: Path, width: int, about: dict[str, Any]) -> None:
        self.folder, self.width, self.about = folder, width, about
        self.index: dict[bytes, int] = {}
        self._segments: list[Segment] = []
        self._starts: list[int] = []  # the number of the first row of each segment
        self._rows = 0
        self._known: set[str] = set()
        self._is_described = False

    def missing(self, keys: Sequence[bytes]) -> int:
        """How many different keys are missing, even after reading the segments that other processes have added.

        The features of the other keys are checked and in memory afterwards. What is damaged is dropped.
        """
        with usable(self.folder.parent, "read"):
            if not self._known or not all(map(self.index.__contains__, keys)):
                self._find()
            while any(segment.rows is None for segment in self._segments) and not self._load(keys):
                pass  # another segment may hold what one that is gone held
        return 0 if all(map(self.index.__contains__, keys)) else len(set(keys) - self.index.keys())

    def _find(self) -> None:
        """Open the segments that have come since the last time."""
        if self.folder.is_symlink():
            raise EverlearnError(f"{printable(self.folder)} is a link, and the feature store keeps to its own folder: "
                                 "remove the link, or set EVERLEARN_CACHE to where it leads")  # fmt: skip
        damaged: list[tuple[Path, Damaged]] = []
        for file in sorted(entry for entry in listing(self.folder) if entry.suffix == ".keys"):
            if file.stem in self._known:
                continue
            try:
                self._append(open_segment(file, self.width))
            except FileNotFoundError:
                continue  # evicted by another process in the meantime
            except Damaged as error:
                damaged.append((file, error))
        self._drop(damaged)

    def _load(self, keys: Sequence[bytes]) -> bool:
        """Load the segments that hold these keys. Returns whether all of them are there."""
        rows = [self.index[key] for key in keys if key in self.index]
        numbers = np.unique(np.searchsorted(self._starts, rows, "right") - 1)
        gone: list[Segment] = []
        damaged: list[tuple[Path, Damaged]] = []
        for segment in [self._segments[number] for number in numbers]:
            if segment.rows is not None:
                continue
            try:
                segment.load()
            except FileNotFoundError:
                gone.append(segment)  # evicted by another process in the meantime
            except Damaged as error:
                gone.append(segment)
                damaged.append((segment.file, error))
        if gone:
            kept = [segment for segment in self._segments if segment not in gone]
            self.index, self._segments, self._starts, self._rows = {}, [], [], 0
            for segment in kept:
                self._append(segment)
        self._drop(damaged)
        return not gone

    def _append(self, segment: Segment) -> None:
        for row, key in enumerate(segment.keys, self._rows):
            self.index.setdefault(key, row)
        self._segments.append(segment)
        self._starts.append(self._rows)
        self._rows += len(segment.keys)
        self._known.add(segment.file.stem)

    def _drop(self, damaged: Sequence[tuple[Path, Damaged]]) -> None:
        for file, _ in damaged:
            self._known.add(file.stem)
            with contextlib.suppress(OSError):  # a read-only store works too
                delete_segment(file)
        if damaged:
            what = f"{len(damaged)} damaged segments (the first: " if len(damaged) > 1 else "a damaged segment ("
            _log.warning("%s", printable(f"the feature store in {printable(self.folder)} has dropped {what}"
                                         f"{damaged[0][1]}); what it held is encoded again", 600))  # fmt: skip

    def add(self, keys: Sequence[bytes], features: np.ndarray) -> None:
        """Store one chunk completely or not at all."""
        with usable(self.folder.parent, "written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._is_described:
                write_whole(self.folder / "about.json", json.dumps(self.about))
                self._is_described = True
            segment = write_segment(self.folder, keys, features)
            try:
                segment.load()
            except (FileNotFoundError, Damaged):  # another process has already deleted it
                segment.rows = features
        self._append(segment)

    def read(self, keys: Sequence[bytes]) -> np.ndarray:
        """The feature rows of `keys`, gathered segment by segment. None may be missing."""
        out = np.empty((len(keys), self.width), np.float32)
        numbers = np.fromiter(map(self.index.__getitem__, keys), np.int64, len(keys))
        order = numbers.argsort(kind="stable")
        holders, firsts = np.unique(np.searchsorted(self._starts, numbers[order], "right") - 1, return_index=True)
        ends = [*firsts[1:], len(keys)]
        for holder, first, end in zip(holders, firsts, ends, strict=False):
            at = order[first:end]
            segment = self._segments[holder]
            assert segment.rows is not None
            out[at] = segment.rows[numbers[at] - self._starts[holder]]
            with contextlib.suppress(OSError):  # a read-only store works too, but keeps no time of last use
                os.utime(segment.features)
        return out
