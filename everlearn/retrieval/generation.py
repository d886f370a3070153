"""A generation of an index: vectors that are only ever appended, and a log that says which of them count.

The folder holds `index.json` (the stamp and the settings, written once), `vectors.f32` (float32 rows) and `log`, one
line for each acknowledged change: JSON, a tab, and the CRC-32 of the JSON. Rows are written before their line, so whatever a
process that is killed leaves behind is a tail that no line speaks of, and the next writer cuts it off. `saved.json`
says how long the log was when it was last flushed to the disk, so that a log that was cut shorter is found out.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import DataError, EverlearnError, printable
from everlearn.files import flush_to_disk, read_bytes, regular, write_whole
from everlearn.retrieval.stamp import Stamp
from everlearn.schemas import IndexSettings, SavedLog, valid
from everlearn.strict import from_json

FORMAT = 1
REMEDY = "take a copy of the index from before, or make it anew from its documents"
MOST_LOG = 8 * 2**30
VECTORS, LOG, SETTINGS, SAVED = "vectors.f32", "log", "index.json", "saved.json"


class Generation:
    """The state that the log of a folder tells.

    Args:
        folder: of the generation.

    Attributes:
        ids: of all rows, also of removed ones.
        alive: whether each row counts, as a bytearray.

    Raises:
        DataError: a file is missing, damaged or cut.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        told = valid(self._json(SETTINGS), IndexSettings, folder / SETTINGS, REMEDY)
        if told["format"] != FORMAT:
            raise DataError(f"{folder / SETTINGS}: an index of format {told['format']}, and this everlearn reads "
                            f"{FORMAT}: update everlearn")  # fmt: skip
        self.stamp = Stamp.of_record(told["stamp"])
        self.kind, self.settings, self.made_by = told["kind"], told["settings"], told["made_by"]
        self.ids: list[str] = []
        self.alive = bytearray()
        self._rows: dict[str, int] | None = None
        self._mapped: np.memmap[Any, np.dtype[np.float32]] | None = None
        self._log_bytes = 0
        self._read_log()
        have = self._size(VECTORS) // self._row_bytes
        if have < len(self.ids):
            raise DataError(f"{folder / VECTORS} has {have:,} of the {len(self.ids):,} vectors of the log: {REMEDY}")

    @classmethod
    def create(
        cls, folder: Path, stamp: Stamp, kind: str, settings: dict[str, Any], made_by: dict[str, str]
    ) -> Generation:
        """A new one, without documents; the folder must not exist."""
        folder.mkdir()
        told = {"format": FORMAT, "stamp": stamp.record, "kind": kind, "settings": settings, "made_by": made_by}
        for name in (VECTORS, LOG):
            (folder / name).touch()
        write_whole(folder / SETTINGS, json.dumps(told, indent=1))
        return cls(folder)

    def __len__(self) -> int:
        return sum(self.alive)

    @property
    def rows(self) -> dict[str, int]:
        """The row of each id that counts; made when it is asked for first."""
        if self._rows is None:
            self._rows = {id: row for row, id in enumerate(self.ids) if self.alive[row]}
        return self._rows

    @property
    def vectors(self) -> np.ndarray:
        """(rows, dimension), memory-mapped, of all rows."""
        if self._mapped is None or len(self._mapped) < len(self.ids):
            if not self.ids:
                return np.empty((0, self.stamp.dimension), np.float32)
            shape = (len(self.ids), self.stamp.dimension)
            self._mapped = np.memmap(self.folder / VECTORS, "<f4", "r", shape=shape)
        return self._mapped

    # -- changes -------------------------------------------------------------------------------
    def append(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add rows, which are acknowledged when this returns.

        Raises:
            EverlearnError: they cannot be written; nothing has changed.
        """
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        place = len(self.ids) * self._row_bytes
        try:
            _write(self.folder / VECTORS, place, data)
        except OSError as error:
            _cut(self.folder / VECTORS, place)
            raise self._unwritable(VECTORS, error) from None
        try:
            self._log({"add": list(ids), "crc": zlib.crc32(data)})
        except EverlearnError:
            _cut(self.folder / VECTORS, place)
            raise
        if self._rows is not None:
            self._rows.update(zip(ids, range(len(self.ids), len(self.ids) + len(ids)), strict=True))
        self.ids += ids
        self.alive += b"\x01" * len(ids)

    def remove(self, ids: Sequence[str]) -> None:
        """Let rows count no more. Raises as `append` does."""
        rows = [self.rows[id] for id in ids]
        self._log({"remove": list(ids)})
        for id, row in zip(ids, rows, strict=True):
            self.alive[row] = 0
            del self.rows[id]

    def recover(self) -> None:
        """Cut off what a process that was killed has left; only who alone writes may do so."""
        _cut(self.folder / LOG, self._log_bytes)
        _cut(self.folder / VECTORS, len(self.ids) * self._row_bytes)

    def flush(self) -> None:
        """Wait until the disk has everything."""
        for name in (VECTORS, LOG):
            flush_to_disk(self.folder / name)
        write_whole(self.folder / SAVED, json.dumps({"log_bytes": self._log_bytes}))

    def check(self) -> None:
        """Read all vectors and compare them with the checksums of the log.

        Raises:
            DataError: some differ; the message names the first document.
        """
        row = 0
        for change in self._lines():
            if added := change.get("add"):
                data = np.ascontiguousarray(self.vectors[row : row + len(added)]).tobytes()
                if zlib.crc32(data) != change["crc"]:
                    raise DataError(f"{self.folder / VECTORS}: damaged from '{printable(added[0])}' on: {REMEDY}")
                row += len(added)

    # -- the log -------------------------------------------------------------------------------
    def _log(self, change: dict[str, Any]) -> None:
        text = json.dumps(change)
        line = f"{text}\t{zlib.crc32(text.encode()):08x}\n".encode()
        try:
            _write(self.folder / LOG, self._log_bytes, line)
        except OSError as error:
            _cut(self.folder / LOG, self._log_bytes)
            raise self._unwritable(LOG, error) from None
        self._log_bytes += len(line)

    def _read_log(self) -> None:
        for change in self._lines():
            if "add" in change:
                self.ids += change["add"]
                self.alive += b"\x01" * len(change["add"])
            else:
                for id in change["remove"]:
                    row = self.rows.pop(id, None)
                    if row is None:
                        raise DataError(f"{self.folder / LOG} removes '{printable(id)}', which is not there: {REMEDY}")
                    self.alive[row] = 0
            if self._rows is not None and "add" in change:
                first = len(self.ids) - len(change["add"])
                self._rows.update(zip(change["add"], range(first, len(self.ids)), strict=True))
        if (self.folder / SAVED).exists():
            saved = valid(self._json(SAVED), SavedLog, self.folder / SAVED, REMEDY)["log_bytes"]
            if self._log_bytes < saved:
                raise DataError(f"{self.folder / LOG} has {self._log_bytes:,} bytes, and had {saved:,} when it was "
                                f"saved: {REMEDY}")  # fmt: skip

    def _lines(self) -> Any:
        """The changes, in order. A last line without its end was never acknowledged, and is left out."""
        data = read_bytes(self.folder / LOG, MOST_LOG)
        whole = data[: data.rfind(b"\n") + 1]
        self._log_bytes = len(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            text, _, crc = line.rpartition(b"\t")
            if f"{zlib.crc32(text):08x}".encode() != crc:
                raise DataError(f"{self.folder / LOG}, line {number}: the line is damaged: {REMEDY}")
            yield json.loads(text)

    def _json(self, name: str) -> Any:
        file = self.folder / name
        return from_json(read_bytes(file, 2**20), file, REMEDY)

    @property
    def _row_bytes(self) -> int:
        return 4 * self.stamp.dimension

    def _size(self, name: str) -> int:
        with regular(self.folder / name) as opened:
            return os.fstat(opened.fileno()).st_size

    def _unwritable(self, name: str, error: OSError) -> EverlearnError:
        return EverlearnError(f"{self.folder / name} cannot be written ({error.strerror}): the index is as before; make "
                              "room, or correct the permissions, and try again")  # fmt: skip


def _write(file: Path, place: int, data: bytes) -> None:
    """Write all of `data` at a place of a file."""
    descriptor = os.open(file, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, place)
            view, place = view[written:], place + written
    finally:
        os.close(descriptor)


def _cut(file: Path, size: int) -> None:
    if file.stat().st_size > size:
        os.truncate(file, size)
