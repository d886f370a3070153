"""Presentations: what the model answered whenever an example was trained on, and what follows from that.

A run keeps them in `presentations.jsonl`. They cost no pass of the model, because the training computes the answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from everlearn.engine import Learning, Listener
from everlearn.errors import EverlearnError
from everlearn.files import append_lines
from everlearn.listeners import BATCH
from everlearn.method import Method, Presented
from everlearn.metrics.forgetting_events import Events, events_of, order
from everlearn.schemas.logs import read_presentations

FILE = "presentations.jsonl"


class Presentations(Listener):
    """Writes what was answered at every step to a JSON Lines file: {"task", "step", "ids", "labels", "answers"}.

    Args:
        folder: the run's folder.
        method: who learns.
    """

    def __init__(self, folder: Path, method: Method) -> None:
        self.file = folder / FILE
        self.waiting: list[tuple[int, int, list[Presented]]] = []
        method.presented = []

    def stepped(self, learning: Learning) -> None:
        presented, learning.method.presented = learning.method.presented, []
        if presented:
            self.waiting.append((learning.task.index, learning.step, presented))
        if len(self.waiting) >= BATCH:
            self.flush()

    def fitted(self, learning: Learning) -> None:
        learning.method.presented = None
        self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        waiting, self.waiting = self.waiting, []
        if waiting:
            append_lines(self.file, [
                {"task": task, "step": step, "ids": [id for ids, _, _ in presented for id in ids],
                 "labels": [label for _, labels, _ in presented for label in labels.tolist()],
                 "answers": [answer for _, _, answers in presented for answer in answers.tolist()]}
                for task, step, presented in waiting
            ])  # fmt: skip


@dataclass(frozen=True)
class History:
    """What became of an example while it was trained on.

    Args:
        id: its name.
        label: the class that it is said to have; -1 where documents are ranked.
        events: how often it was presented, learned and forgotten.
        mistaken_for: the class that was answered most often instead, and how often; None where it was never wrong.

    >>> History("row 7", 3, events_of([False, True, False]), (4, 2)).events.forgotten
    1
    """

    id: str
    label: int
    events: Events
    mistaken_for: tuple[int, int] | None


def histories(folder: str | Path) -> list[History]:
    """Every example that a run was trained on, the most forgotten first (`metrics.forgetting_events.order`).

    Raises:
        EverlearnError: the run has kept no presentations, or they are damaged.

    >>> import everlearn, tempfile
    >>> out = tempfile.mkdtemp() + "/run"
    >>> small = {"name": "digits", "tasks": 5, "max_train_per_class": 4}
    >>> _ = everlearn.run({"name": "finetune", "epochs": 3}, small, backbone="tiny", out=out)
    >>> found = histories(out)
    >>> len(found), {history.events.presented for history in found}
    (40, {3})
    """
    file = Path(folder) / FILE
    if not file.exists():
        raise EverlearnError(f"{file} is not there: the run trains nothing, or trains on pairs (setfit), or is of an "
                             "older version of everlearn; learn a new run with a method such as lora")  # fmt: skip
    right: dict[str, list[bool]] = defaultdict(list)
    labels: dict[str, int] = {}
    wrong: dict[str, Counter[int]] = defaultdict(Counter)
    for line in read_presentations(file):
        for id, label, answer in zip(line["ids"], line["labels"], line["answers"], strict=True):
            right[id].append(label == answer)
            labels[id] = label
            if label != answer:
                wrong[id][answer] += 1
    if not right:
        raise EverlearnError(f"{file} holds no step: the run was stopped before its first steps were written; continue "
                             "it with everlearn resume")  # fmt: skip
    ids = list(right)
    events = [events_of(right[id]) for id in ids]
    return [
        History(ids[place], labels[ids[place]], events[place], next(iter(wrong[ids[place]].most_common(1)), None))
        for place in order(events)
    ]


def doubtful(found: list[History]) -> list[History]:
    """The examples whose labels are most probably wrong, those first that are most in doubt: the model has never
    learned them, or has forgotten them, and at last still answered another class; of equally many events those that
    were taken most often for one and the same class.

    >>> right, wrong = events_of([True, True]), events_of([True, False])
    >>> found = [History("a", 0, right, None), History("b", 0, wrong, (1, 1))]
    >>> [history.id for history in doubtful(found)]
    ['b']
    """
    suspects = [history for history in found if history.mistaken_for and not history.events.right]
    return sorted(suspects, key=lambda one: (one.events.learned is not None, -one.events.forgotten,
                                             -(one.mistaken_for or (0, 0))[1] / one.events.presented))  # fmt: skip
