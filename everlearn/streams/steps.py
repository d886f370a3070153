"""Steps: the tasks of a stream while their classes are still names; and the tasks made from them, with numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from everlearn.errors import DataError
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
    steps: list[Step], modality: str, source: str, batch_size: int | None = None, augment: bool = False
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
        task = Task(
            index=index,
            name=step.name,
            classes=tuple(sorted(numbers[name] for name in step.classes)),
            class_names=tuple(numbers),
            modality=modality,
            batch_size=batch_size,
            augment=augment,
            examples={split: _examples(records, numbers) for split, records in parts.items()},
        )
        tasks.append(task)
    return tasks, notes


def _examples(records: list[Record], numbers: dict[str, int]) -> Examples:
    labels = torch.tensor([numbers[record.label] for record in records], dtype=torch.long)
    return Examples([record.input for record in records], labels, [record.id for record in records])
