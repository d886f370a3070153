"""The results of a run: results.json, report.html, and the same fields in Python."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from everlearn import general_ability, unseen
from everlearn.checkpoint import method_state
from everlearn.evaluation import METRIC
from everlearn.files import write_whole
from everlearn.method import Method
from everlearn.metrics import summary
from everlearn.metrics.per_class import confusion, per_class
from everlearn.streams.stream import Stream

TIMINGS = ("seconds", "seconds_per_task", "peak_rss_bytes", "examples_encoded", "examples_served",
           "documents_per_second", "encoder_passes", "answer_per_task", "environment")  # fmt: skip
"""The fields that measure this execution; all others are equal to the bit in a repeated or resumed run."""


@dataclass
class Measured:
    """What a run has measured so far, as plain JSON.

    Args:
        rows: after each task, the scores on all tasks so far.
        seconds: for each task, the seconds of each phase.
        initial: the score of the untouched model on each task.
        before: the score on the present task before it is learned.
        recall_before: the same as recall@10, where the goal is ranking.
        untouched: the untouched model's zero-shot accuracy on the classes unseen after each task (`everlearn.unseen`).
        general: the score of the untouched encoder's embeddings on the last task (`everlearn.general_ability`).
        trainable: the most parameters that received gradient in a task.
        passes: examples that went through an encoder; an example counts once for each pass.
        encoded, served, encode_seconds: examples that the feature store had encoded, and had; the seconds of the first.
        pretrained_seconds: those of them that pre-trained encoders took.
        warned: the warnings that a reader of the results must see.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)
    initial: list[float | None] = field(default_factory=list)
    before: float | None = None
    recall_before: float | None = None
    untouched: list[float | None] = field(default_factory=list)
    general: float | None = None
    trainable: int = 0
    passes: int = 0
    encoded: int = 0
    served: int = 0
    encode_seconds: float = 0.0
    pretrained_seconds: float = 0.0
    warned: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A finished run. Every key of results.json is an attribute: ``result.final_accuracy``.

    Args:
        results: the content of results.json.
        directory: the run's folder, None where nothing was kept.

    Raises:
        AttributeError: results.json has no such key.

    >>> Result({"final_accuracy": 0.9, "retention": 0.97}, None).final_accuracy
    0.9
    """

    results: dict[str, Any]
    directory: Path | None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask for these before there are results
            raise AttributeError(name)
        try:
            return self.results[name]
        except KeyError:
            raise AttributeError(f"a result has no field '{name}'; it has {', '.join(self.results)}") from None


def assemble(
    method: Method, stream: Stream, config: dict[str, Any], measured: Measured, documents_per_second: float | None,
    calibration: dict[str, Any] | None = None, kept: int = 0, answers: tuple[list[int], list[int]] = ([], []),
    searched: dict[str, Any] | None = None, known: Sequence[float | None] | None = None,
    validation: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The fields of results.json, after the last task.

    Args:
        documents_per_second: that were embedded for an index, where the goal is ranking.
        calibration: as `everlearn.calibration.measured` gives it.
        kept: bytes of the held-out examples in the run's folder.
        answers: the labels of all test examples, and those that were predicted for them at the end.
        searched: as `everlearn.retrieval.domains.Domains.summary` gives it, where the goal is ranking.
        known: as `Evaluation.among_known` gives it; by default the last scores.
        validation: as `Evaluation.on_validation` gives it.
    """
    rows, size = measured.rows, len(stream)

    def padded(scores: list[float]) -> list[float | None]:
        return [*scores, *[None] * (size - len(scores))]

    matrix = [padded(row["scores"]) for row in rows]
    others = {name: [padded(row["others"][name]) for row in rows] for name in rows[0]["others"]}
    before = [row["before"] for row in rows]
    counts = [len(task.test) for task in stream]
    known = known or matrix[-1]
    seconds = {phase: sum(task.get(phase, 0.0) for task in measured.seconds) for phase in measured.seconds[-1]}
    stored: Counter[str] = Counter()
    for name, tensor in method_state(method).items():
        stored[name.split(".")[0]] += tensor.nbytes
    if kept:
        stored["held-out examples"] = kept
    return {
        "everlearn": version("everlearn"),
        "method": config["method"]["name"], "stream": stream.name, "kind": stream.kind,
        "input": stream.input, "goal": stream.goal, "backbone": method.backbone.name, "seed": config["seed"],
        "metric": METRIC[stream.goal],
        "tasks": [
            {"name": task.name, "classes": [task.class_names[k] for k in task.classes],
             "train": len(task.train), "test": len(task.test)}
            for task in stream
        ],
        "accuracy_matrix": matrix, "other_matrices": others,
        "before": before, "initial": measured.initial, "calibration": calibration, "retrieval": searched,
        "zero_shot": unseen.summary(measured.untouched, [row.get("unseen") for row in rows]),
        "general": general_ability.summary(measured.general, [row.get("general") for row in rows]),
        **summary(matrix, counts, before, measured.initial or [None] * size, known),
        "known": list(known), "validation": validation,
        "per_class": per_class(stream.class_names, *answers) if answers[0] else [],
        "confusion": confusion(stream.class_names, *answers) if answers[0] else None,
        "trainable_parameters": measured.trainable, "stored_bytes": sum(stored.values()), "stored": dict(stored),
        "stored_bytes_per_task": [row.get("stored_bytes") for row in rows],
        "answer_per_task": [row.get("answer") for row in rows],
        "seconds": {"total": sum(seconds.values()), **seconds, "encode": measured.encode_seconds,
                    "encode_pretrained": measured.pretrained_seconds},
        "seconds_per_task": measured.seconds,
        "peak_rss_bytes": peak_memory(),
        "examples_encoded": measured.encoded, "examples_served": measured.served,
        "documents_per_second": documents_per_second, "encoder_passes": measured.passes,
        "environment": environment(method.backbone),
        "warnings": measured.warned, "notes": list(stream.notes), "paper_compat": method.paper_compat,
        "diagnostics": method.diagnostics(), "fingerprint": stream.fingerprint(), "config": config,
    }  # fmt: skip


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json and report.html, each completely or not at all."""
    from everlearn.report import render, write_page

    write_whole(folder / "results.json", json.dumps(results, indent=1))
    write_page(render([results]), folder / "report.html")


def reset_peak_memory() -> None:
    """Start measuring the peak memory anew, if the system supports it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident memory of this process since the last reset, in bytes."""
    with contextlib.suppress(OSError):  # Linux; there getrusage counts what the process had that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        if peaks := [line for line in lines if line.startswith("VmHWM:")]:
            return 1024 * int(peaks[0].split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def environment(backbone: Any) -> dict[str, Any]:
    """The hardware and software that the figures were measured on."""
    return {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": version("transformers"),
        "cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "frozen_precision": backbone.precision, "system": platform.system(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def rounding() -> str:
    """What decides how sums are rounded, so that a resumed run can say where it may differ in the last digits."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    threads = torch.get_num_threads()
    return f"torch {torch.__version__} on {device} with {threads} thread{'s' if threads > 1 else ''}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
