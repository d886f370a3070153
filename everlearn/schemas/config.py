"""config.yaml of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints
from typing_extensions import NotRequired, TypedDict

from everlearn.errors import EverlearnError
from everlearn.files import read_text
from everlearn.schemas.values import CLOSED, Count, Name, valid
from everlearn.strict import MOST_YAML, from_yaml


class Section(TypedDict):
    """The stream or the method of a configuration: its name, and its settings, which are checked by its signature."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    name: Annotated[str, StringConstraints(min_length=1, max_length=4_096)]


class Saving(TypedDict):
    save_minutes: Annotated[float, Field(gt=0, le=1e9)]
    save_steps: Annotated[int, Field(gt=0)] | None
    keep: NotRequired[Count]
    validate: NotRequired[bool]


class RunConfig(TypedDict):
    """config.yaml of a run."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    stream: Section
    method: Section
    backbone: Name | None
    seed: Count
    saving: NotRequired[Saving]


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run's folder.

    Raises:
        EverlearnError: it is missing, or not a run's configuration.
    """
    file = folder / "config.yaml"
    if not file.exists():
        raise EverlearnError(f"{folder} is not a run's folder: it has no config.yaml")
    return valid(from_yaml(read_text(file, MOST_YAML), file), RunConfig, file)
