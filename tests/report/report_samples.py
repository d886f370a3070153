"""Made-up results of runs, in the form of results.json."""

from __future__ import annotations

import random
from typing import Any

from everlearn import metrics
from everlearn.metrics import per_class


def results(
    tasks: int = 10,
    method: str = "ranpac",
    *,
    level: float = 0.96,
    loss: float = 0.01,
    seconds: float = 42.0,
    seed: int = 0,
    classes: int = 15,
    **changes: Any,
) -> dict[str, Any]:
    """A run that scores about `level` on a new task and loses `loss` of each old one a task."""
    rng = random.Random(f"{method}{tasks}{seed}")
    matrix = [
        [
            max(0.0, min(1.0, level - loss * (i - j) + rng.uniform(-0.03, 0.03))) if j <= i else None
            for j in range(tasks)
        ]
        for i in range(tasks)
    ]
    counts = [450] * tasks
    before, initial = [None] * tasks, [None] * tasks
    parts = {"begin": 0.01, "train": 0.6, "end": 0.24, "evaluate": 0.15}
    phases = {name: share * seconds for name, share in parts.items()}
    per_task = [
        {"total": seconds / tasks, **{n: s / tasks * (1 + 0.1 * i) for n, s in phases.items()}} for i in range(tasks)
    ]
    return {
        "everlearn": "0.1.0", "method": method, "stream": "clinc150", "kind": "class-incremental",
        "input": "text", "goal": "classes", "backbone": "minilm", "seed": seed, "metric": "accuracy",
        "tasks": [
            {"name": f"task {i + 1}", "classes": [f"intent {i}.{c}" for c in range(classes)],
             "train": 1500, "test": 450}
            for i in range(tasks)
        ],
        "accuracy_matrix": matrix, "other_matrices": {}, "before": before, "initial": initial,
        **metrics.summary(matrix, counts, before, initial), "known": matrix[-1], "validation": None,
        "stored_bytes_per_task": [2_000_000 + 1_900_000 * i for i in range(tasks)],
        "answer_per_task": [{"milliseconds": 0.2 + 0.1 * i, "encoder_passes": 1.0 + i, "stored_features": 1.0}
                            for i in range(tasks)],
        "trainable_parameters": 1_500_000, "stored_bytes": 21_000_000,
        "stored": {"head": 6_000_000, "statistics": 15_000_000, "memory": 0},
        "seconds": {"total": seconds, **phases, "encode": 0.3 * seconds}, "seconds_per_task": per_task,
        "peak_rss_bytes": 1_234_567_890, "examples_encoded": 22_500, "examples_served": 81_000,
        "environment": {"python": "3.11.7", "torch": "2.15.0", "transformers": "5.23.0", "cpu": "x86_64",
                        "threads": 2, "accelerator": None, "date": "2026-11-22"},
        "warnings": [], "notes": [], "paper_compat": False, "diagnostics": {}, "fingerprint": "5f" * 32,
        "config": {"stream": {"name": "clinc150", "tasks": tasks}, "method": {"name": method, "width": 5000},
                   "backbone": "minilm", "seed": seed},
        **changes,
    }  # fmt: skip


def with_classes(run: dict[str, Any], right: float = 0.9) -> dict[str, Any]:
    """The run with the scores of its classes, of which each has 30 test examples."""
    draw = random.Random(0)
    names = [name for task in run["tasks"] for name in task["classes"]]
    truth = [k for k in range(len(names)) for _ in range(30)]
    answers = [k if draw.random() < right else draw.randrange(len(names)) for k in truth]
    scores, confused = per_class.per_class(names, truth, answers), per_class.confusion(names, truth, answers)
    return {**run, "per_class": scores, "confusion": confused}


def rich() -> dict[str, Any]:
    """A run that has everything a report can show, and text that tries to break out of it."""
    attack = '<script>document.title = "owned"</script>'
    run = results(
        5, warnings=[f"12 rows were skipped {attack}"], notes=["one stream of several orders"], paper_compat=True,
        diagnostics={
            "ridge": {"lambda": 100.0, "chosen by": "validation", "tried": [1.0, 10.0, 100.0]},
            "per task": [{"task": 1, "rank": 12}, {"task": 2, "rank": 30}],
            "similarity": [[1.0, 0.2], [0.2, 1.0]],
            "distance": {"histogram": {"counts": [3, 9, 4, 0, 1], "edges": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]},
                         "mean": 0.8},
            "prompts used": {"histogram": {attack: 4, "b": 7}},
            "deep": {"er": {"est": {"still": "shown"}}},
        },
    )  # fmt: skip
    run["tasks"][1]["classes"] = [attack, '"><img src=x onerror="document.title=1">', "𝄞 שלום", "\ud800"]
    run["tasks"][2]["name"] = attack
    run["stream"] = f"my {attack}.csv"
    return with_classes(run)


def retrieval() -> dict[str, Any]:
    run = results(
        2, "replay", level=0.42, loss=0.05, metric="nDCG@10", stream="scifact-then-nfcorpus", kind="old-then-new",
        goal="ranking", before=[0.3, 0.25], initial=[0.3, 0.22], forward_transfer=0.03,
    )  # fmt: skip
    for i, task in enumerate(run["tasks"]):
        task.update(classes=[], name=["scifact", "nfcorpus"][i])
    run["other_matrices"] = {"recall@10": [[0.5, None], [0.45, 0.5]], "mrr@10": [[0.4, None], [0.35, 0.4]]}
    return run


def several() -> list[dict[str, Any]]:
    """Twelve methods: good, forgetful, stiff, leaking, failed and skipped ones."""
    spec = {
        "joint": (0.97, 0.0, 300), "ranpac": (0.96, 0.004, 42), "simplecil": (0.88, 0.003, 9),
        "slda": (0.93, 0.004, 15),
        "l2p": (0.9, 0.02, 260), "coda_prompt": (0.93, 0.012, 320), "ewc": (0.95, 0.06, 120), "lwf": (0.94, 0.045, 130),
        "er": (0.95, 0.015, 110), "derpp": (0.955, 0.012, 140), "finetune": (0.97, 0.12, 80), "frozen": (0.6, 0.0, 5),
    }  # fmt: skip
    runs = [results(10, name, level=a, loss=b, seconds=float(c)) for name, (a, b, c) in spec.items()]
    runs[4]["paper_compat"] = True
    return [
        *runs,
        {"method": "hat", "error": "RuntimeError: the mask <b>overflowed</b> (traceback in runs/hat/error.txt)"},
        {"method": "zscl", "skipped": "it does not cover text streams"},
    ]
