"""compare.json and tune.json: what several runs are made for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from everlearn.schemas.config import Section
from everlearn.schemas.results import Results
from everlearn.schemas.values import STRICT, Count, Name, Number, Score, read_json


class Failed(TypedDict):
    method: Name
    error: str
    seed: NotRequired[Count]


class Skipped(TypedDict):
    method: Name
    skipped: str


class Comparison(TypedDict):
    """compare.json of a comparison."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    stream: Name
    fingerprint: str
    backbone: str | None
    seed: Count
    methods: dict[str, Section]
    results: NotRequired[list[Results | Failed | Skipped]]
    recommendation: NotRequired[str]
    seeds: NotRequired[Annotated[int, Field(ge=1)]]
    gate: NotRequired[Annotated[list[Score], Field(min_length=2, max_length=2)]]


class Tuned(TypedDict):
    """tune.json: what a search searches. Its trials are runs of their own, and what it found is not read back."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    method: Section
    stream: Name
    fingerprint: str
    backbone: str | None
    seed: Count
    grid: dict[str, list[Number | Name]]


def read_comparison(file: Path) -> dict[str, Any]:
    """compare.json of a comparison.

    Raises:
        EverlearnError: it cannot be read, or is not what a comparison writes.
    """
    return read_json(file, Comparison, "compare again in a new folder")


def read_tuning(file: Path) -> dict[str, Any]:
    """What tune.json says that a search searches.

    Raises:
        EverlearnError: it cannot be read, or is not what a search writes.
    """
    return read_json(file, Tuned, "tune again in a new folder")
