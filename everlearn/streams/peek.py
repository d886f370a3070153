"""What a stream holds and what is asked of it, as far as that is seen without reading its rows."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.errors import DataError
from everlearn.streams.files import find_parts, find_retrieval_files
from everlearn.streams.packaged import IR_DATASETS, PACKAGED, RANKED

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "intent", "category", "class", "target")
QUERY, POSITIVE = "query", "positive"
"""The columns of pairs of texts."""
CORPUS = "_corpus"
"""How the name of a file of documents ends."""

BEIR_FILES = ("corpus.jsonl", "queries.jsonl")
LONGEST_HEADER = 2**20  # bytes


def input_of(section: Mapping[str, Any]) -> str:
    """`image` where the settings of a stream name an image column, a table with a column of images, or a folder that
    holds no table; `text` otherwise. It chooses settings only: whatever is wrong with the data is said where they are
    read.

    >>> input_of({"name": "digits"}), input_of({"name": "clinc150"})
    ('image', 'text')
    """
    name = str(section.get("name"))
    if name in PACKAGED:
        return "image" if name == "digits" else "text"
    if retrieval_format(name):
        return "text"
    if section.get("image_column"):
        return "image"
    if section.get("text_column"):
        return "text"
    with contextlib.suppress(OSError, ValueError):
        columns = _columns(Path(name))
        is_of_images = any(column.lower() in IMAGE_NAMES for column in columns)
        return "image" if is_of_images or (not columns and Path(name).is_dir()) else "text"
    return "text"


def goal_of(name: Any) -> str:
    """`ranking` where the name stands for queries and documents, `classes` otherwise.

    >>> goal_of("domains4"), goal_of("clinc150")
    ('ranking', 'classes')
    """
    return "ranking" if isinstance(name, str) and (name in RANKED or retrieval_format(name)) else "classes"


def retrieval_format(name: str) -> str | None:
    """How the queries and documents that a name stands for are written: `ir_datasets`, `two files`, `documents` (which
    have no queries), `BEIR` or `pairs`. None where it stands for something else.

    >>> retrieval_format("ir_datasets:beir/scifact"), retrieval_format("clinc150")
    ('ir_datasets', None)
    """
    if name in PACKAGED:
        return "two files" if name in RANKED else None
    if name.startswith(IR_DATASETS):
        return "ir_datasets"
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if find_retrieval_files(name):
            return "two files"
        if Path(name).stem.endswith(CORPUS) and os.path.isfile(name):
            return "documents"
        if beir_folders(name):
            return "BEIR"
        columns = _columns(Path(name))
        if QUERY in columns and POSITIVE in columns:
            return "pairs"
        one = POSITIVE in columns or (QUERY in columns and any(column.startswith("negative") for column in columns))
        if one and not any(column.lower() in LABEL_NAMES for column in columns):
            return "pairs"  # of which a column is missing
    return None


def beir_folders(name: str) -> list[Path]:
    """The folder itself if it is in the format of BEIR, or else its folders that are, by name."""

    def is_one(folder: Path) -> bool:
        return any((folder / file).is_file() for file in BEIR_FILES)

    folder = Path(name)
    if not os.path.isdir(folder) or is_one(folder):
        return [folder] if os.path.isdir(folder) else []
    return sorted(path for path in folder.iterdir() if is_one(path))


def _columns(path: Path) -> list[str]:
    """The names of the columns of a table, or of the table of training examples that belongs to this stem or folder, as
    far as its first row tells them."""
    with contextlib.suppress(DataError):  # two such tables, which is reported where they are read
        file = path if path.is_file() else find_parts(path).get("train")
        return _columns_of(file) if file else []
    return []


def _columns_of(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet

        with contextlib.suppress(Exception):  # a damaged file is reported where it is read
            return [str(name).strip() for name in pyarrow.parquet.read_schema(file).names]
        return []
    with open(file, "rb") as opened:
        data = opened.read(LONGEST_HEADER)
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = data.decode("utf-16" if utf16 else "utf-8-sig", "replace").splitlines()
    first = next((line for line in lines if line.strip()), "")
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(first)
            return [name.strip() for name in row] if isinstance(row, dict) else []
        return []
    return [name.strip() for name in re.findall(r"[\w ]+", first)]
