"""Files and folders: written completely or not at all, and read only if they are regular files of a bearable size."""

from __future__ import annotations

import codecs
import hashlib
import json
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from everlearn.errors import DataError

MOST_BYTES = 2**30
"""The largest file that is read into memory at once."""


def read_bytes(file: str | Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file; a pipe or a device is never opened for reading, because it could block forever.

    Raises:
        DataError: there is no such file, it is not a regular file, larger than `most` bytes, or may not be read.

    >>> read_bytes("/dev/zero")
    Traceback (most recent call last):
    everlearn.errors.DataError: /dev/zero is not a regular file: give a file, not a pipe or a device
    """
    with regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > most:
            raise DataError(f"{file} has {size:,} bytes, and at most {most:,} are read: split it")
        data = opened.read(size + 1)
    if len(data) > size:
        raise DataError(f"{file} grew while it was read: try again")
    return data


def map_bytes(file: str | Path) -> mmap.mmap:
    """The content of a regular file that is not empty, read from the disk where it is asked for.

    Raises:
        DataError: there is no such file, it is empty, not a regular file, or may not be read.
    """
    with regular(file) as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


@contextmanager
def regular(file: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file of any size for reading; errors become one line.

    Raises:
        DataError: there is no such file, it is not a regular file, or it may not be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataError(f"{file} is not a regular file: give a file, not a pipe or a device")
            yield opened
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{file} is a folder: give a file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path, or an empty file to be mapped
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file} cannot be read ({reason}): check the path and its permissions") from None


def sha256_of(opened: BinaryIO) -> str:
    """The SHA-256 of what is left to read of an open file, read in parts."""
    hasher = hashlib.sha256()
    while block := opened.read(2**20):
        hasher.update(block)
    return hasher.hexdigest()


def read_text(file: str | Path, most: int = MOST_BYTES) -> str:
    """The content of a regular file in UTF-8, with or without a byte order mark, or in UTF-16 with one, as Excel
    writes it.

    Raises:
        DataError: as `read_bytes`, or it is in another encoding; the message names the line.
    """
    data = read_bytes(file, most)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: begins as UTF-16, but {error.reason} at byte {error.start:,}; save it as "
                            "UTF-8") from None  # fmt: skip
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        remedy = "save the file as UTF-8, for example with `iconv -f latin1 -t utf-8`"
        raise DataError(f"{file}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); {remedy}") from None


def write_whole(file: Path, data: str | bytes, *, flush: bool = True) -> None:
    """Write `data` to `file`. After a crash the file holds either all of it or what it held before.

    Args:
        flush: wait until the disk has the data, so that even a power failure leaves one of the two.

    Raises:
        OSError: the file cannot be written; it is unchanged.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> write_whole(file, "all of it")
    >>> file.read_text()
    'all of it'
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # what a process of this number that was killed has left
        with open(temporary, "xb") as opened:
            opened.write(data if isinstance(data, bytes) else data.encode())
        if flush:
            flush_to_disk(temporary)
        os.replace(temporary, file)
    except OSError as error:
        if error.filename is not None:
            error.filename = str(file)  # the one that the user knows
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has the file or the folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, place: Path) -> None:
    """Move the folder `new` to `place`, and remove the folder that was there; if that fails, it is put back.

    Raises:
        OSError: the folder cannot be moved there.

    >>> import tempfile
    >>> home = Path(tempfile.mkdtemp())
    >>> for name in ("new", "place"):
    ...     (home / name).mkdir()
    ...     _ = (home / name / "file").write_text(name)
    >>> replace_folder(home / "new", home / "place")
    >>> (home / "place" / "file").read_text(), len(list(home.iterdir()))
    ('new', 1)
    """
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        os.replace(place, old)
    try:
        os.replace(new, place)
    except OSError:
        if old.exists():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Gives an empty folder to be filled, which is `place` after the block: there is all of it or, after an error,
    nothing. `place` is not there yet, or is an empty folder.

    Raises:
        OSError: the folder cannot be made or moved.

    >>> home = Path(tempfile.mkdtemp())
    >>> with new_folder(home / "made") as folder:
    ...     _ = (folder / "file").write_text("all of it")
    >>> (home / "made" / "file").read_text(), len(list(home.iterdir()))
    ('all of it', 1)
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        yield made
        if place.exists():
            place.rmdir()
        replace_folder(made, place)


def append_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write more lines at the end of a JSON Lines file, which may not be a link.

    Raises:
        OSError: the file cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with open(os.open(file, flags, 0o666), "a", encoding="utf-8") as opened:
        opened.write("".join(json.dumps(line) + "\n" for line in lines))


def rewrite_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Replace all lines of a JSON Lines file at once."""
    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))
