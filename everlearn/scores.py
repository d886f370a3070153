"""Scores of a saved model on labelled examples: how right its answers are, class by class, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from everlearn.calibration import expected_calibration_error, reliability
from everlearn.errors import DataError, EverlearnError, printable
from everlearn.metrics.per_class import confusion, per_class
from everlearn.streams.inputs import Input
from everlearn.streams.records import BadRows, of_split
from everlearn.streams.stream import Task
from everlearn.update import NewData, read_data

MOST_NAMED = 3
"""Unknown classes that a note names."""


def scores_on(
    task: Task, answer: Callable[[Sequence[Input]], np.ndarray], data: Any, columns: Mapping[str, str | None],
    learned: Mapping[str, str | None], bad: BadRows,
) -> dict[str, Any]:  # fmt: skip
    """What `everlearn.model.Model.evaluate` returns, without the version.

    Args:
        task: the last one that the model has learned.
        answer: gives the probabilities (n, classes) of inputs.
        data: a file, a folder, a Stream or records.
        columns: those of a file, by role; `learned`: those of the run that it may lack.
        bad: records rows that cannot be used, or refuses them.
    """
    if task.goal != "classes":
        raise EverlearnError("the model ranks documents, and evaluate scores the answers of a classifier: the report "
                             "of a run and the record of an update hold the scores of a retriever")  # fmt: skip
    new = _tests(read_data(data, None, columns, bad, learned))
    new.check_input(task.input)
    known = list(task.class_names)
    others = [label for label in dict.fromkeys(record.label for record in new.records) if label not in known]
    names = [*known, *others]
    number = {name: place for place, name in enumerate(names)}
    truth = [number[record.label] for record in new.records]
    probabilities = answer([record.input for record in new.records])
    predicted = probabilities.argmax(1).tolist()
    bins = reliability(torch.from_numpy(probabilities), torch.tensor(truth))
    return {
        "data": new.source, "examples": len(truth), "accuracy": float(np.mean(np.equal(predicted, truth))),
        "expected_calibration_error": expected_calibration_error(bins),
        "per_class": per_class(names, truth, predicted), "confusion": confusion(names, truth, predicted),
        "notes": [*new.notes, *_unknown(truth, known, others), *bad.notes()],
    }  # fmt: skip


def _tests(new: NewData) -> NewData:
    """The rows of the split test, or all where no row is of it."""
    if not new.records:
        raise DataError(f"{new.source}: no row is left that could be scored; give labelled examples")
    tests = of_split(new.records, "test")
    if len(tests) in (0, len(new.records)):
        return new
    note = f"of {len(new.records)} rows, the {len(tests)} of the split test are scored"
    return NewData(new.source, new.input, tests, (*new.notes, note))


def _unknown(truth: list[int], known: list[str], others: list[str]) -> list[str]:
    """Notes on the classes that the model does not know."""
    if not others:
        return []
    count = sum(label >= len(known) for label in truth)
    named = ", ".join(f"'{printable(name, 60)}'" for name in others[:MOST_NAMED]) + ", …" * (len(others) > MOST_NAMED)
    return [f"{count} of {len(truth)} examples count as wrong, because the model does not know their classes: {named}"]
