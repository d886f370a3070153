"""Settings: their types with ranges, and the check of values against them.

The range of a setting stands in one place, the annotation in the signature: ``epochs: Count = 1``. It holds for
values from Python, from a file and from the command line, and help and messages print it.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval, MultipleOf

from everlearn.errors import EverlearnError, printable, unknown

Count = Annotated[int, Interval(ge=1, le=10**9)]
"""How many; nothing of this size is allocated at once."""
Natural = Annotated[int, Interval(ge=0, le=10**9)]
"""As `Count`, but may be none."""
Size = Annotated[int, Interval(ge=1, le=10_000)]
"""Rows or columns of new parameters, for example the tokens of a prompt."""
SizeOrZero = Annotated[int, Interval(ge=0, le=10_000)]
EvenSize = Annotated[int, Interval(ge=2, le=10_000), MultipleOf(2)]
"""Tokens of which half are keys and half are values."""
LargeSize = Annotated[int, Interval(ge=1, le=100_000)]
"""Rows or columns of a single table. A head that keeps the square of it needs 40 GB or more at the upper end."""
LargeSizeOrZero = Annotated[int, Interval(ge=0, le=100_000)]
LargeCount = Annotated[int, Interval(ge=1, le=10_000_000)]
"""Rows of a table that grows only as far as there are data."""
Index = Annotated[int, Interval(ge=0, le=999)]
"""Number of a block, from 0."""
Rate = Annotated[float, Interval(gt=0, le=1000)]
"""A learning rate."""
Minutes = Annotated[float, Interval(gt=0, le=10**6)]
Strength = Annotated[float, Interval(ge=0, le=10**9)]
"""Weight of a term of the loss; 0 leaves it out."""
Factor = Annotated[float, Interval(ge=1e-6, le=10**6)]
"""A number that the formula multiplies or divides by: far enough from zero for float32."""
Power = Annotated[float, Interval(gt=0, le=10)]
"""An exponent."""
Share = Annotated[float, Interval(ge=0, le=1)]
HeldOut = Annotated[float, Interval(ge=0, lt=1)]
"""A share that leaves something."""
Shrinkage = Annotated[float, Interval(ge=1e-6, le=1)]
"""Weight of the spherical part of a covariance. With less, float64 cannot invert every covariance."""
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
SplitSeed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
"""A seed of numpy's RandomState, which published splits and class orders are drawn from."""

NOUNS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("a text", "texts"),
         bool: ("true or false", "true or false"), NoneType: ("none", "none")}  # fmt: skip
OUTSIDE = ("greater_than", "less_than", "multiple_of", "finite_number")
"""How the names of pydantic's errors about ranges begin."""


@dataclass(frozen=True)
class Argument:
    """One keyword argument of a method or stream: its type, default and description in the docstring."""

    type: Any
    type_name: str
    default: Any
    help: str


