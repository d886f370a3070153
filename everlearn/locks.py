"""Locks: one process at a time writes in a folder. However a process ends, the system frees its locks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from everlearn.errors import EverlearnError


class Busy(EverlearnError):
    """Another process writes in the folder; the message says what it does there."""


def alone(folder: Path, doing: str = "learning", patience: float = 0.0) -> AbstractContextManager[Any]:
    """A context within which no other process, and nobody else in this one, is `doing` something in the folder.

    Args:
        patience: seconds to wait for the other process to end.

    Raises:
        Busy: there is one still.
        EverlearnError: the lock cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with alone(folder), alone(folder):  # doctest: +ELLIPSIS
    ...     pass
    Traceback (most recent call last):
    everlearn.locks.Busy: another process is learning in ...: wait until it ends, or stop it
    """
    lock = folder / ".lock"
    if lock.is_symlink():  # locking would create the file that it points to
        raise EverlearnError(f"{lock} is a link, and a run writes only into its own folder: remove it")
    try:
        return FileLock(lock).acquire(timeout=patience)
    except Timeout:
        raise Busy(f"another process is {doing} in {folder}: wait until it ends, or stop it") from None
    except OSError as error:
        raise EverlearnError(f"{lock} cannot be locked ({error.strerror}): remove it, or give the folder "
                             "its permissions back") from error  # fmt: skip
