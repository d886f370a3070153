"""What everlearn's own files hold, and strict readers for them.

A run's folder may come from anywhere. So each of its files is checked as a whole before anything of it is used:
types, ranges, and that the parts fit together. A file that differs is refused in one line that names the entry.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from everlearn.errors import CONTROL, EverlearnError, printable
from everlearn.files import read_bytes, read_text
from everlearn.strict import MOST_YAML, from_json, from_yaml

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
MOST_JSON = 256 * 2**20
"""Bytes of a JSON file of ours; the results of 1,000 tasks take a few MB."""


def _without_control(name: str) -> str:
    if CONTROL.search(name):
        raise ValueError("a name holds a control character")
    return name


Name = Annotated[str, StringConstraints(min_length=1, max_length=10_000), AfterValidator(_without_control)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Score = Annotated[float, Field(ge=0, le=1 + 1e-6)]
Scores = list[Score | None]
Positive = Annotated[float, Field(gt=0, le=1e30)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Plain = dict[str, Any]
"""Any JSON; whoever reads it checks it."""


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

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]
    stream: Section
    method: Section
    backbone: Name | None
    seed: Count
    saving: NotRequired[Saving]


class TaskResult(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: str
    classes: list[str]
    train: Count
    test: Count


class ReliabilityBin(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    examples: Count
    confidence: Score | None
    accuracy: Score | None


class Calibration(TypedDict):
    """How well the probabilities of the test examples tell how often they are right."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    temperature: Positive | None
    fitted_on: Count
    expected_calibration_error: Score
    without_temperature: Score
    bins: list[ReliabilityBin]


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


