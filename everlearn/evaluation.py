"""Scores of a method on the tasks of a stream, after every task, without leaks."""

from __future__ import annotations

from typing import Any

import torch

from everlearn.errors import ContractError
from everlearn.method import Method, Tags
from everlearn.metrics.retrieval import evaluate_rankings
from everlearn.streams.stream import Examples, Stream, Task

CHUNK = 1024  # examples handed to `predict` at once; its answers may not depend on it


class Evaluation:
    """Evaluates `method` on `stream`: accuracy for classes, nDCG@10 for text pairs."""

    def __init__(self, stream: Stream, method: Method) -> None:
        self.stream, self.method = stream, method
        self.metric = "nDCG@10" if stream.modality == "pairs" else "accuracy"

    def initial(self) -> list[float | None]:
        """The untouched model's score on each task, where one is defined: retrieval before any
        learning; chance where a domain brings no new class."""
        if self.stream.modality == "pairs":
            return [self.score(task)[self.metric] for task in self.stream]
        return [
            1 / len(task.class_names) if task.index and not _new_classes(self.stream, task) else None
            for task in self.stream
        ]

    def before(self, task: Task) -> float | None:
        """The score on `task` just before it is learned; None where it brings new classes."""
        if task.index == 0 or (self.stream.modality != "pairs" and _new_classes(self.stream, task)):
            return None
        return self.score(task)[self.metric]

    def after(self, task: Task) -> dict[str, Any]:
        """One row: the score on every task up to `task`, and over all their test examples together."""
        seen = self.stream.tasks[: task.index + 1]
        with torch.no_grad():
            scores = [{**self.score(old), **self.method.measures(old)} for old in seen]
        counts = [len(old.test) for old in seen]
        total = sum(score[self.metric] * count for score, count in zip(scores, counts, strict=True))
        others = {name: [score[name] for score in scores] for name in scores[0] if name != self.metric}
        return {"scores": [s[self.metric] for s in scores], "others": others, "all": total / sum(counts)}

    def score(self, task: Task) -> dict[str, float]:
        """The scores on one task's test examples."""
        if self.stream.modality == "pairs":
            assert task.corpus is not None
            assert task.test.relevant is not None
            queries = self.method.embed(task.test.inputs)
            documents = self.method.embed(task.corpus.texts)
            return evaluate_rankings(queries, documents, task.corpus.ids, task.test.relevant)
        within = list(task.classes) if self.stream.kind == "task-incremental" else None
        predicted = torch.cat([self._labels(chunk, within) for chunk in _chunks(task.test)])
        return {"accuracy": (predicted == task.test.labels).double().mean().item()}

    def _labels(self, examples: Examples, within: list[int] | None) -> torch.Tensor:
        """The predicted labels; among `within` only, where the task is told at test."""
        with torch.no_grad():
            scores = self.method.predict(examples).float().cpu()
        if scores.isnan().any():
            row = int(scores.isnan().any(dim=1).nonzero()[0])
            raise ContractError(f"predict gave NaN scores, first for record {examples.ids[row]}")
        return scores.argmax(1) if within is None else torch.tensor(within)[scores[:, within].argmax(1)]


def supports(tags: Tags, stream: Stream) -> str | None:
    """None if a method with `tags` can learn `stream`, else why not."""
    if stream.modality not in tags.modalities:
        return f"learns {' and '.join(tags.modalities)}, and stream '{stream.name}' has {stream.modality}"
    if stream.kind not in tags.kinds:
        return f"learns {', '.join(tags.kinds)} streams, and stream '{stream.name}' is {stream.kind}"
    if tags.needs_task_id and stream.kind != "task-incremental":
        return f"needs the task's id at test, which stream '{stream.name}' ({stream.kind}) does not give"
    return None


def _new_classes(stream: Stream, task: Task) -> bool:
    return len(task.class_names) > len(stream[task.index - 1].class_names)


def _chunks(examples: Examples) -> list[Examples]:
    return [examples[range(at, min(at + CHUNK, len(examples)))] for at in range(0, len(examples), CHUNK)]
