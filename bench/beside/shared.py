"""What the comparisons with published code have in common: options, tasks, the batches of ours, and accuracies."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everlearn import streams
from everlearn.engine import Learning, Listener
from everlearn.streams.stream import Stream


def options(told: str | None, code: str, **numbers: int) -> argparse.ArgumentParser:
    """A parser with the options of all comparisons, and one for each number with its default.

    Args:
        code: the name of the published code.
    """
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, required=True, help=f"a checkout of {code}")
    parser.add_argument("--images", type=Path, required=True, help="folder of the Parquet files")
    for name, default in {"classes": 10, "train_per_class": 20, "test_per_class": 20, **numbers}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="a file for the accuracies")
    return parser


def first_tasks(args: argparse.Namespace, seed: int) -> Stream:
    """So many tasks of tinyimagenet100, whose classes the seed orders."""
    stream = streams.load(str(args.images / "tinyimagenet100"), tasks=100 // args.classes, class_seed=seed,
                          max_train_per_class=args.train_per_class, max_test_per_class=args.test_per_class)  # fmt: skip
    return Stream(stream.name, stream.kind, tuple(stream.tasks[: args.tasks]))


def find_moved_modules() -> None:
    """Let code be imported that names modules of timm which timm has moved since."""
    layers = importlib.import_module("timm.layers")
    for name in ("weight_init", "helpers"):
        sys.modules[f"timm.models.layers.{name}"] = importlib.import_module(f"{layers.__name__}.{name}")


def tests(stream: Stream, index: int) -> list[Any]:
    """The test inputs of a task and of all before it."""
    return [item for task in stream.tasks[: index + 1] for item in task.test.inputs]


def answered(method: Any, stream: Stream, index: int) -> Tensor:
    """What a method of ours answers to these."""
    method.eval()
    return method.predict(tests(stream, index)).argmax(1)


def accuracies(answers: list[Tensor], stream: Stream) -> list[float]:
    """In %, after each task on the tests so far."""
    labels = [torch.cat([task.test.labels for task in stream.tasks[: k + 1]]) for k in range(len(answers))]
    return [
        round(100 * (given == right).float().mean().item(), 2) for given, right in zip(answers, labels, strict=True)
    ]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> list[str]:
    """How many answers are the same after each task."""
    return [f"{int((a == b).sum())} of {len(a)}" for a, b in zip(ours, theirs, strict=True)]


class Batches(Listener):
    """Keeps which images were in each batch: their ids, by task and step."""

    def __init__(self) -> None:
        self.batches: list[list[list[str]]] = []

    def begun(self, learning: Learning) -> None:
        self.batches.append([])

    def stepped(self, learning: Learning) -> None:
        assert learning.optimizer_step is not None and learning.optimizer_step.batch is not None
        self.batches[-1].append(list(learning.optimizer_step.batch.ids))
