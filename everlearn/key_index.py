"""The index of a shelf: where the features of many segments are, found without reading the keys of all of them.

One file holds the sorted 16-byte keys of the segments that it covers, in blocks, and for each key its segment and its
row there. A search reads only the blocks that could hold what is asked for. The head of the file (format, sizes, names
of the segments, first key and SHA-256 of each block) is sealed together with the identity of the backbone and checked
when it is opened; a block is checked when it is read.

The index only says where to look. Whoever finds a key by it compares it with the key in the segment, so a wrong index
could never give a wrong feature. It can be deleted at any time, and is then made anew from the segments.
"""

from __future__ import annotations

import hashlib
import os
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from everlearn.files import write_whole
from everlearn.segments import KEY_BYTES, SEAL_BYTES, Damaged, check_file, seal_of

BLOCK = 256  # keys that are checked together
KEYS = np.dtype(f"S{KEY_BYTES}")
NAME_BYTES = 16
"""A segment that everlearn has written is called by a number of 128 bits, in hexadecimal digits."""

_FORMAT = b"everlix1"
_HEADER = struct.Struct("<8sQQ")
_PLACE = np.dtype("<u4")
_ENTRY_BYTES = KEY_BYTES + 2 * _PLACE.itemsize


def as_array(keys: Sequence[bytes]) -> np.ndarray:
    """Keys as an array that numpy sorts and searches. All have the same length, so that the zero bytes at an end, which
    numpy leaves out, make no difference."""
    return np.frombuffer(b"".join(keys), KEYS)


def positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each of the wanted keys is in a sorted array, (n,); -1 where it is not.

    >>> positions(as_array([b"c" * 16, b"x" * 16]), as_array([b"a" * 16, b"c" * 16])).tolist()
    [1, -1]
    """
    if not len(among):
        return np.full(len(wanted), -1)
    found = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    return np.where(among[found] == wanted, found, -1)


class KeyIndex:
    """An index that has been written. Its file stays open, so that it may be replaced or deleted meanwhile.

    Args:
        file: `IDENTITY/NAME.index`.

    Attributes:
        names: the segments that it covers.

    Raises:
        Damaged: it is not what was written, or another version of everlearn wrote it.
        FileNotFoundError: there is none.
        OSError: it may not be read.
    """

    def __init__(self, file: Path) -> None:
        check_file(file, _HEADER.size + SEAL_BYTES, 2**40)
        self.file = file
        self._descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        magic, self._count, named = _HEADER.unpack(self._read(0, _HEADER.size))
        blocks = -(-self._count // BLOCK)
        head = _HEADER.size + NAME_BYTES * named + (KEY_BYTES + 32) * blocks
        self._start = head + SEAL_BYTES
        if magic != _FORMAT or self._start + _ENTRY_BYTES * self._count != size:
            raise Damaged(f"{file.name} is damaged or of another version of everlearn")
        data = self._read(0, head)
        if seal_of(file.parent.name, data) != self._read(head, SEAL_BYTES):
            raise Damaged(f"the digest of {file.name} differs")
        parts = np.split(
            np.frombuffer(data, np.uint8), [_HEADER.size, head - (KEY_BYTES + 32) * blocks, head - 32 * blocks]
        )
        self._names = [name.tobytes().hex() for name in parts[1].reshape(named, NAME_BYTES)]
        self._firsts, self._digests = parts[2].view(KEYS), parts[3].reshape(blocks, 32)
        self.names = frozenset(self._names)

    def find(self, wanted: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Where the keys are that it has: for each segment its name, which of the wanted keys it has, and their rows.

        Raises:
            Damaged: a block is not what was written.
        """
        blocks = np.unique(np.searchsorted(self._firsts, wanted, "right") - 1)
        read = [self._block(number) for number in blocks.tolist() if number >= 0]  # -1: before the first key
        if not read:
            return []
        keys, places = (np.concatenate(part) for part in zip(*read, strict=True))
        at = positions(wanted, keys)
        asked = np.flatnonzero(at >= 0)
        segments, rows = places[at[asked]].T
        return [(self._names[number], asked[segments == number], rows[segments == number])
                for number in np.unique(segments).tolist()]  # fmt: skip

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The keys of a block, and (n, 2) the segment and the row of each."""
        size = min(BLOCK, self._count - BLOCK * number)
        data = self._read(self._start + _ENTRY_BYTES * BLOCK * number, _ENTRY_BYTES * size)
        if hashlib.sha256(data).digest() != self._digests[number].tobytes():
            raise Damaged(f"a digest in {self.file.name} differs")
        return np.frombuffer(data[: KEY_BYTES * size], KEYS), np.frombuffer(data[KEY_BYTES * size :], _PLACE).reshape(
            -1, 2
        )

    def _read(self, start: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, start)
        if len(data) < size:
            raise Damaged(f"{self.file.name} is truncated")
        return data


def write_index(file: Path, segments: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write the index of some segments, completely or not at all. Of a key that several hold, one place is kept.

    Args:
        segments: the name of each and its keys, in the order of its rows.

    Raises:
        OSError: it cannot be written.
    """
    keys = np.concatenate([held for _, held in segments])
    places = np.empty((len(keys), 2), _PLACE)
    places[:, 0] = np.repeat(np.arange(len(segments)), [len(held) for _, held in segments])
    places[:, 1] = np.concatenate([np.arange(len(held)) for _, held in segments])
    order = keys.argsort(kind="stable")
    keys = keys[order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]])
    keys, places = keys[first], places[order[first]]
    starts = range(0, len(keys), BLOCK)
    blocks = [keys[start : start + BLOCK].tobytes() + places[start : start + BLOCK].tobytes() for start in starts]
    head = b"".join([
        _HEADER.pack(_FORMAT, len(keys), len(segments)), *(bytes.fromhex(name) for name, _ in segments),
        keys[::BLOCK].tobytes(), *(hashlib.sha256(block).digest() for block in blocks),
    ])  # fmt: skip
    write_whole(file, b"".join([head, seal_of(file.parent.name, head), *blocks]))


def can_name(segment: str) -> bool:
    """Whether the index can hold a segment of this name."""
    return len(segment) == 2 * NAME_BYTES and not set(segment) - set("0123456789abcdef")
