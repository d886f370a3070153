"""Steps: the tasks of a stream while their classes are still names; and the tasks made from them, with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from everlearn.errors import DataError
from everlearn.streams.inputs import kind
from everlearn.streams.records import Record
from everlearn.streams.stream import Examples, Task


@dataclass(frozen=True)
class Step:
    """One task before its classes are numbered: the classes of its training examples, and its records."""

    name: str
    classes: list[str]
    parts: dict[str, list[Record]]


def classes_of(records: list[Record]) -> list[str]:
    """The classes in the order of their first record."""
    return list(dict.fromkeys(record.label for record in records))


def make_tasks(
    steps: list[Step], input: str, source: str, batch_size: int | None = None, augment: bool = False
) -> tuple[list[Task], list[str]]:
    """Make the tasks, in which class k is the k-th class in the order of the steps, and notes on what was left out.

    Raises:
        DataError: a step has no training or no test examples.
    """
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
                raise DataError(f"{source}: no {split} examples in {step.name}; add some, or leave this task out")
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
        DataError: there are no records, or texts and images are mixed.

    >>> task = task_from([Record("tea please", "drink"), Record("a sofa", "furniture")], known=["furniture"])
    >>> task.class_names, task.train.labels.tolist()
    (('furniture', 'drink'), [1, 0])
    """
    if not records:
        raise DataError("there are no records to learn from: give at least one")
    kinds = {kind(record.input) for record in records}
    if len(kinds) > 1:
        raise DataError(f"the records mix {' and '.join(sorted(kinds))}: give one kind of input per task")
    numbers = {label: k for k, label in enumerate(dict.fromkeys([*known, *classes_of(list(records))]))}
    train = _examples([replace(r, id=r.id or str(row)) for row, r in enumerate(records)], numbers)
    classes = tuple(sorted(set(train.labels.tolist())))
    return Task(index, name, classes, tuple(numbers), input=kinds.pop(), examples={"train": train})
