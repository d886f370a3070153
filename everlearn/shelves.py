"""Shelves: the stored features of one backbone identity, a folder of segments in which damage is found and dropped.

What a process reads and keeps depends on what it asks for, not on what the store holds: beyond the names of the files,
it opens the segments that have come since the key index was made (`key_index.py`), and those that hold its examples.
"""

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
from everlearn.key_index import KEYS, KeyIndex, as_array, can_name, positions, write_index
from everlearn.segments import KEY_BYTES, Damaged, Segment, delete_segment, open_segment, write_segment

INDEX = "all.index"
"""The file of the key index, in the folder of a shelf."""

MANY = 64
"""So many segments are opened one by one; if more have come, the key index is made anew."""

SMALL, MOST_SMALL = 1024, 256
"""If a process has written so many segments (256) of fewer features (1,024), they are joined: one that is asked for a
text at a time would else fill the folder with files, and be slower with each."""

_NO_KEYS = np.zeros(0, KEYS)

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
    return [folder / name for name in names_in(folder)]


def names_in(folder: Path) -> list[str]:
    """As `listing`, the names alone.

    Raises:
        OSError: as `listing`.
    """
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except ValueError as error:  # a null character
        raise OSError(str(error)) from None


class Shelf:
    """The stored features of one backbone identity.

    Attributes:
        index: for each key that was asked for and is stored, the number of its row, counted through all segments that
            are open.
    """

    def __init__(self, folder: Path, width: int, about: dict[str, Any]) -> None:
        self.folder, self.width, self.about = folder, width, about
        self.index: dict[bytes, int] = {}
        self._segments: list[Segment] = []
        self._starts: list[int] = []  # the number of the first row of each segment
        self._rows = 0
        self._numbers: dict[str, int | None] = {}  # of the segments by name; None for one that is gone
        self._recent: list[int] = []  # the segments that the key index does not have
        self._sorted = _NO_KEYS, np.zeros(0, np.int64)  # the keys of these, and their rows
        self._key_index: KeyIndex | None = None
        self._indexed = True  # until an index turns out not to fit the segments
        self._small: list[Segment] = []  # that this process has written
        self._is_described = False

    def missing(self, keys: Sequence[bytes]) -> int:
        """How many different keys are missing, even after reading the segments that other processes have added.

        The features of the other keys are checked and in memory afterwards. What is damaged is dropped.
        """
        with usable(self.folder.parent, "read"):
            self._search(keys)
            if not self._numbers or not all(map(self.index.__contains__, keys)):
                self._find()
                self._search(keys)
            while not self._load(keys):
                self._find()  # another segment may hold what one that is gone held
                self._search(keys)
        return 0 if all(map(self.index.__contains__, keys)) else len(set(keys) - self.index.keys())

    def _find(self) -> None:
        """Open the segments that have come since the last time; where they are many, the key index is made anew."""
        if self.folder.is_symlink():
            raise EverlearnError(f"{printable(self.folder)} is a link, and the feature store keeps to its own folder: "
                                 "remove the link, or set EVERLEARN_CACHE to where it leads")  # fmt: skip
        stored = sorted(name.removesuffix(".keys") for name in names_in(self.folder) if name.endswith(".keys"))
        new = [name for name in stored if name not in self._numbers]
        if self._key_index is None and new and self._indexed:
            self._key_index = self._open_index()
        if self._key_index is not None:
            new = [name for name in new if name not in self._key_index.names]
        if len(new) > MANY and self._indexed:
            new = self._make_index(stored)
        damaged: list[tuple[Path, Damaged]] = []
        for name in new:
            if (number := self._open(name, damaged)) is not None:
                self._recent.append(number)
        self._drop(damaged)
        if new:
            self._sort()

    def _open(self, name: str, damaged: list[tuple[Path, Damaged]]) -> int | None:
        """The number of a segment, whose keys are checked when it is opened first; None where it is gone."""
        if name not in self._numbers:
            file = self.folder / f"{name}.keys"
            self._numbers[name] = None
            try:
                self._append(open_segment(file, self.width))
            except FileNotFoundError:
                pass  # evicted by another process in the meantime
            except Damaged as error:
                damaged.append((file, error))
        return self._numbers[name]

    def _search(self, keys: Sequence[bytes]) -> None:
        """Note in `index` the rows of those keys that open segments, or those of the key index, have."""
        unknown = [key for key in dict.fromkeys(keys) if key not in self.index]
        if not unknown:
            return
        sorted_keys, rows = self._sorted
        at = positions(as_array(unknown), sorted_keys)
        self.index.update((key, int(rows[place])) for key, place in zip(unknown, at, strict=True) if place >= 0)
        unknown = [key for key, place in zip(unknown, at, strict=True) if place < 0]
        if self._key_index is None or not unknown:
            return
        damaged: list[tuple[Path, Damaged]] = []
        try:
            for name, asked, rows in self._key_index.find(as_array(unknown)):
                if (number := self._open(name, damaged)) is None:
                    continue
                segment, start = self._segments[number], self._starts[number]
                for place, row in zip(asked.tolist(), rows.tolist(), strict=True):
                    if segment.packed[KEY_BYTES * row : KEY_BYTES * (row + 1)] != unknown[place]:
                        raise Damaged(f"{self._key_index.file.name} does not fit {segment.file.name}")
                    self.index[unknown[place]] = start + row
        except Damaged as error:
            self._drop_index(error)
            self._indexed = False  # this process opens all segments, and the next one makes the index anew
            self._recent = [number for number in self._numbers.values() if number is not None]
            self._find()
            self._sort()
            self._search(unknown)
        self._drop(damaged)

    def _load(self, keys: Sequence[bytes]) -> bool:
        """Load the segments that hold these keys. Returns whether all of them are there."""
        rows = [self.index[key] for key in keys if key in self.index]
        numbers = np.unique(np.searchsorted(self._starts, rows, "right") - 1).tolist()
        gone: set[int] = set()
        damaged: list[tuple[Path, Damaged]] = []
        for number in numbers:
            segment = self._segments[number]
            if segment.rows is not None:
                continue
            try:
                segment.load()
            except FileNotFoundError:
                gone.add(number)  # evicted by another process in the meantime
            except Damaged as error:
                gone.add(number)
                damaged.append((segment.file, error))
        if gone:
            self._numbers.update((self._segments[number].file.stem, None) for number in gone)
            whose = np.searchsorted(self._starts, list(self.index.values()), "right") - 1
            self.index = {key: row for (key, row), number in zip(self.index.items(), whose.tolist(), strict=True)
                          if number not in gone}  # fmt: skip
            self._recent = [number for number in self._recent if number not in gone]
            self._sort()
        self._drop(damaged)
        return not gone

    def _append(self, segment: Segment) -> None:
        self._numbers[segment.file.stem] = len(self._segments)
        self._segments.append(segment)
        self._starts.append(self._rows)
        self._rows += len(segment)

    def _sort(self) -> None:
        """Have the keys of the recent segments sorted for the next search."""
        parts = [(as_array([self._segments[number].packed]), self._starts[number]) for number in self._recent]
        keys = np.concatenate([_NO_KEYS, *(held for held, _ in parts)])
        rows = np.concatenate([np.zeros(0, np.int64), *(start + np.arange(len(held)) for held, start in parts)])
        order = keys.argsort(kind="stable")
        self._sorted = keys[order], rows[order]

    # -- the key index -------------------------------------------------------------------------
    def _open_index(self) -> KeyIndex | None:
        try:
            return KeyIndex(self.folder / INDEX)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self._drop_index(error)
            return None

    def _drop_index(self, error: Damaged) -> None:
        self._key_index = None
        with contextlib.suppress(OSError):  # a read-only store works too
            (self.folder / INDEX).unlink(missing_ok=True)
        _log.warning("%s", printable(f"the feature store in {printable(self.folder)} has dropped a damaged index "
                                     f"({error}); it will be made anew from the segments", 600))  # fmt: skip

    def _make_index(self, stored: Sequence[str]) -> list[str]:
        """Make the key index anew. Returns the segments that it does not have, which must be opened one by one."""
        damaged: list[tuple[Path, Damaged]] = []
        held: list[tuple[str, np.ndarray]] = []
        for name in filter(can_name, stored):
            try:
                held.append((name, as_array([open_segment(self.folder / f"{name}.keys", self.width).packed])))
            except FileNotFoundError:
                continue
            except Damaged as error:
                self._numbers[name] = None
                damaged.append((self.folder / f"{name}.keys", error))
        self._drop(damaged)
        if held:
            with contextlib.suppress(OSError, Damaged):  # a read-only store works too, one segment after the other
                write_index(self.folder / INDEX, held)
                self._key_index = KeyIndex(self.folder / INDEX)
        have = self._key_index.names if self._key_index else frozenset()
        return [name for name in stored if name not in self._numbers and name not in have]

    def _drop(self, damaged: Sequence[tuple[Path, Damaged]]) -> None:
        for file, _ in damaged:
            self._numbers[file.stem] = None
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
        start = self._rows
        self._append(segment)
        self.index.update((key, start + row) for row, key in enumerate(keys))
        self._small += [segment] if len(segment) < SMALL else []
        if len(self._small) == MOST_SMALL:
            self._join()

    def _join(self) -> None:
        """Store the features of the small segments as one, and then delete them. A process that has looked for one of
        them meanwhile takes it for evicted."""
        there, self._small = [segment for segment in self._small if segment.file.exists()], []
        if len(there) > 1:
            rows = np.concatenate([segment.rows for segment in there if segment.rows is not None])
            self.add([key for segment in there for key in segment.keys], rows)
            for segment in there:
                self._numbers[segment.file.stem], segment.rows = None, None
                with contextlib.suppress(OSError):
                    delete_segment(segment.file)

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
