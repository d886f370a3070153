"""What is allowed in a file of everlearn's own, and the check of a whole file."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from everlearn.errors import CONTROL, EverlearnError, printable
from everlearn.files import read_bytes
from everlearn.strict import from_json

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Of what may hold no other entries."""
MOST_JSON = 256 * 2**20
"""Bytes of a JSON file of ours; the results of 1,000 tasks take a few MB."""


def _without_control(name: str) -> str:
    if CONTROL.search(name):
        raise ValueError("a name holds a control character")
    return name


LONGEST_NAME = 10_000
Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME), AfterValidator(_without_control)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Score = Annotated[float, Field(ge=0, le=1 + 1e-6)]
Scores = list[Score | None]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Plain = dict[str, Any]
"""Any JSON; whoever reads it checks it."""


def check_names(names: Iterable[str]) -> None:
    """Raise an EverlearnError for a name under which nothing can be saved, because no `Name` may be like it."""
    for name in names:
        if not name or len(name) > LONGEST_NAME or CONTROL.search(name):
            raise EverlearnError(f"the name '{printable(name)}' is empty, longer than {LONGEST_NAME:,} characters, or "
                                 "holds a control character, and what is saved under it could not be read again: "
                                 "rename it")  # fmt: skip


def valid(value: Any, schema: Any, file: object, remedy: str = "correct it, or learn the run again") -> Any:
    """`value`, if it is what `schema` says.

    Raises:
        EverlearnError: it is not; the message names the first entry that differs.
    """
    try:
        return cast(Any, _adapter(schema)).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        entry = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
        message = first["msg"].removeprefix("Value error, ")
        problem = f"the entry {printable(entry)}: {message}" if entry else message
        raise EverlearnError(f"{file} is not what this version of everlearn writes ({problem}): {remedy}") from None


def read_json(file: Path, schema: Any, remedy: str) -> Any:
    """The content of a JSON file, if it is what `schema` says.

    Raises:
        EverlearnError: it cannot be read, or is something else; the message ends with the remedy.
    """
    return valid(from_json(read_bytes(file, MOST_JSON), file, remedy), schema, file, remedy)


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)
