"""metrics.jsonl and presentations.jsonl: what a run writes at every step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator
from typing_extensions import NotRequired, TypedDict

from everlearn.files import regular
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


def read_log(file: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of metrics.jsonl, one after the other. A full disk, or reading while another process writes,
    may leave the last line cut off.

    Raises:
        EverlearnError: a complete line is not what a run writes.
    """
    return _complete_lines(file, LogLine)


def read_scores(file: Path) -> list[float]:
    """The scores after each task, of metrics.jsonl. The lines of the steps, of which there may be a million, are passed
    over, because whoever shows the progress of a run asks again and again.

    Raises:
        EverlearnError: as `read_log`.
    """
    return [line["score"] for line in _complete_lines(file, LogLine, having=b'"step": null') if "score" in line]


def read_presentations(file: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of presentations.jsonl, as `read_log` gives those of metrics.jsonl.

    Raises:
        EverlearnError: a complete line is not what a run writes.
    """
    return _complete_lines(file, PresentationsLine)


def _complete_lines(file: Path, schema: Any, having: bytes = b"") -> Iterator[dict[str, Any]]:
    # Line by line: a run that was trained for long has written more than is read at once.
    with regular(file) as opened:
        for number, line in enumerate(iter(lambda: opened.readline(MOST_JSON), b""), 1):
            if line.endswith(b"\n") and having in line:
                where = f"{file}, line {number}"
                yield cast(dict[str, Any], valid(from_json(line, where), schema, where))
