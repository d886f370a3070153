"""Steps: the tasks of a stream while their classes are still names; and the tasks made from them, with numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from everlearn.errors import DataError, printable
from everlearn.streams import limits
from everlearn.streams.cells import BadCell, as_id, as_label, as_split, as_text
from everlearn.streams.inputs import PLAIN, kind
from everlearn.streams.records import BadRows, Record
from everlearn.streams.stream import Examples, Task

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One task before its classes are numbered: the classes of its training examples, and its records."""

    name: str
    classes: list[str]
    parts: dict[str, list[Record]]


def classes_of(records: list[Record]) -> list[str]:
    """The classes in the order of their first record."""
    return list(dict.fromkeys(record.label for record in records))


def check_left(source: str, count: int) -> None:
    """Raise a DataError if nothing is left of the data."""
    if not count:
        raise DataError(f"{source}: no rows are left to make tasks of; correct those that were left out")


def check_tasks(source: str, count: int) -> None:
    """Raise a DataError if a stream would have no task, or too many."""
    check_left(source, count)
    if count > limits.MOST_TASKS:
        raise DataError(f"{source}: {count:,} tasks, and at most {limits.MOST_TASKS:,} are possible; make fewer")


def make_tasks(
    steps: list[Step], input: str, source: str, batch_size: int | None = None, augment: bool = False
) -> tuple[list[Task], list[str]]:
    """Make the tasks, in which class k is the k-th class in the order of the steps, and notes on what was left out.

    Raises:
        DataError: a step has no training or no test examples, or there is no step or too many.
    """
    check_tasks(source, len(steps))
    numbers: dict[str, int] = {}
    tasks, notes = [], []
    for index, step in enumerate(steps):
        for name in step.classes:
            numbers.setdefault(name, len(numbers))
        # A class that no task has shown yet cannot be predicted, so its examples say nothing about this task.
        parts = {split: [r for r in rs if r.label in numbers] for split, rs in step.parts.items()}
        hidden = sum(len(records) for records in step.parts.values()) - sum(map(len, parts.values()))
        if hidden:
            notes.append(f"left out {hidden} examples of {step.name}, because no task up to then has their class")
        for split in ("train", "test"):
            if not parts[split]:
                raise DataError(f"{source}: no {split} examples in {step.name}; give its classes more different rows, "
                                "or leave this task out")  # fmt: skip
        classes = tuple(sorted(numbers[name] for name in step.classes))
        examples = {split: _examples(records, numbers) for split, records in parts.items()}
        tasks.append(Task(index, step.name, classes, tuple(numbers), input, "classes", batch_size, augment, examples))
    return tasks, notes


def _examples(records: list[Record], numbers: dict[str, int]) -> Examples:
    labels = torch.tensor([numbers[record.label] for record in records], dtype=torch.long)
    return Examples([record.input for record in records], labels, [record.id for record in records])


def task_from(records: Sequence[Record], known: Sequence[str] = (), *, index: int = 0, name: str = "update") -> Task:
    """A task of new records, for a model that has already learned the classes `known`.

    Labels may be old or new ones. A record whose label was wrong before simply comes with the right one.

    Args:
        records: what is to be learned; a record without an id is called by its position.
        known: the names of the classes that the model knows, in the order of its scores.
        index: how many tasks the model has learned before.
        name: what to call the task.

    Raises:
        DataError: there are no records, texts and images are mixed, a text or label cannot be used, or a class is
            known twice.

    >>> task = task_from([Record("tea please", "drink"), Record("a sofa", "furniture")], known=["furniture"])
    >>> task.class_names, task.train.labels.tolist()
    (('furniture', 'drink'), [1, 0])
    """
    if not records:
        raise DataError("there are no records to learn from: give at least one")
    if isinstance(known, str):
        raise DataError("known is a text: give the names of the known classes as a list")
    names = [_checked(f"known class {k}", as_label, name, []) for k, name in enumerate(known)]
    repeated = [label for label, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"the known class '{printable(repeated[0])}' is given twice: give each name once")
    records = checked_records(records)
    kinds = {kind(record.input) for record in records}
    if len(kinds) > 1:
        raise DataError(f"the records mix {' and '.join(sorted(kinds))}: give one kind of input per task")
    numbers = {label: k for k, label in enumerate(dict.fromkeys([*names, *classes_of(records)]))}
    train = _examples(records, numbers)
    classes = tuple(sorted(set(train.labels.tolist())))
    return Task(index, name, classes, tuple(numbers), input=kinds.pop(), examples={"train": train})


def checked_records(records: Sequence[Record], bad: BadRows | None = None) -> list[Record]:
    """Records that were made in memory, each as a row of a file would give it.

    Args:
        bad: where bad ones are recorded, if they may be left out.

    Raises:
        DataError: one of them cannot be used.

    >>> checked_records([Record("a sofa", "furniture", split="dev")])[0].split
    'validation'
    """
    checked = []
    for row, record in enumerate(records):
        try:
            checked.append(_checked_record(record, str(row)))
        except BadCell as problem:
            cause, remedy = problem.args
            if bad is None:
                raise DataError(f"record {row}: {cause}; {remedy}") from None
            bad.add(f"record {row}", cause, remedy)
    return checked


def _checked_record(record: Record, position: str) -> Record:
    item = as_text(record.input) if isinstance(record.input, str) else record.input
    if not hasattr(item, "kind") and not isinstance(item, PLAIN):
        raise BadCell(f"the input is a {type(item).__name__}", "give a text, an encoded image or the path of one")
    return replace(record, input=item, label=as_label(record.label, []), split=as_split(record.split),
                   id=as_id(record.id) if record.id else position)  # fmt: skip


def _checked(where: str, check: Callable[..., T], *values: Any) -> T:
    """What `check` makes of the values; a bad cell becomes an error that says where it is."""
    try:
        return check(*values)
    except BadCell as problem:
        cause, remedy = problem.args
        raise DataError(f"{where}: {cause}; {remedy}") from None
