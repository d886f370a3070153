"""Cells: converts single values of a data set, or says why a value cannot be used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from everlearn.streams.records import SPLIT_NAMES


class BadCell(Exception):
    """A cell that cannot be used. The arguments are the cause and the remedy."""


def is_missing(value: Any) -> bool:
    """Whether the value is None, NaN or a blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    if is_missing(value):
        raise BadCell("the text is empty", "fill it in")
    if not isinstance(value, str):
        raise BadCell(f"the text is a {type(value).__name__}", "write it as a string")
    return value


def as_image(value: Any, folder: Path) -> bytes | Path:
    """The bytes of an image, or its path. A relative path is resolved from the folder of the file that holds it."""
    if isinstance(value, dict):  # how `datasets` stores an image
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.strip():
        return folder / value
    if isinstance(value, bytes) and value:
        return value
    raise BadCell("there is no image", "give the bytes or the path of an image file")


def as_label(value: Any, names: list[str]) -> str:
    if is_missing(value) or (isinstance(value, str) and value.strip().lower() == "nan"):
        raise BadCell("the label is missing", "fill it in")
    if isinstance(value, (list, dict)):
        raise BadCell(f"the label is a {type(value).__name__}", "give one class per row")
    return as_name(value, names)


def as_name(value: Any, names: list[str]) -> str:
    """The name of a class or domain. An integer is an index into the declared names.

    >>> as_name(1, ["cat", "dog"]), as_name(7.0, []), as_name(" dog ", [])
    ('dog', '7', 'dog')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns integers into floats if the column has missing values
    if isinstance(value, int) and not isinstance(value, bool) and names:
        if not 0 <= value < len(names):
            raise BadCell(f"{value} is not the index of one of the {len(names)} declared names", "correct the number")
        return names[value]
    return str(value).strip()


def as_split(value: Any) -> str | None:
    if is_missing(value):
        return None
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise BadCell(f"unknown split '{value}'", "write train, validation or test")
    return split


def as_id(value: Any) -> str:
    if is_missing(value):
        raise BadCell("the id is missing", "fill it in")
    return str(value).strip()
