"""What a stream holds, texts or images, as far as that is seen without reading its rows."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.streams.packaged import PACKAGED

IMAGE_NAMES = ("image", "img")


def input_of(section: Mapping[str, Any]) -> str:
    """`image` where the settings of a stream name a folder, an image column or a file with a column of images; `text`
    otherwise. It chooses settings only: whatever is wrong with the data is said where they are read.

    >>> input_of({"name": "digits"}), input_of({"name": "clinc150"})
    ('image', 'text')
    """
    name = str(section.get("name"))
    if name in PACKAGED:
        return "image" if name == "digits" else "text"
    if section.get("image_column"):
        return "image"
    if section.get("text_column"):
        return "text"
    with contextlib.suppress(OSError, ValueError):
        if Path(name).is_dir():
            return "image"
        names = [column.strip().lower() for column in _columns(Path(name))]
        return "image" if any(column in IMAGE_NAMES for column in names) else "text"
    return "text"


def _columns(path: Path) -> list[str]:
    """The names of the columns of a table, as far as its first kilobytes tell them."""
    for file in (path, *path.parent.glob(f"{glob.escape(path.name)}_train.*")):
        if not file.is_file():
            continue
        if file.suffix.lower() == ".parquet":
            import pyarrow.parquet

            with contextlib.suppress(Exception):  # a damaged file is reported where it is read
                return [str(name) for name in pyarrow.parquet.read_schema(file).names]
        with open(file, "rb") as opened:
            first = opened.read(4096).splitlines()[:1]
        return re.findall(r"[\w ]+", b"".join(first).decode("utf-8", "replace"))
    return []
