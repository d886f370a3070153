"""One model of several runs that learned different data: exact where the method keeps sums, else an average of weights.

The merged model is a version of a copy of the first run's folder: `predict`, `update`, `export` and `load` take it, and
`rollback` gives the first run back.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everlearn import calibration, checkpoint, merge, versions
from everlearn.engine import replay
from everlearn.errors import DataError, EverlearnError, printable, unknown
from everlearn.files import new_folder
from everlearn.fisher import diagonal_fisher
from everlearn.heads.linear import Linear
from everlearn.held_out import HeldOut
from everlearn.locks import alone
from everlearn.method import Method
from everlearn.schemas.results import read_results
from everlearn.seeds import seeded
from everlearn.streams.records import BadRows
from everlearn.streams.steps import task_from
from everlearn.streams.stream import Examples, Task
from everlearn.update import accuracy, read_data

HOW = ("average", "fisher", "ties", "dare", "interpolate")
FISHER_EXAMPLES = 200
HEAD = "head."


@dataclass(frozen=True)
class Part:
    """One of the runs: where it is, what it has learned, how the same method is built untouched, and what it holds."""

    folder: Path
    method: Method
    build: Callable[[], Method]
    saved: checkpoint.Checkpoint
    version: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its classes, in the order of its scores."""
        return self.method.task.class_names

    def held_out(self, names: Sequence[str]) -> tuple[Examples, Examples]:
        """Its held-out examples for tests and for calibration, labelled by their places among these names."""
        held_out = HeldOut.load(self.saved.held_out, len(self.names))
        place = torch.tensor([names.index(name) for name in self.names], dtype=torch.long)
        test, calibration_ = (memory.examples() for memory in (held_out.test, held_out.calibration))
        return replace(test, labels=place[test.labels]), replace(calibration_, labels=place[calibration_.labels])

    def by_class(self, tensors: merge.Weights, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors by the names of parameters, the rows of the head in the order of these names of classes."""
        return {name: merge.rows_by_class(tensor.detach(), self.names, names) if name.startswith(HEAD) else
                tensor.detach() for name, tensor in tensors.items()}  # fmt: skip


def merge_parts(
    parts: Sequence[Part], out: Path, *, how: str | None, weights: Sequence[float] | None, density: float, drop: float,
    target: float | None, validation: Examples | None,
) -> tuple[Method, dict[str, Any]]:  # fmt: skip
    """Merge the runs, and write the result as a version of a copy of the first one's folder.

    Args:
        parts: at least two.
        out: the new folder.
        how, weights, density, drop, target: as for `everlearn.model.merge`.
        validation: examples of what the first run learned, to interpolate to the target.

    Returns:
        The merged method, and the record of its version.

    Raises:
        EverlearnError: the runs do not fit together, or the folder cannot be written; nothing is written then.
    """
    started = time.monotonic()
    first, *others = parts
    _check_options(parts, how, weights, target, validation)
    for other in others:
        _check_alike(first, other)
    tasks = joined([part.saved.state["tasks"] for part in parts])
    names, known = tuple(tasks[-1]["class_names"]), len(first.names)
    samples = [part.held_out(names) for part in parts]
    old, new = samples[0][0], Examples.concatenate([test for test, _ in samples[1:]])
    before = [accuracy(first.method, examples) for examples in (old, new)]
    if first.method.is_exact:
        method, how = first.method, "exact"
        for other in others:
            method.merge(other.method)
    else:
        how, method = how or "average", first.build().to(first.method.backbone.device)
        replay(method.eval(), [Task.from_metadata(task) for task in tasks])
        method.drop_helpers()
        if how == "interpolate":
            weights = _to_target(method, parts, names, target, validation)
        _take(method, _merged(parts, names, how, weights, density, drop))
    kept = HeldOut()
    for test, for_calibration in samples:
        kept.test.add(test)
        kept.calibration.add(for_calibration)
    temperature = first.saved.state.get("temperature")
    if all(len(for_calibration) for _, for_calibration in samples):  # else it would be fitted on classes of one run
        temperature = calibration.fitted_temperature(method, kept.calibration.examples())
    changes = [{"examples": len(examples), "before": score, "after": accuracy(method, examples)}
               for examples, score in zip((old, new), before, strict=True)]  # fmt: skip
    digests = "".join(part.saved.state["files"]["method.safetensors"]["sha256"] for part in others)
    with alone(first.folder, versions.UPDATING):
        if versions.current(first.folder) != first.version:
            raise EverlearnError(f"{first.folder} got another version meanwhile: merge again")
        record = {
            **versions.header(versions.new_number(first.folder), first.version,
                              ", ".join(str(part.folder) for part in others)),
            "sha256": hashlib.sha256(digests.encode()).hexdigest(), "learned": 0, "held_out": len(new),
            "calibration": len(kept.calibration), "new_classes": list(names[known:]), "old": changes[0],
            "new": changes[1], "temperature": temperature, "notes": _notes(parts),
            "merged": {"how": how, "weights": None if weights is None else [float(weight) for weight in weights]},
            "seconds": time.monotonic() - started,
        }  # fmt: skip
        held = kept.state_dict() if any(part.saved.held_out for part in parts) else {}
        _write(first.folder, out, versions.kept_of(method, record, tasks, held))
    return method, record


def _notes(parts: Sequence[Part]) -> list[str]:
    """What a reader of the merged version must know."""
    learned = [{read_results(part.folder / "results.json")["fingerprint"],
                *(version.record["sha256"] for version in versions.chain(part.folder, part.version))}
               for part in parts]  # fmt: skip
    repeated = [part.folder for i, part in enumerate(parts) for before in learned[:i] if before & learned[i]]
    return [f"{printable(folder, 200)} and a run before it have learned some of the same data, which count twice"
            for folder in repeated[:1]]  # fmt: skip


def joined(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The tasks of several runs, one after another, as one run would have met them: a class keeps its name.

    >>> tea = {"index": 0, "classes": [0, 1], "class_names": ["tea", "sofa"]}
    >>> sofa = {"index": 0, "classes": [0, 1], "class_names": ["sofa", "lamp"]}
    >>> joined([[tea], [sofa]])[1]
    {'index': 1, 'classes': [1, 2], 'class_names': ['tea', 'sofa', 'lamp']}
    """
    tasks: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for task in (task for run in runs for task in run):
        for name in task["class_names"]:
            places.setdefault(name, len(places))
        classes = sorted(places[task["class_names"][label]] for label in task["classes"])
        tasks.append({**task, "index": len(tasks), "classes": classes, "class_names": list(places)})
    return tasks


def _check_options(
    parts: Sequence[Part], how: str | None, weights: Sequence[float] | None, target: float | None,
    validation: Examples | None,
) -> None:  # fmt: skip
    """Raise an EverlearnError unless the options go together."""
    if how not in (None, *HOW):
        raise unknown("way to merge", how, HOW)
    first = parts[0].method
    if first.is_exact and (how is not None or weights is not None):
        raise EverlearnError(f"merge: {type(first).__name__.lower()} keeps sums, which merge exactly: leave how "
                             "and weights out")  # fmt: skip
    if how == "interpolate" and (len(parts) != 2 or target is None or validation is None or weights is not None):
        raise EverlearnError("merge: interpolate takes two runs, a target for the first one, and validation examples "
                             "of what that learned: give --target-old and --data, and no --weights")  # fmt: skip
    if how != "interpolate" and (target is not None or validation is not None):
        raise EverlearnError("merge: a target and validation examples are for --how interpolate: leave them out")


def _check_alike(first: Part, other: Part) -> None:
    """Raise an EverlearnError unless the two runs differ in what they learned alone."""
    one, two = first.method, other.method
    if one.task.goal != "classes" or two.task.goal != "classes":
        raise EverlearnError("merge: a retriever has no classes by which held-out examples could tell what merging "
                             "changes: merge runs that learn classes")  # fmt: skip
    differing = {
        "methods": type(one) is not type(two), "inputs": one.task.input != two.task.input,
        "backbones": checkpoint.origin_hash(one) != checkpoint.origin_hash(two)
        or one.backbone.settings != two.backbone.settings,
        "settings": type(one) is type(two) and one.all_settings() != two.all_settings(),
    }  # fmt: skip
    if wrong := [what for what, differs in differing.items() if differs]:
        raise EverlearnError(f"merge: {first.folder} and {other.folder} have different {wrong[0]}: learn both with the "
                             "same method, settings and backbone")  # fmt: skip
    if one.is_exact:
        return
    for part in (first, other):
        method = part.method
        more = sorted(checkpoint.method_state(method).keys() - method.trained().keys())
        if more or not isinstance(method.head, Linear):
            kept = more[0].split(".")[0] if more else "a head of its own"
            raise EverlearnError(f"merge: {type(method).__name__.lower()} keeps more than the weights that it trains "
                                 f"({kept}), which has no average: merge runs of finetune, lora or "
                                 "sequential")  # fmt: skip
    if one.seed != two.seed:
        starts = [_body(part.build().trained()) for part in (first, other)]
        if any(not torch.equal(starts[0][name], starts[1][name]) for name in starts[0]):
            raise EverlearnError(f"merge: {first.folder} and {other.folder} began from other random weights (seeds "
                                 f"{one.seed} and {two.seed}), whose average means nothing: learn both with one "
                                 "seed")  # fmt: skip


def validation_of(first: Part, file: Path, columns: Mapping[str, str | None]) -> Examples:
    """The labelled examples of a file, labelled by the classes of the run.

    Raises:
        DataError: the file cannot be used, or has a class that the run does not know.
    """
    records = read_data(file, None, columns, BadRows(skip=False)).records
    if new := sorted({record.label for record in records} - set(first.names)):
        raise DataError(f"{file}: {first.folder} does not know the class '{printable(new[0])}': give examples of what "
                        "it has learned")  # fmt: skip
    return task_from(records, first.names).train


def _to_target(
    method: Method, parts: Sequence[Part], names: Sequence[str], target: float | None, validation: Examples | None
) -> list[float]:
    """The weights of the two runs: as much as may be of the second, so that the first one's validation examples keep
    the share `target` of their accuracy.

    Raises:
        EverlearnError: no weight keeps it.
    """
    assert target is not None and validation is not None
    old, new = (part.by_class(part.method.trained(), names) for part in parts)

    def score(weight: float) -> float:
        _take(method, merge.interpolate(old, new, weight))
        return accuracy(method, validation) or 0.0

    alone = accuracy(parts[0].method, validation) or 0.0
    weight = merge.largest_weight(score, target * alone)
    if not weight and (least := score(0.0)) < target * alone:  # classes that only the second run has take answers
        raise EverlearnError(f"merge: the first run is right on {100 * alone:.1f} % of the validation examples, and on "
                             f"{100 * least:.1f} % when it knows the new classes too, however small the weight of the "
                             "second run: give a smaller --target-old, or another --how")  # fmt: skip
    return [1 - weight, weight]


@torch.no_grad()
def _take(method: Method, weights: merge.Weights) -> None:
    for name, parameter in method.trained().items():
        parameter.copy_(weights[name])


def _merged(
    parts: Sequence[Part], names: Sequence[str], how: str, weights: Sequence[float] | None, density: float, drop: float
) -> dict[str, Tensor]:
    """The merged weights by the names of the parameters; rows of the head are those of these names of classes."""
    models = [part.by_class(part.method.trained(), names) for part in parts]
    if how in ("average", "interpolate"):
        return merge.average(models, weights)
    if how == "fisher":
        return merge.fisher_average(models, [_fisher(part, names) for part in parts], weights)
    base = {name: tensor.detach() for name, tensor in _body(parts[0].build().trained()).items()}
    if not base:
        raise EverlearnError(f"merge: {how} compares what training has changed in the encoder, and these runs trained "
                             "the head alone: take average")  # fmt: skip
    base = {name: tensor.to(models[0][name]) for name, tensor in base.items()}
    vectors = [merge.task_vector(_body(model), base) for model in models]
    if how == "ties":
        change = merge.ties(vectors, density=density, weights=weights)
    else:
        draws = torch.Generator(parts[0].method.backbone.device).manual_seed(parts[0].method.seed)
        change = merge.average([merge.dare(vector, drop=drop, generator=draws) for vector in vectors], weights)
    heads = [{name: tensor for name, tensor in model.items() if name.startswith(HEAD)} for model in models]
    return {**merge.add(base, change), **merge.average(heads, weights)}


def _fisher(part: Part, names: Sequence[str]) -> dict[str, Tensor]:
    examples = HeldOut.load(part.saved.held_out, len(part.names)).calibration.examples()
    if not len(examples):
        raise EverlearnError(f"merge: {part.folder} keeps no validation examples on which its Fisher information could "
                             "be estimated: learn with --stream.validation 0.1, or take average")  # fmt: skip
    with seeded(part.method.seed):
        fisher = diagonal_fisher(part.method, examples, FISHER_EXAMPLES)
    return {name: tensor.nan_to_num() for name, tensor in part.by_class(fisher, names).items()}


def _body(tensors: merge.Weights) -> dict[str, Tensor]:
    """What is trained besides the head."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}


def _write(first: Path, out: Path, saved: checkpoint.Checkpoint) -> None:
    """Write a copy of the first run's folder with one more version, completely or not at all."""
    try:
        with new_folder(out) as made:
            shutil.copytree(first, made, symlinks=True, ignore=shutil.ignore_patterns(".lock"), dirs_exist_ok=True)
            versions.add(made, saved)
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise EverlearnError(f"{out} cannot be written ({printable(reason)}): give another folder") from error
