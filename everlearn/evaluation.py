"""Scores of a method on the tasks of a stream, after every task, without leaks.

A method is asked with inputs alone. Labels, ids, relevant documents and the paths of images stay here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from everlearn.answer_costs import AnswerCosts
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.side_by_side import SideBySide
from everlearn.errors import ContractError, EverlearnError, printable
from everlearn.general_ability import GeneralAbility
from everlearn.method import Method, Tags
from everlearn.metrics.retrieval import ndcg_at_k, score_rankings
from everlearn.retrieval.domains import Domains
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Stream, Task
from everlearn.unseen import Unseen

CHUNK = 1024  # inputs handed to `predict` at once; its answers may not depend on it
METRIC = {"classes": "accuracy", "ranking": "nDCG@10"}
TOLD = "accuracy told the task"
KEPT, NEW = "nDCG@10 kept index", "nDCG@10 new index"
RESERVED = (*METRIC.values(), "recall@10", "mrr@10", "map@10", KEPT, NEW, TOLD)
"""Names that `measures` may not use: a value of such a name would replace the score."""


class Evaluation:
    """Evaluates `method` on `stream`: accuracy for classes, nDCG@10 for rankings.

    Args:
        folder: where the index of each domain is kept, where the goal is ranking; None keeps them in memory.
        keep: most test queries of a domain whose texts are kept there.

    Raises:
        EverlearnError: a task has no test examples.
    """

    def __init__(self, stream: Stream, method: Method, folder: Path | None = None, keep: int = 0) -> None:
        if untested := [task.name for task in stream if not len(task.test)]:
            raise EverlearnError(f"stream '{stream.name}': {untested[0]} has no test examples, by which a run is "
                                 "scored after every task: give it some")  # fmt: skip
        self.stream, self.method = stream, method
        self.domains, self.unseen = Domains(method, folder, keep), Unseen(stream, method)
        self.general = GeneralAbility(stream, method)
        self.recall_before: float | None = None  # on the task that is learned now
        self.metric = METRIC[stream.goal]
        self._measured: set[str] | None = None  # the names that `measures` gave so far
        self._answers: dict[int, torch.Tensor] = {}  # the newest predicted labels of the test examples, by task
        self._together: torch.Tensor | None = None  # the newest scores of all tasks that were asked together
        self._costs = AnswerCosts()  # of the answers since `after` began

    def initial(self) -> list[float | None]:
        """The untouched model's score on each task, where one is defined: rankings before any
        learning; chance where a domain brings no new class."""
        if self.stream.goal == "ranking":
            return [self.score(task)[self.metric] for task in self.stream]
        return [
            1 / len(task.class_names) if task.index and not _new_classes(self.stream, task) else None
            for task in self.stream
        ]

    def before(self, task: Task) -> float | None:
        """The score on `task` just before it is learned; None where it brings new classes."""
        self.recall_before = None
        if task.index == 0 or (self.stream.goal == "classes" and _new_classes(self.stream, task)):
            return None
        found = self.score(task)
        self.recall_before = found.get("recall@10")
        return found[self.metric]

    def after(self, task: Task) -> dict[str, Any]:
        """One row: the score on every task up to `task`, and over all their test examples together; and, where classes
        are asked, what an answer cost."""
        self._costs = AnswerCosts()
        seen = self.stream.tasks[: task.index + 1]
        self.domains.learned()
        with torch.no_grad():
            if self.stream.goal == "ranking":
                self.domains.keep(task)
            scores = [{**score, **self.others(old)} for score, old in zip(self._scores(seen), seen, strict=True)]
        counts = [len(old.test) for old in seen]
        total = sum(score[self.metric] * count for score, count in zip(scores, counts, strict=True))
        others = {name: [score[name] for score in scores] for name in scores[0] if name != self.metric}
        return {"scores": [s[self.metric] for s in scores], "others": others, "all": total / sum(counts),
                "unseen": self.unseen.after(task), "general": self.general.after(task),
                "answer": self._costs.each()}  # fmt: skip

    def score(self, task: Task) -> dict[str, float]:
        """The scores on one task's test examples."""
        self.domains.learned()
        return self._scores([task])[0]

    def _scores(self, tasks: Sequence[Task]) -> list[dict[str, float]]:
        """The scores on the test examples of each task. Where the stream does not tell the task at test, those of all
        tasks are asked together, which takes fewer calls of the method."""
        if self.stream.goal == "ranking":
            return [self._ranking(task) for task in tasks]
        if self.stream.tells_task:
            answers = [self._told(task, task.test) for task in tasks]
        else:
            together = Examples.concatenate([task.test for task in tasks])
            self._together = self._asked(together, None)
            answers = list(self._together.argmax(1).split([len(task.test) for task in tasks]))
        self._answers |= {task.index: answer for task, answer in zip(tasks, answers, strict=True)}
        return [{"accuracy": _share_right(answer, task.test)} for task, answer in zip(tasks, answers, strict=True)]

    def scores(self) -> torch.Tensor:
        """The scores (n, classes) of all test examples at the end, where the task is not told."""
        together, self._together = self._together, None
        if together is None or len(together) < sum(len(task.test) for task in self.stream):
            together = self._asked(Examples.concatenate([task.test for task in self.stream]), None)
        return together

    def among_known(self, last: list[float], scores: torch.Tensor | None) -> list[float]:
        """(T,): the score on each task at the end, where the answer is chosen among the classes that were known when
        the task was learned. So a class set that has grown since is not taken for forgetting.

        Args:
            last: (T,) the scores at the end among all classes, which are the same where no class came later.
            scores: (n, classes) of all test examples at the end; None where the task is told, or rankings are asked.
        """
        if scores is None or self.stream.tells_task:
            return last
        parts = scores.split([len(task.test) for task in self.stream])
        return [
            _share_right(part[:, : len(task.class_names)].argmax(1), task.test)
            for part, task in zip(parts, self.stream, strict=True)
        ]

    def on_validation(self) -> dict[str, Any] | None:
        """The score at the end on the validation examples of each task, by which methods may be chosen; None where the
        goal is ranking, or the stream has no such examples."""
        parts = [task.validation for task in self.stream]
        if self.stream.goal != "classes" or not any(map(len, parts)):
            return None
        tells = self.stream.tells_task
        scores = [
            _share_right(self._told(task, part) if tells else self._predicted(part, None), part) if len(part) else None
            for task, part in zip(self.stream, parts, strict=True)
        ]
        return {"scores": scores, "examples": [len(part) for part in parts]}

    def answers(self) -> tuple[list[int], list[int]]:
        """The labels of all test examples, and those that were predicted for them when they were asked last."""
        if self.stream.goal == "ranking":
            return [], []
        for task in self.stream:
            if task.index not in self._answers:  # a resumed run that had learned everything already
                self.score(task)
        labels = torch.cat([task.test.labels for task in self.stream])
        return labels.tolist(), torch.cat([self._answers[task.index] for task in self.stream]).tolist()

    def searched(self, recall_before: float | None) -> dict[str, Any] | None:
        """Where the goal is ranking: what results.json says of queries and indexes (see `retrieval/domains.py`).

        Args:
            recall_before: recall@10 on the last domain just before it was learned.
        """
        if self.stream.goal != "ranking":
            return None
        with torch.no_grad():
            return self.domains.summary(self.stream.tasks, recall_before)

    def others(self, task: Task) -> dict[str, float]:
        """What the method measures besides, and how right it would be if it were told the task.

        Raises:
            ContractError: it measures something of a reserved name, of another name than before, or no number.
        """
        found = dict(self.method.measures(task.test.bare(), task.index))
        for name, value in found.items():
            shown = printable(name)
            if not isinstance(name, str) or name.strip().lower() in [reserved.lower() for reserved in RESERVED]:
                raise ContractError(f"measures gave a value of the name '{shown}', which would replace the score: give "
                                    "it another name")  # fmt: skip
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ContractError(f"measures gave {printable(value)} as '{shown}': give a finite number")
        if self._measured is not None and found.keys() != self._measured:
            told = [printable(", ".join(sorted(names)) or "nothing") for names in (self._measured, found)]
            raise ContractError(f"measures gave {told[0]}, and now {told[1]}: give the same names every time")
        self._measured = set(found)
        found = {name: float(value) for name, value in found.items()}  # of numpy perhaps, which JSON cannot hold
        if self.stream.goal == "classes" and self.method.tags.task_at_test == "used" and not self.stream.tells_task:
            found = {**found, TOLD: _share_right(self._predicted(task.test, task.index), task.test)}
        return found

    def _told(self, task: Task, examples: Examples) -> torch.Tensor:
        """(n,): the predicted labels of a task's examples, where the stream tells the task at test."""
        is_told = self.method.tags.task_at_test != "ignored"
        return self._predicted(examples, task.index if is_told else None, list(task.classes))

    def _predicted(self, test: Examples, told: int | None, within: list[int] | None = None) -> torch.Tensor:
        """(n,): the label with the highest score for each test example; among the classes `within` only, where the
        stream tells the task at test."""
        scores = self._asked(test, told)
        return scores.argmax(1) if within is None else torch.tensor(within)[scores[:, within].argmax(1)]

    def _asked(self, test: Examples, told: int | None) -> torch.Tensor:
        """(n, classes): the scores of the test examples."""
        parts = []
        is_as_used = told is None or self.stream.tells_task  # and not what a method would say if it were told the task
        for start in range(0, len(test), CHUNK):
            chunk = test[range(start, min(start + CHUNK, len(test)))]
            with self._costs.counted(len(chunk)) if is_as_used else nullcontext():
                scores = _ask(self.method, chunk.bare(), told)
            if scores.isnan().any():
                row = int(scores.isnan().any(dim=1).nonzero()[0])
                raise ContractError(f"predict gave NaN scores, first for record {chunk.ids[row]}")
            parts.append(scores)
        return torch.cat(parts)

    def _ranking(self, task: Task) -> dict[str, float]:
        relevant = task.test.relevant
        assert relevant is not None
        with torch.no_grad():
            new = self.domains.found(task)
            kept = self.domains.found_in_kept(task) if self.domains.has_moved(task) else new
        both = {name: float(ndcg_at_k(found, relevant).mean()) for name, found in ((KEPT, kept), (NEW, new))}
        return score_rankings(kept if self.method.tags.index == "kept" else new, relevant) | both


