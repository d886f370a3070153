"""Streams that settings are chosen on: the first tasks, evaluated on validation examples in place of test examples."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from everlearn.errors import DataError
from everlearn.streams.splits import drawn
from everlearn.streams.stream import Corpus, Examples, Stream, Task

SHARE = 0.2
"""Of the training examples, so many are held out where the data have no validation examples."""
NOTE = "evaluated on validation examples, on which settings may be chosen; no test example was used"
"""The note of such streams, which the results of their runs keep."""


def on_validation(stream: Stream, tasks: int = 3) -> Stream:
    """The first tasks of a stream, with their validation examples in place of their test examples.

    Where a task has no validation examples, a fifth of its training examples is held out: of each class, or, where the
    goal is ranking, of all queries. Test examples are not read. A ranking task keeps its validation queries as such
    too, for methods that choose a setting of their own on them, and its corpus gains the documents that answer them.

    Raises:
        DataError: a task has no validation examples, and too few others.

    >>> from everlearn import streams
    >>> stream = streams.load("digits", tasks=5)
    >>> [(len(task.train), len(task.test)) for task in on_validation(stream, tasks=2)]
    [(230, 57), (230, 58)]
    """
    judged = tuple(_judged(task) for task in stream.tasks[:tasks])
    return replace(stream, tasks=judged, config={}, notes=(*stream.notes, NOTE))


def _judged(task: Task) -> Task:
    train, validation = task.train, task.validation
    if not len(validation):
        out = _held_out(train)
        train, validation = train[[row for row in range(len(train)) if row not in out]], train[sorted(out)]
    if not len(train) or not len(validation):
        raise DataError(f"{task.name} has no validation examples, and too few training examples to hold some out: give "
                        "more, at least three of a class, or rows with the split validation")  # fmt: skip
    if task.goal == "classes":
        return replace(task, examples={"train": train, "test": validation})
    assert task.corpus is not None
    assert validation.positives is not None
    ids = {text: id for id, text in zip(task.corpus.ids, task.corpus.texts, strict=True)}
    for text in validation.positives:
        ids.setdefault(text, f"validation {len(ids)}")
    relevant: dict[Any, dict[str, int]] = defaultdict(dict)  # a query has a row for each of its documents
    for query, text in zip(validation.inputs, validation.positives, strict=True):
        relevant[query][ids[text]] = 1
    names = dict(zip(reversed(validation.inputs), reversed(validation.ids), strict=True))  # of its first row
    test = Examples(list(relevant), validation.labels, [names[query] for query in relevant],
                    relevant=list(relevant.values()))  # fmt: skip
    return replace(task, examples={"train": train, "validation": validation, "test": test},
                   corpus=Corpus(list(ids.values()), list(ids)))  # fmt: skip


def _held_out(examples: Examples) -> set[int]:
    """Rows of a fifth of each class, at least one as long as two stay; or of a fifth of all queries."""
    random = np.random.RandomState(0)
    if not len(examples.labels):
        queries = list(dict.fromkeys(examples.inputs))
        out = {queries[row] for row in random.permutation(len(queries))[: max(round(SHARE * len(queries)), 1)]}
        return {row for row, query in enumerate(examples.inputs) if query in out}
    of_label: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(examples.labels.tolist()):
        of_label[label].append(row)
    return drawn([rows for _, rows in sorted(of_label.items())], examples.inputs, SHARE, random)
