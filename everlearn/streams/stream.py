"""Examples, Task, Stream: what a method is given, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn.errors import ContractError
from everlearn.streams.inputs import Input, content


@dataclass(frozen=True)
class Corpus:
    """The documents that a ranking task searches: n ids and n texts.

    >>> len(Corpus(["d1", "d2"], ["water the roses at six", "the lawn is dry"]))
    2
    """

    ids: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)


class Picture:
    """The content of an image file, read when it is needed, without the path.

    >>> picture = Picture(Path("cats/one.png"))
    >>> "cats" in repr(picture), picture.kind
    (False, 'image')
    """

    kind = "image"

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes

    @property
    def original(self) -> Picture:
        return self


@dataclass(frozen=True)
class Examples:
    """n examples in columns; a batch is a few of them.

    Args:
        inputs: n texts, encoded images or image paths; queries where the goal is ranking.
        labels: (n,) int64. Label k is the k-th class in the order in which the stream shows
            classes, so a head grows by appending rows. Empty where the goal is ranking.
        ids: n names of the records, unique within a data set, as users know them.
        positives: ranking, training: the n texts of a relevant document for each query.
        relevant: ranking, test: for each query the relevant document ids and their grades.
        negatives: ranking, training: for each query the texts of documents that look as if they answered it and do not
            (hard negatives), as many as there are.
        columns: further tensors by name, whose row i belongs to example i: logits, embeddings, …

    >>> examples = Examples(["tea please", "a sofa"], torch.tensor([0, 1]), ["a", "b"])
    >>> len(examples), examples[[1]].inputs, examples[examples.labels == 1].inputs
    (2, ['a sofa'], ['a sofa'])
    """

    inputs: Sequence[Input]
    labels: torch.Tensor
    ids: Sequence[str]
    positives: Sequence[str] | None = None
    relevant: Sequence[dict[str, int]] | None = None
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    negatives: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: Sequence[int] | np.ndarray | torch.Tensor) -> Examples:
        rows = list(rows) if isinstance(rows, Sequence) else rows.tolist()  # a tensor's elements are slow one by one
        if rows and isinstance(rows[0], bool):  # which of them are wanted, as a comparison of tensors tells
            rows = [row for row, is_wanted in enumerate(rows) if is_wanted]

        def pick(column: Any) -> Any:
            return None if column is None else [column[row] for row in rows]

        labels = self.labels[rows] if len(self.labels) else self.labels
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Examples(pick(self.inputs), labels, pick(self.ids), pick(self.positives), pick(self.relevant), columns,
                        pick(self.negatives))  # fmt: skip

    def bare(self) -> list[Input]:
        """The inputs as a method is given them at test: without labels and ids, and of an image file without its
        path, because the folder of an image often names its class."""
        return [Picture(item) if isinstance(item, Path) else item for item in self.inputs]

    @property
    def documents(self) -> list[str]:
        """Where documents are ranked, in training: the texts of the n positives, and after them all negatives."""
        return [*(self.positives or ()), *(text for own in self.negatives or () for text in own)]

    @staticmethod
    def concatenate(parts: Sequence[Examples]) -> Examples:
        """The examples of all parts, in order, with the columns that all parts have. Where some parts have negatives,
        the examples of the others have none."""
        parts = [part for part in parts if len(part)]

        def join(name: str) -> Any:
            columns = [getattr(part, name) for part in parts]
            return None if any(column is None for column in columns) else [x for c in columns for x in c]

        labels = torch.cat([part.labels for part in parts]) if parts else torch.empty(0, dtype=torch.long)
        shared = [name for name in (parts[0].columns if parts else ()) if all(name in part.columns for part in parts)]
        columns = {name: torch.cat([part.columns[name] for part in parts]) for name in shared}
        negatives = None
        if any(part.negatives is not None for part in parts):
            negatives = [own for part in parts for own in part.negatives or [()] * len(part)]
        return Examples(join("inputs"), labels, join("ids"), join("positives"), join("relevant"), columns, negatives)

    def digest(self) -> bytes:
        """A hash of the content, the labels and the order."""
        hasher = hashlib.sha256(self.labels.numpy().tobytes())
        for item in self.inputs:
            data = content(item)
            hasher.update(len(data).to_bytes(8, "little") + data)
        hasher.update(repr((self.positives, self.relevant)).encode())
        if self.negatives is not None:
            hasher.update(repr([list(own) for own in self.negatives]).encode())
        return hasher.digest()


NO_EXAMPLES = Examples([], torch.empty(0, dtype=torch.long), [])

PARTS = ("train", "validation", "test")

HIDDEN = {
    PARTS: "begin_task may change structure only (resume replays it without data): move what needs data to loss, "
    "step or end_task",
    ("test",): "a method sees test examples only as the inputs of predict, embed and search: learn from train",
}
"""Why a task hides these parts of its data."""


@dataclass(frozen=True)
class Task:
    """One step of a stream: some new classes, a new domain, a new month.

    Args:
        index: position in the stream, from 0.
        name: for people: "task 3", or the domain.
        classes: the labels that occur in this task.
        class_names: names of *all* classes seen up to and including this task, in label order;
            its length is the number of scores that `predict` returns after this task.
        input: what an example is: text, image or image-text.
        goal: what is asked of it: "classes" (which one?) or "ranking" (which documents answer it?).
        batch_size: set where the stream is online: one pass over the data in batches of this size.
        augment: every training step sees random views of the images, new ones in each epoch.
        hidden: the parts of the data that whoever holds this task may not read.

    Raises:
        ContractError: hidden data is read.

    >>> from everlearn.streams import Record, task_from
    >>> task = task_from([Record("tea please", "drink"), Record("a sofa", "furniture")])
    >>> task.class_names, task.train.labels.tolist(), len(task.sealed().metadata()["classes"])
    (('drink', 'furniture'), [0, 1], 2)
    """

    index: int
    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    input: str = "text"
    goal: str = "classes"
    batch_size: int | None = None
    augment: bool = False
    examples: dict[str, Examples] = field(default_factory=dict, repr=False)
    corpus: Corpus | None = field(default=None, repr=False)
    hidden: tuple[str, ...] = ()

    @property
    def train(self) -> Examples:
        """What the method learns from.

        Raises:
            ContractError: whoever holds this task may not read them.
        """
        return self._part("train")

    @property
    def validation(self) -> Examples:
        """What settings are chosen on; often empty.

        Raises:
            ContractError: whoever holds this task may not read them.
        """
        return self._part("validation")

    @property
    def test(self) -> Examples:
        """What the method is measured on.

        Raises:
            ContractError: whoever holds this task may not read them.
        """
        return self._part("test")

    def _part(self, name: str) -> Examples:
        if name in self.hidden:
            raise ContractError(f"the method read the {name} data of task {self.index}; {HIDDEN[self.hidden]}")
        return self.examples.get(name, NO_EXAMPLES)

    def sealed(self) -> Task:
        """The task without its data: what `begin_task` may look at, and what resume replays."""
        return replace(self, examples={}, corpus=None, hidden=PARTS)

    def for_learning(self) -> Task:
        """The task without its test examples: what `batches` and `end_task` are given."""
        seen = {name: examples for name, examples in self.examples.items() if name != "test"}
        return replace(self, examples=seen, hidden=("test",))

    def metadata(self) -> dict[str, Any]:
        """What JSON can keep of the sealed task; `Task.from_metadata` reads it back."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("examples", "corpus", "hidden")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}

    @staticmethod
    def from_metadata(data: dict[str, Any]) -> Task:
        """The sealed task that `metadata` wrote."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return Task(**values).sealed()


@dataclass(frozen=True)
class Stream:
    """The tasks in order.

    Args:
        name: as given on the command line.
        kind: class-incremental, domain-incremental, task-incremental, online or old-then-new.
        tasks: all of the same input and goal.
        config: the arguments of `streams.load` that build this stream again; of rows that were in memory, the options
            and, as `in_memory`, the fingerprint.
        notes: what a reader of the results must know, printed in the report.

    >>> from everlearn import streams
    >>> stream = streams.load("banking77", tasks=7)
    >>> stream.kind, len(stream), len(stream.class_names), stream[0].train.labels.dtype
    ('class-incremental', 7, 77, torch.int64)
    """

    name: str
    kind: str
    tasks: tuple[Task, ...]
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    @property
    def input(self) -> str:
        """What an example is: text, image or image-text."""
        return self.tasks[0].input

    @property
    def goal(self) -> str:
        """What is asked of an example: classes or ranking."""
        return self.tasks[0].goal

    @property
    def tells_task(self) -> bool:
        """Whether it says at test which task an example belongs to."""
        return self.kind == "task-incremental"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes, in label order."""
        return self.tasks[-1].class_names

    def without(self, ids: Iterable[str]) -> Stream:
        """The stream without the training examples of these ids; those for validation and tests stay.

        >>> from everlearn import streams
        >>> stream = streams.load("digits", tasks=5)
        >>> fewer = stream.without(stream[0].train.ids[:10])
        >>> len(stream[0].train) - len(fewer[0].train)
        10
        """
        out = set(ids)
        tasks = [
            replace(task, examples={**task.examples, "train": task.train[
                [row for row, id in enumerate(task.train.ids) if id not in out]]}) for task in self.tasks
        ]  # fmt: skip
        return replace(self, tasks=tuple(tasks), config={})

    def fingerprint(self) -> str:
        """A hash of every example of every task and their order: two runs compare only if it is equal."""
        hasher = hashlib.sha256(repr((self.kind, self.input, self.goal, self.class_names)).encode())
        if any(task.augment for task in self.tasks):
            hasher.update(b"augmented")
        for task in self.tasks:
            for part in PARTS:
                hasher.update(getattr(task, part).digest())
            if task.corpus is not None:
                hasher.update(repr((task.corpus.ids, task.corpus.texts)).encode())
        return hasher.hexdigest()
