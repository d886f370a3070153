"""metrics.jsonl and presentations.jsonl: what a run writes at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator
from typing_extensions import NotRequired, TypedDict

from everlearn.files import read_text
from everlearn.schemas.values import MOST_JSON, STRICT, Count, Number, Score, Seconds, valid
from everlearn.strict import from_json


class LogLine(TypedDict):
    """A line of metrics.jsonl: the loss of a step, or, where step is None, the score after a task."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    task: Count
    step: Count | None
    loss: NotRequired[Number | None]
    score: NotRequired[Score]
    seconds: NotRequired[dict[str, Seconds]]


class _PresentationsLine(TypedDict):
    """A line of presentations.jsonl: what was right and what was answered for the examples of a step."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    task: Count
    step: Count
    ids: list[str]
    labels: list[Count]
    answers: list[Count]


def _in_columns(line: Any) -> Any:
    if not len(line["ids"]) == len(line["labels"]) == len(line["answers"]):
        raise ValueError("it does not have a label and an answer for every id")
    return line


PresentationsLine = Annotated[_PresentationsLine, AfterValidator(_in_columns)]


def read_log(file: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl. A full disk, or reading while another process writes, may leave the last
    line cut off.

    Raises:
        EverlearnError: a complete line is not what a run writes.
    """
    return _complete_lines(file, LogLine)


def read_presentations(file: Path) -> list[dict[str, Any]]:
    """The complete lines of presentations.jsonl, as `read_log` reads those of metrics.jsonl.

    Raises:
        EverlearnError: a complete line is not what a run writes.
    """
    return _complete_lines(file, PresentationsLine)


def _complete_lines(file: Path, schema: Any) -> list[dict[str, Any]]:
    lines = read_text(file, MOST_JSON).splitlines(keepends=True)
    complete = [from_json(line, f"{file}, line {n}") for n, line in enumerate(lines, 1) if line.endswith("\n")]
    return cast(list[dict[str, Any]], valid(complete, list[schema], file))
