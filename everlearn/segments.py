"""Segments: the features of up to some thousand examples in two files, which are checked before they are used.

`NAME.f32` holds the features, one float32 row per example. `NAME.keys` holds a header (format, width, number of rows,
SHA-256 of `NAME.f32`), the 16-byte keys of the examples, and the SHA-256 of all this together with the identity of the
backbone. The features are written first and flushed, then the keys: a segment whose keys are there is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from everlearn.errors import DataError
from everlearn.files import read_bytes, write_whole

KEY_BYTES = 16

_FORMAT = b"everlrn2"
_HEADER = struct.Struct("<8sIQ32s")
SEAL_BYTES = 32
_MOST_KEYS = 2**24
"""Bytes of the largest file of keys that is read; ours have 32 KiB."""


class Damaged(Exception):
    """The files of a segment are not what was written; the message says which file, and what is wrong with it."""


class Segment:
    """One segment, whose keys have been checked. Its features are checked when `load` maps them into memory.

    Attributes:
        file: `NAME.keys`. packed: the keys, 16 bytes each, in the order of the rows.
        rows: the features (n, width); None before `load`.
    """

    def __init__(self, file: Path, packed: bytes, width: int, sha256: bytes) -> None:
        self.file, self.packed, self.width = file, packed, width
        self.rows: np.ndarray | None = None
        self._sha256 = sha256

    def __len__(self) -> int:
        return len(self.packed) // KEY_BYTES

    @property
    def keys(self) -> list[bytes]:
        """The keys one by one."""
        return [key for (key,) in struct.iter_unpack(f"{KEY_BYTES}s", self.packed)]

    @property
    def features(self) -> Path:
        """The file of the features."""
        return self.file.with_suffix(".f32")

    def load(self) -> None:
        """Map the features into memory, if they are those that were written.

        Raises:
            Damaged: they are not, or a value is not finite.
            FileNotFoundError: another process has deleted the segment.
            OSError: the file may not be read.
        """
        import torch

        size = 4 * len(self) * self.width
        try:
            check_file(self.features, size, size)
            with open(self.features, "rb"):  # whose errors say why a file may not be read
                # Unlike np.memmap, this keeps no file open: a process may have a thousand, and segments can be more.
                rows = torch.from_file(str(self.features), size=size // 4, dtype=torch.float32).numpy()
        except FileNotFoundError:
            if self.file.exists():
                raise Damaged(f"{self.features.name} is missing") from None
            raise
        except RuntimeError:  # it has become shorter, or was deleted, since it was looked at
            if not self.features.exists():
                raise FileNotFoundError from None
            raise Damaged(f"{self.features.name} is truncated") from None
        if hashlib.sha256(rows).digest() != self._sha256:
            raise Damaged(f"the digest of {self.features.name} differs")
        if not np.isfinite(rows).all():
            raise Damaged(f"{self.features.name} has values that are not finite")
        self.rows = rows.reshape(-1, self.width)


def open_segment(file: Path, width: int) -> Segment:
    """Read the keys of a segment and check them. `file` is `IDENTITY/NAME.keys`.

    Raises:
        Damaged: they are not what was written, or another version of everlearn wrote them.
        FileNotFoundError: another process has deleted the segment.
        OSError, DataError: the file may not be read.
    """
    shortest = _HEADER.size + KEY_BYTES + SEAL_BYTES
    check_file(file, shortest, _MOST_KEYS)
    try:
        packed = read_bytes(file, _MOST_KEYS)
    except DataError:
        if not file.exists():
            raise FileNotFoundError from None
        raise
    if not packed.startswith(_FORMAT):
        raise Damaged(f"{file.name} is damaged or of another version of everlearn")
    body, seal = packed[:-SEAL_BYTES], packed[-SEAL_BYTES:]
    if seal_of(file.parent.name, body) != seal:
        raise Damaged(f"the digest of {file.name} differs")
    _, own_width, count, sha256 = _HEADER.unpack_from(body)
    if own_width != width or len(body) != _HEADER.size + KEY_BYTES * count:
        raise Damaged(f"{file.name} is of another width or length")
    return Segment(file, body[_HEADER.size :], width, sha256)


def write_segment(folder: Path, keys: Sequence[bytes], features: np.ndarray) -> Segment:
    """Write a new segment completely or not at all.

    Args:
        folder: its name is the identity of the backbone.
        features: (n, width), n at least 1.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    file = folder / f"{uuid.uuid4().hex}.keys"
    rows = np.ascontiguousarray(features, "<f4").tobytes()
    segment = Segment(file, b"".join(keys), features.shape[1], hashlib.sha256(rows).digest())
    body = _HEADER.pack(_FORMAT, segment.width, len(segment), segment._sha256) + segment.packed
    try:
        write_whole(segment.features, rows)
        write_whole(file, body + seal_of(folder.name, body))
    except OSError:
        with contextlib.suppress(OSError):
            segment.features.unlink(missing_ok=True)
        raise
    return segment


def delete_segment(file: Path) -> None:
    """Delete both files of `NAME.keys`: the keys first, so that no other process finds keys without features.

    Raises:
        OSError: they may not be deleted.
    """
    file.unlink(missing_ok=True)
    file.with_suffix(".f32").unlink(missing_ok=True)


def examples_in(size: int) -> int:
    """How many examples a file of keys with `size` bytes has."""
    return max(0, size - _HEADER.size - SEAL_BYTES) // KEY_BYTES


def seal_of(identity: str, body: bytes) -> bytes:
    """The digest by which a file says that its content is whole and was made for the backbone of this identity."""
    return hashlib.sha256(identity.encode() + b"\n" + body).digest()


def check_file(file: Path, least: int, most: int) -> None:
    """Raise Damaged unless it is a regular file of `least` to `most` bytes; a pipe is never opened, as it may block."""
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(f"{file.name} is not a regular file")
    if not least <= found.st_size <= most:
        wanted = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        raise Damaged(f"{file.name} has {found.st_size:,} bytes instead of {wanted}")
