"""Update: a finished run learns new data as one more task, and becomes a new version that says what changed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor

from everlearn import calibration, checkpoint, versions
from everlearn.engine import learn
from everlearn.errors import DataError, EverlearnError
from everlearn.evaluation import supports
from everlearn.files import regular, sha256_of
from everlearn.held_out import KEEP, HeldOut
from everlearn.interrupts import Interrupted
from everlearn.listeners import Bar, encoding
from everlearn.locks import alone
from everlearn.method import Method
from everlearn.schemas.values import check_names
from everlearn.streams.images import only_decodable
from everlearn.streams.inputs import content
from everlearn.streams.mistakes import conflicting_labels, other_spellings
from everlearn.streams.readers import read_table
from everlearn.streams.records import BadRows, Record, Table, with_ids
from everlearn.streams.splits import inputs_of, make_splits, repeated_inputs
from everlearn.streams.steps import checked_records, task_from
from everlearn.streams.stream import Examples, Stream, Task
from everlearn.versions import Version

SHARE = 0.2
"""Of the new examples of a class, so many are not learned, so that the new version can be tested on them."""


def learn_version(
    folder: Path, restore: Callable[[], tuple[Method, checkpoint.Checkpoint]],
    data: str | Path | Stream | Sequence[Record], *, test: str | Path | None, columns: Mapping[str, str | None],
    learned: Mapping[str, str | None], titles: bool, skip_bad_rows: bool, keep: int, progress: bool,
) -> tuple[Method, Version]:  # fmt: skip
    """Have what a run's folder holds learn one more task, and write it as the new version of the folder.

    Args:
        folder: the run's folder.
        restore: gives its current version.
        data, test, skip_bad_rows, keep, progress: as for `everlearn.model.update`.
        columns: the columns of the data, by role.
        learned: columns of the run, by role, which are used where the data have them.
        titles: where documents are ranked, put the title of a document before its text.

    Returns:
        The method that has learned, and the record of the version.

    Raises:
        DataError, EverlearnError, Interrupted: as for `everlearn.model.update`.
    """
    if isinstance(data, Stream):
        check_names((data.name, *data.class_names))
    with alone(folder, versions.UPDATING), encoding(progress):
        number = versions.current(folder)
        try:
            method, saved = restore()
            made = versions.new_number(folder)
            if method.task.goal == "ranking":
                task, record, source, notes, kept = _ranked(
                    folder, method, saved, number, made, data, test=test, columns=columns, titles=titles,
                    skip_bad_rows=skip_bad_rows, keep=keep, progress=progress,
                )  # fmt: skip
            else:
                task, record, source, notes, kept = _labelled(
                    method, saved, data, test=test, columns=columns, learned=learned, skip_bad_rows=skip_bad_rows,
                    keep=keep, progress=progress,
                )  # fmt: skip
            record |= {**versions.header(made, number, source), "sha256": _sha256(data, task), "notes": notes}
            tasks = [*saved.state["tasks"], task.metadata()]
            versions.add(folder, versions.kept_of(method, record, tasks, kept))
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; {folder} is still at version {number}") from None
    return method, Version(record, folder)


_Learned = tuple[Task, dict[str, Any], str, list[str], dict[str, Tensor]]
"""The task, what the record says of it, the name of its data, notes, and what is held out."""


def _labelled(
    method: Method, saved: checkpoint.Checkpoint, data: Any, *, test: str | Path | None,
    columns: Mapping[str, str | None], learned: Mapping[str, str | None], skip_bad_rows: bool, keep: int,
    progress: bool,
) -> _Learned:  # fmt: skip
    """Learn labelled examples."""
    bad = BadRows(skip_bad_rows)
    new = read_data(data, test, columns, bad, learned)
    # Where nothing shall be kept, this update still compares and calibrates by what the version before has kept.
    held_out = HeldOut.load(saved.held_out, len(method.task.class_names), keep or KEEP)
    task, notes = _task(method, new, held_out)
    record = _learn(method, task, held_out, saved.state.get("temperature"), progress)
    kept = held_out.state_dict() if keep else {}
    return task, record, new.source, [*new.notes, *notes, *bad.notes()], kept


def _ranked(
    folder: Path, method: Method, saved: checkpoint.Checkpoint, number: int, made: int, data: Any, *,
    test: str | Path | None, columns: Mapping[str, str | None], **more: Any,
) -> _Learned:  # fmt: skip
    """Learn queries and documents of a new domain."""
    from everlearn.retrieval.update import learn_domain

    if given := [f"{role}_column" for role, column in columns.items() if column] + ["test"] * (test is not None):
        raise EverlearnError(f"{given[0]} does not apply to a retriever: a file of queries and documents has fixed "
                             "columns, and a column split can say which queries are for tests")  # fmt: skip
    learned = learn_domain(folder, method, saved, versions.chain(folder, number), made, data, **more)
    return learned.task, learned.record, learned.source, learned.notes, {}


@dataclass(frozen=True)
class NewData:
    """Labelled examples with their splits.

    Args:
        source: what the user named, for messages.
        input: text or image; empty where it is not known.
        records: the examples.
        notes: what a reader of results on them must know.
    """

    source: str
    input: str
    records: list[Record]
    notes: tuple[str, ...] = ()

    def check_input(self, learned: str) -> None:
        """Raise an EverlearnError if they are of another kind than a model has learned."""
        if self.input not in ("", learned):
            raise EverlearnError(
                f"{self.source} holds {self.input}s, but the model learned {learned}s: give {learned}s"
            )


def read_data(
    data: Any, test: str | Path | None, columns: Mapping[str, str | None], bad: BadRows,
    learned: Mapping[str, str | None] = MappingProxyType({}),
) -> NewData:  # fmt: skip
    """The labelled examples of a file, a folder, a Stream or records, and of the file with test examples.

    Args:
        columns: the columns of a file, by role; `learned`: those of the run that it may lack.
    """
    tests = _table(test, columns, learned, bad).with_all(split="test") if test is not None else None
    if isinstance(data, str | Path):
        table = _table(data, columns, learned, bad)
        table = Table.join([table, tests]) if tests else table
        records = with_ids(table.records, bad)
        if table.input == "image":
            records = only_decodable(records, bad)
        return NewData(str(data), table.input, records, table.notes)
    if isinstance(data, Stream):
        if data.goal != "classes":
            raise EverlearnError(
                f"stream '{data.name}' has rankings, and an update learns classes: give labelled examples"
            )
        records = [Record(cast(str | bytes | Path, item), data.class_names[label], id, data.name, None, split)
                   for task in data for split, part in task.examples.items()
                   for item, label, id in zip(part.inputs, part.labels.tolist(), part.ids, strict=True)]  # fmt: skip
        return NewData(data.name, data.input, [*records, *(tests.records if tests else ())], data.notes)
    if not isinstance(data, Iterable):
        raise DataError(f"the data are a {type(data).__name__}: give a file, a Stream or records")
    records = list(data)
    if wrong := [row for row, record in enumerate(records) if not isinstance(record, Record)]:
        raise DataError(f"row {wrong[0]} is a {type(records[wrong[0]]).__name__}, not a record: give a file, "
                        "everlearn.streams.from_rows(texts, labels) or everlearn.streams.Record(text, "
                        "label)")  # fmt: skip
    return NewData("records", "", [*checked_records(records, bad), *(tests.records if tests else ())])


def _table(
    file: str | Path, columns: Mapping[str, str | None], learned: Mapping[str, str | None], bad: BadRows
) -> Table:
    table = read_table(str(file), columns, bad, learned=learned)
    if table is None:
        raise DataError(f"{file}: no such file or folder; check the path")
    return table


def _task(method: Method, new: NewData, held_out: HeldOut) -> tuple[Task, list[str]]:
    """The next task of the model, with what is held out of it as its test examples, and notes.

    Raises:
        DataError: nothing is left to learn.
        EverlearnError: the method cannot learn it.
    """
    last, known = method.task, method.task.class_names
    new.check_input(last.input)
    parts = make_splits(new.records, new.source, {"test": SHARE}, seed=method.seed, by_domain=False)
    # A method whose `forget` is exact has learned the examples of the calibration, and forgets them for it.
    kept = [held_out.test] if method.is_exact else [held_out.test, held_out.calibration]
    old = {content(item) for memory in kept for item in memory.examples().inputs}
    train = [record for record in parts["train"] if content(record.input) not in old]
    labels = {*known, *(record.label for record in train)}
    others = {split: [r for r in parts[split] if r.label in labels] for split in ("validation", "test")}
    if not train:
        raise DataError(f"{new.source}: every example is a held-out one, by which versions are compared, and so is not "
                        "learned: give others")  # fmt: skip
    task = task_from([*train, *others["validation"], *others["test"]], known, index=last.index + 1, name=_title(new))
    last_train, last_validation = len(train), len(train) + len(others["validation"])
    examples = {
        "train": task.train[range(last_train)], "validation": task.train[range(last_train, last_validation)],
        "test": task.train[range(last_validation, len(task.train))],
    }  # fmt: skip
    classes = tuple(sorted(set(examples["train"].labels.tolist())))
    task = replace(task, classes=classes, examples=examples, batch_size=last.batch_size, augment=last.augment)
    kind = "class-incremental" if len(task.class_names) > len(known) else "domain-incremental"
    if reason := supports(method.tags, Stream(new.source, kind, (task,)), method.backbone, method.settings):
        raise EverlearnError(f"method {type(method).__name__} {reason}")
    notes = [*conflicting_labels(parts, new.source, by_domain=False), *repeated_inputs(inputs_of(parts)),
             *other_spellings(task.class_names[len(known) :], known)]  # fmt: skip
    if count := len(parts["train"]) - len(train):
        were = "examples were not learned, because they are" if count > 1 else "example was not learned, because it is"
        notes.append(f"{count} {were} held out to compare versions or to fit the temperature")
    if count := sum(len(parts[split]) - len(others[split]) for split in others):
        notes.append(f"left out {count} test example{'s' * (count > 1)} of classes that no training example has")
    return task, notes


def _title(new: NewData) -> str:
    return Path(new.source).stem or "update"


def _learn(method: Method, task: Task, held_out: HeldOut, temperature: float | None, progress: bool) -> dict[str, Any]:
    """Learn the task, fit the temperature anew, add to what is held out, and say what changed."""
    known, started = len(method.task.class_names), time.monotonic()
    old, new = held_out.test.examples(), task.test
    before = [accuracy(method, examples) for examples in (old, new)]
    for_calibration = calibration.held_out_of(method, task)
    with Bar(f"{task.name}: {len(task.train):,} examples", progress) as bar:
        learn(method, task, bar)
    after = [accuracy(method, examples) for examples in (old, new)]
    if len(held_out.calibration):  # without old examples it would be fitted on the new classes alone
        held_out.calibration.add(for_calibration)
        temperature = calibration.fitted_temperature(method, held_out.calibration.examples())
    # The same test file may come with every update: an example that is held out already does not count once more.
    held, found = (zip(map(content, part.inputs), part.labels.tolist(), strict=True) for part in (old, new))
    known_pairs = set(held)
    held_out.add_test(new[[row for row, pair in enumerate(found) if pair not in known_pairs]])
    changes = [{"examples": len(examples), "before": b, "after": a}
               for examples, b, a in zip((old, new), before, after, strict=True)]  # fmt: skip
    return {
        "learned": len(task.train), "held_out": len(new), "calibration": len(for_calibration),
        "new_classes": list(task.class_names[known:]), "old": changes[0], "new": changes[1],
        "temperature": temperature, "seconds": time.monotonic() - started,
    }  # fmt: skip


def accuracy(method: Method, examples: Examples) -> float | None:
    """The share of right answers, None where there are no examples. A class that the method does not know yet is
    answered wrong."""
    if not len(examples):
        return None
    predicted = calibration.scores_of(method, examples.bare()).argmax(1)
    return float((predicted == examples.labels).double().mean())


def _sha256(data: Any, task: Task) -> str:
    """Of the file; of the examples where there is no single file."""
    if not isinstance(data, str | Path) or not Path(data).is_file():
        return hashlib.sha256(b"".join(part.digest() for part in task.examples.values())).hexdigest()
    with regular(data) as opened:
        return sha256_of(opened)