class FoundDocument(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    id: str
    text: str
    grade: Count


class LostQuery(TypedDict):
    """A query whose documents were found when its domain was learned, and are found less well at the end."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    task: str
    id: str
    text: str
    before: Score
    after: Score
    found_before: list[FoundDocument]
    found_after: list[FoundDocument]
    relevant: list[FoundDocument]


Pairing = Literal[
    "old queries, old index", "old queries, new index", "new queries, old index", "new queries, new index"
]


class DomainResult(TypedDict):
    """What the queries of a domain find in the index that was made when it was learned, and in one made at the end."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)  # type: ignore[misc]
    name: str
    documents: Count
    queries: Count
    moved: bool
    ndcg: dict[Pairing, Score]
    recall: dict[Pairing, Score]


class QueryScores(TypedDict):
    """nDCG@10 of every test query of a domain."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    task: str
    ids: list[str]
    when_learned: list[Score]
    at_the_end: list[Score]


class Judged(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    answer: Literal["serve", "bridge", "re-index", "roll back"]
    reason: str


class Retrieval(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    index: Literal["re-encoded", "kept"]
    domains: list[DomainResult]
    documents: Count
    stale_documents: Count
    verdict: Judged | None
    index_bytes: Count
    lost: list[LostQuery]
    queries: list[QueryScores]


class KeptQuery(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    id: str
    text: str
    relevant: Annotated[dict[str, Annotated[int, Field(ge=1, lt=2**31)]], Field(min_length=1)]


class KeptDocument(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    id: str
    text: str


def _answerable(kept: Any) -> Any:
    ids = [document["id"] for document in kept["documents"]]
    if len({*ids}) < len(ids):
        raise ValueError("two documents have the same id")
    if not all(id in {*ids} for query in kept["queries"] for id in query["relevant"]):
        raise ValueError("a query asks for a document that is not there")
    return kept


class _KeptDomain(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    documents_in_all: Count
    queries: Annotated[list[KeptQuery], Field(min_length=1)]
    documents: list[KeptDocument]


KeptDomain = Annotated[_KeptDomain, AfterValidator(_answerable)]
"""The texts of a domain, beside its index in a run's folder."""


class StampRecord(TypedDict):
    """The stamp of an index (`everlearn.retrieval.stamp`)."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    space: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    encoder: str
    dimension: Annotated[int, Field(ge=1, le=1_000_000)]
    similarity: Literal["cosine", "dot"]
    pooling: str
    prompt: str
    precision: str


class IndexSettings(TypedDict):
    """index.json of a generation of an index."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    format: int
    stamp: StampRecord
    kind: Literal["exact", "hnsw", "ivf", "lance"]
    settings: dict[str, Annotated[int, Field(ge=1, lt=2**31)]]
    made_by: dict[str, str]


class SavedLog(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    log_bytes: Count


class NearbyFile(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    file: Annotated[str, StringConstraints(pattern=r"^nearby-[0-9]+\.faiss$")]
    rows: Count
    bytes: Count
    sha256: Digest


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


class Failed(TypedDict):
    method: Name
    error: str


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
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]
    rows: list[Row]
    seconds: list[dict[str, Seconds]]
    initial: Scores
    before: Score | None
    recall_before: NotRequired[Score | None]
    untouched: NotRequired[Scores]
    general: NotRequired[Score | None]
    trainable: Count
    passes: NotRequired[Count]
    warned: list[str]


class TaskMetadata(TypedDict):
    """A task without its data, as `Task.metadata` gives it."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    index: Count
    name: str
    classes: list[Count]
    class_names: list[Name]
    input: str
    goal: Literal["classes", "ranking"]
    batch_size: Annotated[int, Field(ge=1)] | None
    augment: bool


class OptimizerState(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]
    groups: list[Plain]
    slots: dict[str, int | float | bool | None]


class TrainingState(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    optimizer: OptimizerState
    schedule: Plain


class FileCheck(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
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


class _State(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]
    format: int
    files: dict[str, FileCheck]
    task: Count
    step: Count
    measured: MeasuredSoFar
    training: TrainingState | dict[str, Any]
    fingerprint: str
    backbone: Plain
    rounding: str
    origin: str
    tasks: list[TaskMetadata]
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


class _VersionState(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]
    format: int
    files: dict[str, FileCheck]
    backbone: Plain
    rounding: str
    origin: str
    tasks: list[TaskMetadata]
    temperature: Positive | None
    record: VersionRecord


VersionState = Annotated[_VersionState, AfterValidator(_continued)]
"""state.json of a version that an update has made, without its own digest."""


class Current(TypedDict):
    """current.json: the version that answers."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    version: Annotated[int, Field(ge=1, lt=10**9)]


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run's folder.

    Raises:
        EverlearnError: it is missing, or not a run's configuration.
    """
    file = folder / "config.yaml"
    if not file.exists():
        raise EverlearnError(f"{folder} is not a run's folder: it has no config.yaml")
    return valid(from_yaml(read_text(file, MOST_YAML), file), RunConfig, file)


def read_results(file: Path) -> dict[str, Any]:
    """results.json of a run.

    Raises:
        EverlearnError: it cannot be read, or is not what a run writes.
    """
    return _read_json(file, Results, "learn the run again in a new folder")


def read_comparison(file: Path) -> dict[str, Any]:
    """compare.json of a comparison.

    Raises:
        EverlearnError: it cannot be read, or is not what a comparison writes.
    """
    return _read_json(file, Comparison, "compare again in a new folder")


def read_tuning(file: Path) -> dict[str, Any]:
    """What tune.json says that a search searches.

    Raises:
        EverlearnError: it cannot be read, or is not what a search writes.
    """
    return _read_json(file, Tuned, "tune again in a new folder")


def read_kept_domain(file: Path) -> dict[str, Any]:
    """The texts that a run keeps of a domain.

    Raises:
        EverlearnError: they cannot be read, or are not what a run writes.
    """
    return _read_json(file, KeptDomain, "learn the run again")


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


def _read_json(file: Path, schema: Any, remedy: str) -> Any:
    return valid(from_json(read_bytes(file, MOST_JSON), file, remedy), schema, file, remedy)


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)
