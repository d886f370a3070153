"""results.json of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from typing_extensions import NotRequired, TypedDict

from everlearn.schemas.config import RunConfig
from everlearn.schemas.retrieval import Retrieval
from everlearn.schemas.values import STRICT, Count, Name, Number, Plain, Positive, Score, Scores, Seconds, read_json


class TaskResult(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: str
    classes: list[str]
    train: Count
    test: Count


class _Bin(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    examples: Count
    confidence: Score | None
    accuracy: Score | None


def _filled(one: Any) -> Any:
    """A bin has a confidence and an accuracy where it has examples."""
    if one["examples"] and None in (one["confidence"], one["accuracy"]):
        raise ValueError("a bin of the calibration has examples, but no confidence or accuracy")
    return one


ReliabilityBin = Annotated[_Bin, AfterValidator(_filled)]


class Calibration(TypedDict):
    """How well the probabilities of the test examples tell how often they are right."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    temperature: Positive | None
    fitted_on: Count
    expected_calibration_error: Score
    without_temperature: Score
    bins: Annotated[list[ReliabilityBin], Field(min_length=1)]


class ClassResult(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: str
    examples: Count
    precision: Score | None
    recall: Score | None
    f1: Score | None
    confused_with: str | None


class ConfusedPair(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    true: str
    predicted: str
    examples: Count


class Confusion(TypedDict):
    """Which classes are taken for which at the end; the matrix only where there are few classes."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    pairs: list[ConfusedPair]
    matrix: list[list[Count]] | None


class ZeroShot(TypedDict):
    """Zero-shot accuracy on the classes that come after each task (`everlearn.unseen`)."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    untouched: Scores
    now: Scores
    retention: Number | None


class General(TypedDict):
    """The quality of embeddings on the last task, before it is learned (`everlearn.general_ability`)."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    untouched: Score
    now: Scores
    kept: Number | None


class Validation(TypedDict):
    """The score at the end on the validation examples of each task, and how many these are."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    scores: Scores
    examples: list[Count]


class Answer(TypedDict):
    """What one prediction cost after a task (`everlearn.answer_costs`)."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    milliseconds: Seconds
    encoder_passes: Annotated[float, Field(ge=0, le=1e12)]
    stored_features: Annotated[float, Field(ge=0, le=1e12)]


def _square(results: Any) -> Any:
    """Matrices, curves and tasks have the same size, and the seconds have a sum."""
    if not results["seconds"].keys() >= {"total", "encode"}:
        raise ValueError("seconds lacks total or encode")
    size = len(results["tasks"])
    if not size:
        raise ValueError("there are no tasks")
    for name, matrix in {"accuracy_matrix": results["accuracy_matrix"], **results["other_matrices"]}.items():
        if len(matrix) != size or any(len(row) != size for row in matrix):
            raise ValueError(f"{name} is not a matrix of {size} x {size} scores")
    matrix = results["accuracy_matrix"]
    if any(score is None for i, row in enumerate(matrix) for score in row[: i + 1]):
        raise ValueError("accuracy_matrix lacks a score of a task that was learned")
    for name in ("curve", "before"):
        if len(results[name]) != size:
            raise ValueError(f"{name} does not have {size} entries")
    for name in ("stored_bytes_per_task", "answer_per_task"):
        if len(results.get(name, [0] * size)) != size:
            raise ValueError(f"{name} does not have {size} entries")
    zero_shot = results.get("zero_shot")
    if zero_shot and not len(zero_shot["untouched"]) == len(zero_shot["now"]) == size:
        raise ValueError(f"zero_shot does not have {size} entries")
    if (general := results.get("general")) and len(general["now"]) != size:
        raise ValueError(f"general does not have {size} entries")
    validation = results.get("validation") or {"scores": [None] * size, "examples": [0] * size}
    if (
        not len(results.get("known", results["curve"]))
        == len(validation["scores"])
        == len(validation["examples"])
        == size
    ):
        raise ValueError(f"known or validation does not have {size} entries")
    if len(results["initial"]) not in (0, size):
        raise ValueError(f"initial does not have {size} entries")
    classes, confusion = results.get("per_class", []), results.get("confusion")
    if any(score["examples"] and score["recall"] is None for score in classes):
        raise ValueError("per_class lacks the recall of a class that was tested")
    confused = (confusion or {}).get("matrix") or []
    if confused and (len(confused) != len(classes) or any(len(row) != len(classes) for row in confused)):
        raise ValueError(f"confusion.matrix is not of {len(classes)} x {len(classes)} classes")
    return results


class _Results(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    everlearn: str
    method: Name
    stream: Name
    kind: str
    input: str
    goal: Literal["classes", "ranking"]
    backbone: str
    seed: Count
    metric: str
    tasks: list[TaskResult]
    accuracy_matrix: list[Scores]
    other_matrices: dict[str, list[list[Number | None]]]
    before: Scores
    initial: Scores
    calibration: NotRequired[Calibration | None]
    retrieval: NotRequired[Retrieval | None]
    zero_shot: NotRequired[ZeroShot | None]
    general: NotRequired[General | None]
    documents_per_second: NotRequired[Positive | None]
    per_class: NotRequired[list[ClassResult]]
    confusion: NotRequired[Confusion | None]
    curve: list[Score]
    final_accuracy: Score
    average_accuracy: Score
    forgetting: Number | None
    backward_transfer: Number | None
    forward_transfer: Number | None
    old: NotRequired[Score | None]
    new: NotRequired[Score | None]
    forgetting_proper: NotRequired[Number | None]
    known: NotRequired[Scores]
    validation: NotRequired[Validation | None]
    retention: Number | None
    gain: Number | None
    trainable_parameters: Count
    stored_bytes: Count
    stored: dict[str, Count]
    stored_bytes_per_task: NotRequired[list[Count | None]]
    answer_per_task: NotRequired[list[Answer | None]]
    seconds: dict[str, Seconds]
    seconds_per_task: list[dict[str, Seconds]]
    peak_rss_bytes: Count
    examples_encoded: Count
    examples_served: Count
    encoder_passes: NotRequired[Count]
    environment: dict[str, str | int | float | bool | None]
    warnings: list[str]
    notes: list[str]
    paper_compat: bool
    diagnostics: Plain
    fingerprint: str
    config: RunConfig


Results = Annotated[_Results, AfterValidator(_square)]
"""results.json of a run."""


def read_results(file: Path) -> dict[str, Any]:
    """results.json of a run.

    Raises:
        EverlearnError: it cannot be read, or is not what a run writes.
    """
    return read_json(file, Results, "learn the run again in a new folder")
