"""Folders that are on disk whole, or as they were before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def replace_folder(new: Path, place: Path) -> None:
    """Put the folder `new` where `place` is or was; where that fails, what was there is back.

    Raises:
        OSError: the folder cannot be put there.

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