def arguments(function: Callable[..., Any]) -> dict[str, Argument]:
    """The keyword-only arguments of a function or class, in order; `**kwargs` adds those of the base class.

    >>> def load(name, *, tasks: int = 10): ...
    >>> arguments(load)["tasks"].default
    10
    """
    owners = [c for c in function.__mro__ if "__init__" in vars(c)] if isinstance(function, type) else [function]
    found: dict[str, Argument] = {}
    for owner in owners:
        target = vars(owner)["__init__"] if isinstance(owner, type) else owner
        parameters = inspect.signature(target).parameters.values()
        named = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY and p.annotation is not p.empty}
        # Other annotations may name types that are imported only for type checkers.
        space = vars(sys.modules[target.__module__])
        hints = get_type_hints(SimpleNamespace(__annotations__=named), space, include_extras=True)
        texts = _argument_texts(owner.__doc__ or "")
        for p in parameters:
            if p.kind is p.KEYWORD_ONLY and p.name not in found:
                type_ = hints.get(p.name, Any)
                found[p.name] = Argument(type_, described(type_), p.default, texts.get(p.name, ""))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def check(section: str, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check keyword arguments from Python against the signature of a function or class.

    Raises:
        EverlearnError: an unknown name, or a value of the wrong type or out of range.
    """
    if not values:
        return
    known, named = arguments(function), inspect.signature(function).parameters
    for name, value in values.items():
        if name not in named and not any(p.kind is p.VAR_KEYWORD for p in named.values()):
            raise unknown(f"setting of the {section}", name, known)
        if name in known:
            checked(f"{section}.{name}", value, known[name].type)


def convert(key: str, value: Any, type_: Any) -> Any:
    """As `checked`, but a text may also be the value as YAML writes it, as on the command line.

    >>> convert("method.rate", "1e-3", float)
    0.001
    """
    if isinstance(value, str) and type_ is not str:
        try:
            return checked(key, _read(key, value), type_)
        except _WrongType:
            pass  # it may be meant as a text
    return checked(key, value, type_)


def checked(key: str, value: Any, type_: Any) -> Any:
    """The value, if it has the type and is in its range. Nothing is rounded or cut: 2.0 and true are no whole
    numbers. Tuples become lists, as in YAML.

    Raises:
        EverlearnError: it has another type or is out of range; the message says what to give.

    >>> checked("method.batch_size", -1000, Count)
    Traceback (most recent call last):
    everlearn.errors.EverlearnError: method.batch_size: -1000 is out of range: give a whole number from 1 to 1,000,000,000
    """  # noqa: E501
    from pydantic import PydanticUserError, ValidationError

    try:
        found = _adapter(type_).validate_json(json.dumps(value, default=os.fspath))
        return list(found) if isinstance(found, tuple) else found
    except ValidationError as error:
        kinds = [detail["type"] for detail in error.errors(include_url=False, include_input=False)]
    except PydanticUserError:
        raise EverlearnError(f"{key}: the annotation {_name(type_)} cannot be checked: annotate the setting with a "
                             "plain type, such as int or str") from None  # fmt: skip
    except (TypeError, ValueError, RecursionError):  # no value that a configuration can hold
        kinds = ["less_than"] if isinstance(value, int) else []  # a whole number of thousands of digits
    shown, wanted = _shown(value), described(type_)
    if any(kind.startswith(OUTSIDE) for kind in kinds):
        raise EverlearnError(f"{key}: {shown} is out of range: give {wanted}")
    raise _WrongType(f"{key}: {shown} is not of type {_name(type_)}: give {wanted}")


def _shown(value: Any) -> str:
    try:
        return printable(repr(value))
    except Exception:  # Python refuses to write a number of thousands of digits
        return f"a value of type {type(value).__name__}"


class _WrongType(EverlearnError):
    """The value has another type, whatever its range."""


@cache
def _adapter(type_: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(type_, config=ConfigDict(strict=True, allow_inf_nan=False))


def _read(key: str, text: str) -> Any:
    """The value that a text of the command line stands for; the text itself if it is not YAML."""
    from everlearn.strict import from_yaml

    if text.lower() == "none":
        return None
    try:
        return from_yaml(text, key) if text.strip() else text
    except EverlearnError:
        return text


def described(type_: Any, several: bool = False) -> str:
    """The type in words, with its range: what to give.

    >>> described(Count | None), described(tuple[Index, ...])
    ('a whole number from 1 to 1,000,000,000 or none', 'a list of whole numbers from 0 to 999')
    """
    origin, parts = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return " ".join([described(parts[0], several), *filter(None, map(_range, parts[1:]))])
    if origin in (Union, UnionType):
        return " or ".join(described(part, several) for part in parts)
    if origin is Literal:
        return ("one of " if len(parts) > 1 else "") + ", ".join(map(repr, parts))
    if origin in (list, tuple):
        return f"a list of {described(parts[0], several=True)}"
    return NOUNS[type_][several] if type_ in NOUNS else "any value" if type_ is Any else _name(type_)


def _range(constraint: Any) -> str:
    """'from 1 to 10', or what else a constraint of annotated_types says; '' for anything else."""
    bounds = {word: getattr(constraint, word, None) for word in ("gt", "ge", "lt", "le", "multiple_of")}
    if bounds["ge"] is not None and bounds["le"] is not None:
        return f"from {bounds['ge']:,} to {bounds['le']:,}"
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "at most", "multiple_of": "in steps of"}
    return " and ".join(f"{words[word]} {bound:,}" for word, bound in bounds.items() if bound is not None)


def _name(type_: Any) -> str:
    """The type as in Python, without ranges."""
    origin, parts = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return _name(parts[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_name, parts))
    if parts:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(map(_name, parts))}]"
    if type_ in (None, NoneType, Ellipsis):
        return "..." if type_ is Ellipsis else "None"
    return type_.__name__ if isinstance(type_, type) else repr(type_)


def _argument_texts(docstring: str) -> dict[str, str]:
    """The description of each argument in the Args section of a docstring, on one line."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    if not section:
        return {}
    entries = re.findall(r"^    (\w+)[^:\n]*:((?:.*)(?:\n {5,}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def told(value: float | str) -> str:
    """A value of a setting as people read it.

    >>> told(0.001), told("lp-ft")
    ('0.001', 'lp-ft')
    """
    return value if isinstance(value, str) else f"{value:g}"


def as_options(kind: str, section: Mapping[str, Any]) -> list[str]:
    """The settings of a section of a configuration as words of the command line; none where its data were in memory.

    >>> as_options("stream", {"name": "may.csv", "tasks": 4, "label_column": "intent"})
    ['--stream', 'may.csv', '--stream.tasks', '4', '--stream.label_column', 'intent']
    """
    if "in_memory" in section:
        return []
    words: list[str] = []
    for key, value in section.items():
        option = f"--{kind}" if key == "name" else f"--{kind}.{key}"
        words += [option, value if isinstance(value, str) else json.dumps(value)]
    return words
