"""Cells: converts single values of a data set, or says why a value cannot be used."""

from __future__ import annotations

import math
from numbers import Integral
from pathlib import Path
from typing import Any

from everlearn.errors import CONTROL, printable
from everlearn.streams.limits import LONGEST_NAME
from everlearn.streams.records import SPLIT_NAMES
from everlearn.strict import SURROGATES


class BadCell(Exception):
    """A cell that cannot be used. The arguments are the cause and the remedy."""


def is_missing(value: Any) -> bool:
    """Whether the value is None, NaN or a blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    """A text. It may hold any character."""
    if is_missing(value):
        raise BadCell("the text is empty", "fill it in")
    if not isinstance(value, str):
        raise BadCell(f"the text is a {type(value).__name__}", "write it as a string")
    if SURROGATES.search(value):
        raise BadCell("the text is not valid Unicode", "write it in UTF-8")
    return value


def as_image(value: Any, folder: Path) -> bytes | Path:
    """The bytes of an image, or its path. A relative path is resolved from the folder of the file that holds it."""
    if isinstance(value, dict):  # how `datasets` stores an image
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.strip():
        return folder / value
    if isinstance(value, Path) or (isinstance(value, bytes) and value):
        return value
    raise BadCell("there is no image", "give the bytes or the path of an image file")


def as_label(value: Any, names: list[str]) -> str:
    if is_missing(value) or (isinstance(value, str) and value.strip().lower() == "nan"):
        raise BadCell("the label is missing", "fill it in")
    if isinstance(value, (list, tuple, dict)):
        raise BadCell(f"the label is a {type(value).__name__}", "give one class per row, of several the main one")
    return as_name(value, names, "label")


def as_name(value: Any, names: list[str], what: str = "name") -> str:
    """The name of a class or domain, or an id. An integer is an index into the declared names.

    Names are shown in reports and terminals, so they hold no control characters.

    >>> as_name(1, ["cat", "dog"]), as_name(7.0, []), as_name(" dog ", [])
    ('dog', '7', 'dog')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns integers into floats if the column has missing values
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
        if not -(2**63) <= value < 2**64:
            raise BadCell(f"the {what} is a number that does not fit 64 bits", "write it as a string")
        if names and not 0 <= value < len(names):
            raise BadCell(f"{value} is not the index of one of the {len(names)} declared names", "correct the number")
        return names[value] if names else str(value)
    if (isinstance(value, bool) and what == "label") or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        kind = str(value) if isinstance(value, float) else f"a {type(value).__name__}"
        raise BadCell(f"the {what} is {kind}", "write it as a string")
    check_name(value, what)
    return value.strip()


def check_name(name: str, what: str) -> None:
    """Raise BadCell for a name that holds a control character, is not Unicode, or is absurdly long."""
    if len(name) > LONGEST_NAME:
        raise BadCell(f"the {what} has {len(name):,} characters", f"write at most {LONGEST_NAME:,}")
    if SURROGATES.search(name):
        raise BadCell(f"the {what} '{printable(name)}' is not valid Unicode", "write it in UTF-8")
    if CONTROL.search(name.strip()):
        raise BadCell(f"the {what} '{printable(name)}' holds a control character", "remove line breaks and the like")


def as_split(value: Any) -> str | None:
    if is_missing(value):
        return None
    split = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        shown = f"'{printable(value)}'" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise BadCell(f"unknown split {shown}", "write train, validation or test")
    return split


def as_id(value: Any) -> str:
    if is_missing(value):
        raise BadCell("the id is missing", "fill it in")
    return as_name(value, [], "id")