def _ask(method: Method, inputs: list[Input], told: int | None) -> torch.Tensor:
    """Scores (n, classes seen so far), float32 on the CPU. Here, where the method is asked, are inputs alone.

    Raises:
        ContractError: they are not one row of floating-point scores per input.
    """
    with torch.no_grad():
        scores = method.predict(inputs, told)
    wanted = (len(inputs), len(method.task.class_names))
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != wanted or not scores.is_floating_point():
        is_tensor = isinstance(scores, torch.Tensor)
        gave = f"{tuple(scores.shape)} of {scores.dtype}" if is_tensor else f"a {type(scores).__name__}"
        raise ContractError(f"predict gave {gave}, expected {wanted} floating-point scores: a row for each input, a "
                            "column for each class seen so far")  # fmt: skip
    return scores.float().cpu()


def supports(
    tags: Tags, stream: Stream, backbone: Backbone | None = None, settings: Mapping[str, Any] = MappingProxyType({})
) -> str | None:
    """None if a method with `tags` can learn `stream` with `backbone`, else why not.

    Args:
        backbone: what it would learn with; without one, what it needs of a backbone is not asked.
        settings: those of the method.
    """
    if stream.input not in tags.inputs:
        return f"learns {' and '.join(tags.inputs)}, and stream '{stream.name}' has {stream.input}"
    if stream.goal not in tags.goals:
        return f"learns {' and '.join(tags.goals)}, and the goal of stream '{stream.name}' is {stream.goal}"
    if stream.kind not in tags.kinds:
        return f"learns {', '.join(tags.kinds)} streams, and stream '{stream.name}' is {stream.kind}"
    if tags.task_at_test == "needed" and not stream.tells_task:
        return f"needs the task's id at test, which stream '{stream.name}' ({stream.kind}) does not give"
    if backbone is None:
        return None
    if "class names" in tags.needs and stream.goal == "classes" and "text" not in backbone.reads:
        return f"reads the names of the classes, and backbone '{backbone.name}' reads no text"
    if "last layer" in tags.needs and backbone.layers > 1:
        return f"pools the last layer itself, and backbone '{backbone.name}' gives several: leave @layers= out"
    if "last layer" in tags.needs and isinstance(backbone, SideBySide):
        return f"pools the last layer itself, and backbone '{backbone.name}' joins features: name one encoder"
    if "two towers" in tags.needs and not hasattr(backbone, "towers"):
        return f"needs a backbone with two encoders, one of images and one of texts, and '{backbone.name}' is none"
    if backbone.is_image_text and stream.input == "text" and tags.trained_by(settings) in ("backbone", "peft"):
        return f"trains the image encoder of backbone '{backbone.name}', which reads no text: name a text encoder alone"
    return None


def _share_right(predicted: torch.Tensor, examples: Examples) -> float:
    return int((predicted == examples.labels).sum()) / len(examples)


def _new_classes(stream: Stream, task: Task) -> bool:
    return len(task.class_names) > len(stream[task.index - 1].class_names)
