"""Documents in plain files: vectors that are only ever appended, and a log that says which of them count.

The folder holds `vectors.f32` (float32 rows) and `log`, one line for each acknowledged change: JSON, a tab, and the
CRC-32 of the JSON. Rows are written before their line, so whatever a process that is killed leaves behind is a tail
that no line speaks of, and the next writer cuts it off. `saved.json` says how long the log was when it was last flushed
to the disk, so that a log that was cut shorter is found out.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import DataError, EverlearnError, printable, remedy_for
from everlearn.files import flush_to_disk, map_bytes, regular, write_whole
from everlearn.retrieval.generation import REMEDY, Generation
from everlearn.retrieval.nearby import Nearby
from everlearn.retrieval.stamp import Stamp
from everlearn.schemas.retrieval import SavedLog

VECTORS, LOG, SAVED = "vectors.f32", "log", "saved.json"
MOST_LOG = 8 * 2**30
OR_BEFORE = "`everlearn index restore` goes back to the last save, or make the index anew from its documents"


class LoggedGeneration(Generation):
    """Documents in plain files.

    Args:
        folder: of the generation.
        as_saved: leave out what was added or removed after the last save.

    Attributes:
        stored_ids: of all rows, also of removed ones.
        alive: whether each row counts.

    Raises:
        EverlearnError: a file is missing, damaged or cut.
    """

    def __init__(self, folder: Path, *, as_saved: bool = False) -> None:
        super().__init__(folder)
        self.stored_ids: list[str] = []
        self.alive = bytearray()
        self._rows: dict[str, int] = {}
        self._mapped = np.empty((0, self.stamp.dimension), np.float32)
        self._saved: int = self.read_json(SAVED, SavedLog)["log_bytes"]
        self._log_bytes, self._as_saved = 0, as_saved
        self._read_log(self._saved if as_saved else MOST_LOG)
        # Mapped now and not when they are asked for: a reader goes on after another process has removed the folder.
        _ = self.stored
        self._nearby = Nearby(self)

    @staticmethod
    def begin(folder: Path, stamp: Stamp) -> None:
        for name in (VECTORS, LOG):
            (folder / name).touch()
        write_whole(folder / SAVED, json.dumps({"log_bytes": 0}))

    # -- what it holds -------------------------------------------------------------------------
    @property
    def ids(self) -> list[str]:  # type: ignore[override]
        """Of the rows that count."""
        return [id for id, alive in zip(self.stored_ids, self.alive, strict=True) if alive]

    @property
    def removed(self) -> float:  # type: ignore[override]
        """The share of rows that do not count."""
        return self.alive.count(0) / max(1, len(self.alive))

    def __len__(self) -> int:
        return self.alive.count(1)

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    @property
    def stored(self) -> np.ndarray:
        """(rows, dimension) float32, memory-mapped, of all rows."""
        if len(self._mapped) < len(self.stored_ids):
            with regular(self.folder / VECTORS) as opened:
                have = os.fstat(opened.fileno()).st_size // self._row_bytes
            if have < len(self.stored_ids):
                raise DataError(f"{self.folder / VECTORS} has {have:,} of the {len(self.stored_ids):,} vectors of the "
                                f"log: {OR_BEFORE}")  # fmt: skip
            count = len(self.stored_ids) * self.stamp.dimension
            mapped = np.frombuffer(map_bytes(self.folder / VECTORS), "<f4", count)
            self._mapped = mapped.reshape(-1, self.stamp.dimension)
        return self._mapped

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        return self.stored[[self._rows[id] for id in ids]] if ids else np.empty_like(self.stored[:0])

    def nearest(self, queries: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        alive = np.frombuffer(self.alive, np.uint8).astype(bool)
        rows, scores = self._nearby.search(self.stored, alive, queries, k)
        return [[self.stored_ids[row] for row in found] for found in rows.tolist()], scores

    # -- changes -------------------------------------------------------------------------------
    def append(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add rows, which are acknowledged when this returns.

        Raises:
            EverlearnError: they cannot be written; nothing has changed.
        """
        data = memoryview(np.ascontiguousarray(vectors, "<f4")).cast("B")
        place = len(self.stored_ids) * self._row_bytes
        self._write(VECTORS, place, data)
        try:
            self._acknowledge({"add": list(ids), "crc": zlib.crc32(data)})
        except EverlearnError:
            _cut(self.folder / VECTORS, place)
            raise
        self._count(ids)

    def remove(self, ids: Sequence[str]) -> None:
        """Let rows count no more. Raises as `append` does."""
        self._acknowledge({"remove": list(ids)})
        for id in ids:
            self.alive[self._rows.pop(id)] = 0

    def recover(self) -> None:
        for name in (VECTORS, LOG):
            # The same file may belong to another folder too, such as a copy that somebody keeps; and a reader that has
            # open what is about to be forgotten would be killed by the system if it were cut off: write to one's own.
            if (self.folder / name).stat().st_nlink > 1 or self._as_saved:
                own = self.folder / f".{name}"
                shutil.copyfile(self.folder / name, own)
                flush_to_disk(own)
                os.replace(own, self.folder / name)
        _cut(self.folder / LOG, self._log_bytes)
        _cut(self.folder / VECTORS, len(self.stored_ids) * self._row_bytes)
        self._nearby.drop_beyond(len(self.stored_ids))

    def flush(self) -> None:
        for name in (VECTORS, LOG):
            flush_to_disk(self.folder / name)
        write_whole(self.folder / SAVED, json.dumps({"log_bytes": self._log_bytes}))
        flush_to_disk(self.folder)
        self._saved = self._log_bytes

    def make_fast(self) -> None:
        self._nearby.build(self.stored)

    def check(self) -> None:
        """Read all vectors and compare them with the checksums of the log.

        Raises:
            DataError: some differ; the message names the first document.
        """
        row = 0
        for change in self._changes(self._log_bytes):
            if added := change.get("add"):
                if zlib.crc32(np.ascontiguousarray(self.stored[row : row + len(added)])) != change["crc"]:
                    raise DataError(f"{self.folder / VECTORS}: damaged from '{printable(added[0])}' on: {REMEDY}")
                row += len(added)
        self._nearby.check()

    def _count(self, ids: Sequence[str]) -> None:
        self._rows.update(zip(ids, range(len(self.stored_ids), len(self.stored_ids) + len(ids)), strict=True))
        self.stored_ids += ids
        self.alive += b"\x01" * len(ids)

    # -- the log -------------------------------------------------------------------------------
    def _acknowledge(self, change: dict[str, Any]) -> None:
        text = json.dumps(change)
        line = f"{text}\t{zlib.crc32(text.encode()):08x}\n".encode()
        self._write(LOG, self._log_bytes, memoryview(line))
        self._log_bytes += len(line)

    def _read_log(self, most: int) -> None:
        for change in self._changes(most):
            if "add" in change:
                known = len(self._rows)
                self._count(change["add"])
                if len(self._rows) < known + len(change["add"]):
                    raise DataError(f"{self.folder / LOG} adds a document that is there already: {REMEDY}")
                continue
            for id in change["remove"]:
                row = self._rows.pop(id, None)
                if row is None:
                    raise DataError(f"{self.folder / LOG} removes '{printable(id)}', which is not there: {REMEDY}")
                self.alive[row] = 0
        if self._log_bytes < self._saved:
            raise DataError(f"{self.folder / LOG} has {self._log_bytes:,} bytes, and had {self._saved:,} when it was "
                            f"saved: {REMEDY}")  # fmt: skip

    def _changes(self, most: int) -> Iterator[dict[str, Any]]:
        """What the first bytes of the log say. A last line without its end was never acknowledged, and is left out;
        it may also be one that another process is writing."""
        with regular(self.folder / LOG) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > MOST_LOG:
                raise DataError(f"{self.folder / LOG} has more than {MOST_LOG:,} bytes: {REMEDY}")
            data = opened.read(min(size, most))  # which takes memory for as many bytes as it is asked for
        at = 0
        while end := data.find(b"\n", at) + 1:
            text, _, crc = data[at : end - 1].rpartition(b"\t")
            remedy = REMEDY if at < self._saved else OR_BEFORE
            if f"{zlib.crc32(text):08x}".encode() != crc:
                raise DataError(f"{self.folder / LOG}: the line at byte {at:,} is damaged: {remedy}")
            yield _change(text, f"{self.folder / LOG}: the line at byte {at:,}")
            at = end
            self._log_bytes = max(self._log_bytes, at)

    @property
    def _row_bytes(self) -> int:
        return 4 * self.stamp.dimension

    def _write(self, name: str, place: int, data: memoryview) -> None:
        """Write all of `data` at a place of a file, or none of it."""
        try:
            descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                at = place
                while data:
                    written = os.pwrite(descriptor, data, at)
                    data, at = data[written:], at + written
            finally:
                os.close(descriptor)
        except OSError as error:
            _cut(self.folder / name, place)
            raise EverlearnError(f"{self.folder / name} cannot be written ({error.strerror}), and the index is as "
                                 f"before: {remedy_for(error)}, and try again") from None  # fmt: skip


def _change(text: bytes, where: str) -> dict[str, Any]:
    """A line of the log, which has the right checksum but may still be somebody's invention."""
    try:
        change = json.loads(text)
        ids = change["add"] if "add" in change else change["remove"]
        known = change.keys() == {"add", "crc"} or change.keys() == {"remove"}
        if known and isinstance(ids, list) and ids and all(isinstance(id, str) for id in ids):
            return change
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f"{where} is not what everlearn writes: {REMEDY}")


def _cut(file: Path, size: int) -> None:
    if file.stat().st_size > size:
        os.truncate(file, size)
