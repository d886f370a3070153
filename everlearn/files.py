"""Files and folders that are on disk completely, or as they were before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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
        temporary.write_bytes(data if isinstance(data, bytes) else data.encode())
        if flush:
            flush_to_disk(temporary)
        os.replace(temporary, file)
    finally:
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


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON Lines file. A full disk, or reading while another process writes, may
    leave the last line cut off."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write more lines at the end of a JSON Lines file."""
    with open(file, "a", encoding="utf-8") as opened:
        opened.write("".join(json.dumps(line) + "\n" for line in lines))


def rewrite_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Replace all lines of a JSON Lines file at once."""
    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))
