"""state.json of a checkpoint and of a version, and current.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

from everlearn.schemas.results import Answer
from everlearn.schemas.retrieval import Retrieval
from everlearn.schemas.values import (
    CLOSED,
    STRICT,
    Count,
    Digest,
    Name,
    Number,
    Plain,
    Positive,
    Score,
    Scores,
    Seconds,
)


class Row(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    scores: list[Score]
    others: dict[str, list[Number | None]]
    all: Score
    before: Score | None
    unseen: NotRequired[Score | None]
    general: NotRequired[Score | None]
    answer: NotRequired[Answer | None]
    stored_bytes: NotRequired[Count]


class MeasuredSoFar(TypedDict):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    rows: list[Row]
    seconds: list[dict[str, Seconds]]
    initial: Scores
    before: Score | None
    recall_before: NotRequired[Score | None]
    untouched: NotRequired[Scores]
    general: NotRequired[Score | None]
    trainable: Count
    passes: NotRequired[Count]
    encoded: NotRequired[Count]
    served: NotRequired[Count]
    encode_seconds: NotRequired[Seconds]
    pretrained_seconds: NotRequired[Seconds]
    warned: list[str]


class TaskMetadata(TypedDict):
    """A task without its data, as `Task.metadata` gives it."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    index: Count
    name: str
    classes: list[Count]
    class_names: list[Name]
    input: str
    goal: Literal["classes", "ranking"]
    batch_size: Annotated[int, Field(ge=1)] | None
    augment: bool


class OptimizerState(TypedDict):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    groups: list[Plain]
    slots: dict[str, int | float | bool | None]


class TrainingState(TypedDict):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    optimizer: OptimizerState
    schedule: Plain


class FileCheck(TypedDict):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    bytes: Count
    sha256: Digest


def _consistent(state: Any) -> Any:
    """The tasks, the scores and the position belong together."""
    done, tasks = state["task"], state["tasks"]
    if len(tasks) != done + bool(state["step"]) or [task["index"] for task in tasks] != list(range(len(tasks))):
        raise ValueError(f"there are {len(tasks)} tasks for position {done}, step {state['step']}")
    if len(state["measured"]["rows"]) != done:
        raise ValueError(f"there are {len(state['measured']['rows'])} rows of scores for {done} tasks")
    for i, row in enumerate(state["measured"]["rows"]):
        if any(len(scores) != i + 1 for scores in [row["scores"], *row["others"].values()]):
            raise ValueError(f"the scores after task {i + 1} are not those of {i + 1} tasks")
    if len(state["measured"]["seconds"]) != len(tasks):
        raise ValueError(f"there are seconds of {len(state['measured']['seconds'])} tasks, not of {len(tasks)}")
    _check_classes(tasks)
    if bool(state["training"]) != bool(state["step"]):
        raise ValueError("there is a state of the training exactly where a task has begun")
    return state


def _check_classes(tasks: Any) -> None:
    """Each task continues the classes of those before it."""
    known: list[str] = []
    for task in tasks:
        names = task["class_names"]
        if (
            names[: len(known)] != known
            or len(set(names)) != len(names)
            or not set(task["classes"]) <= set(range(len(names)))
        ):
            raise ValueError(f"the classes of task {task['index'] + 1} do not continue those before it")
        known = names


class Container(TypedDict):
    """What every state.json says of the files beside it."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]
    format: int
    files: dict[str, FileCheck]


class _Kept(TypedDict):
    """What the state.json of a checkpoint and that of a version have in common."""

    format: int
    files: dict[str, FileCheck]
    backbone: Plain
    rounding: str
    origin: str
    tasks: list[TaskMetadata]


class _State(_Kept):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    task: Count
    step: Count
    measured: MeasuredSoFar
    training: TrainingState | dict[str, Any]
    fingerprint: str
    temperature: NotRequired[Positive | None]


State = Annotated[_State, AfterValidator(_consistent)]
"""state.json of a run's checkpoint, without its own digest."""


class Change(TypedDict):
    """Accuracy on held-out examples, or nDCG@10 on held-out queries, before and after an update; none where there are
    no examples."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    examples: Count
    before: Score | None
    after: Score | None


class Merged(TypedDict):
    """How a version was made of several runs: exact, or a way to average weights, with the weights of the runs."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    how: Literal["exact", "average", "fisher", "ties", "dare", "interpolate"]
    weights: list[Number] | None


class VersionRecord(TypedDict):
    """What an update did."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    version: Annotated[int, Field(ge=2, lt=10**9)]
    previous: Annotated[int, Field(ge=1, lt=10**9)]
    everlearn: str
    date: str
    data: Name
    sha256: Digest
    learned: Count
    held_out: Count
    calibration: Count
    new_classes: list[Name]
    old: Change
    new: Change
    temperature: Positive | None
    seconds: Seconds
    notes: list[str]
    retrieval: NotRequired[Retrieval]
    merged: NotRequired[Merged]


def _continued(state: Any) -> Any:
    _check_classes(state["tasks"])
    if [task["index"] for task in state["tasks"]] != list(range(len(state["tasks"]))):
        raise ValueError("the tasks are not numbered in order")
    if state["record"]["previous"] >= state["record"]["version"]:
        raise ValueError("the version was made from a later one")
    return state


class _VersionState(_Kept):
    __pydantic_config__ = CLOSED  # type: ignore[misc]
    temperature: Positive | None
    record: VersionRecord


VersionState = Annotated[_VersionState, AfterValidator(_continued)]
"""state.json of a version that an update has made, without its own digest."""


class Current(TypedDict):
    """current.json: the version that answers."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]
    version: Annotated[int, Field(ge=1, lt=10**9)]
