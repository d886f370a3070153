"""Input: what one example consists of, whether it is a text, an image or something of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from everlearn.errors import EverlearnError, shown
from everlearn.files import read_bytes
from everlearn.streams.limits import IMAGE_BYTES


class CustomInput(Protocol):
    """What an input needs that is neither a text nor an image.

    Attributes:
        kind: which encoders can read it: "text", "image" or a name of your own.
        original: what it was made from; queries, stored features and memories use that. Itself, if nothing.
    """

    @property
    def kind(self) -> str: ...

    @property
    def original(self) -> Any: ...

    def content(self) -> bytes:
        """Its bytes, which decide what an encoder says about it."""
        ...


PLAIN = (str, bytes, Path)
Input = str | bytes | Path | CustomInput
"""A text, an encoded image (PNG, JPEG, …), the path of an image file, or a `CustomInput`."""


def kind(item: Input) -> str:
    """Which encoders can read it.

    >>> kind("a text"), kind(Path("cat.png"))
    ('text', 'image')
    """
    if isinstance(item, str):
        return "text"
    return item.kind if not isinstance(item, PLAIN) else "image"


def listed(inputs: Any) -> list[Any]:
    """The inputs as a list: of a list, an array, or a column of a table.

    Raises:
        EverlearnError: it is a single input, a whole table, or something in it is no input.

    >>> listed(("a text", "another"))
    ['a text', 'another']
    """
    if hasattr(inputs, "columns") or isinstance(inputs, dict):
        raise EverlearnError(f"a {type(inputs).__name__} is a whole table: give one of its columns, table['text']")
    if isinstance(inputs, PLAIN) or hasattr(inputs, "kind"):
        raise EverlearnError("a list of inputs is needed, and this is a single one: give [input]")
    for name in ("tolist", "to_pylist", "to_list"):  # numpy and pandas, Arrow, polars
        if hasattr(inputs, name):
            inputs = getattr(inputs, name)()
            break
    found = list(inputs)
    for position, item in enumerate(found):
        if not isinstance(item, PLAIN) and not hasattr(item, "kind"):
            raise EverlearnError(f"input {position} is {shown(item, 80)}, of type {type(item).__name__}: give texts, "
                                 "encoded images or paths of images")  # fmt: skip
    return found


def content(item: Input) -> bytes:
    """The bytes of one example: a text in UTF-8, an image as it is encoded (a path is read).

    Raises:
        DataError: there is no such image file, or it is not a regular file, too large or not readable.

    >>> content("é")
    b'\\xc3\\xa9'
    """
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, Path):
        return read_bytes(item, IMAGE_BYTES)
    return item if isinstance(item, bytes) else item.content()


def original(item: Input) -> Any:
    """What an augmented input was made from; any other input is returned as it is."""
    return item if isinstance(item, PLAIN) else item.original
