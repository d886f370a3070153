"""Maximally interfered retrieval beside replay by chance and no replay, at several sizes of memory.

    python bench/mir.py [--streams a,b] [--sizes 150,300,600] [--seeds 0,1,2,3,4] [--train-per-class 30] [--out FOLDER]

A seed decides the order of the classes, which examples are learned and what the method draws. The learning rate is
chosen for each set on validation examples of its first three tasks, with `er` and the middle size, and is that of all
rows: `mir` differs from `er` only in what is replayed. Test examples choose nothing.

Written to docs/results/mir.md: final accuracy, the mean difference of `mir` from `er` over the seeds with its 95 %
interval and the p of a paired t-test, and how much longer a step takes. A folder that is given is gone on with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import common
from common import learned, spread

from everlearn.distillation.distill import with_validation
from everlearn.search import best
from everlearn.streams.stream import Stream
from everlearn.streams.validation import on_validation

RATES = (3e-4, 1e-3, 3e-3, 9e-3)
SETTINGS = {"train": "lora", "epochs": 2}
REPLAYED = 10
"""Examples that `er` and `mir` replay in a step; `mir` chooses them among fifty, as in its paper."""


def main() -> None:
    parser = common.options(__doc__, seeds="0,1,2,3,4")
    parser.add_argument("--streams", default="clinc150,banking77")
    parser.add_argument("--sizes", default="150,300,600", help="examples in the memory")
    parser.add_argument("--train-per-class", type=int, default=30)
    args, folder = common.parsed(parser)
    seeds, sizes = ([int(number) for number in given.split(",")] for given in (args.seeds, args.sizes))
    lines: list[str] = []
    measured: list[dict[str, Any]] = []
    for name in args.streams.split(","):
        rate = tuned(name, sizes[len(sizes) // 2], args, folder / name)
        found = {row: [] for row in [("finetune", 0), *((method, size) for size in sizes for method in ("er", "mir"))]}
        for seed in seeds:
            stream = of_seed(name, seed, args.train_per_class)
            for method, size in found:
                memory = {"memory_size": size, "replay_batch_size": REPLAYED} if size else {}
                section = {"name": method, **SETTINGS, "lr": rate, **memory}
                out = folder / name / f"{method} {size} {seed}"
                found[method, size].append(learned(section, stream, args.backbone, seed, out))
        measured += [run for runs in found.values() for run in runs]
        lines += [f"## {name}, learning rate {rate}", "", *table(found, sizes), ""]
        print("\n".join(lines), flush=True)
    common.write_page("mir", [
        "# Replay of what is interfered with", "", f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
        f"Measured: {args.train_per_class} training examples of each class, train={SETTINGS['train']}, "
        f"{SETTINGS['epochs']} epochs, {args.backbone}, seeds {args.seeds}, ± standard deviation; "
        f"{common.machines(measured)}.",
        "", *lines,
    ])  # fmt: skip


def of_seed(name: str, seed: int, train_per_class: int) -> Stream:
    return with_validation(name, class_seed=seed, split_seed=seed, max_train_per_class=train_per_class)


def tuned(name: str, size: int, args: argparse.Namespace, folder: Path) -> float:
    """The learning rate with the highest final accuracy of er on validation examples of the first three tasks."""
    judged, results = on_validation(of_seed(name, 0, args.train_per_class), 3), {}
    for rate in RATES:
        section = {"name": "er", **SETTINGS, "lr": rate, "memory_size": size, "replay_batch_size": REPLAYED}
        results[rate] = learned(section, judged, args.backbone, 0, folder / f"tuning {rate}")
        print(f"{name} lr={rate}: validation accuracy {results[rate]['final_accuracy']:.4f}", flush=True)
    return best(results)


def table(found: dict[tuple[str, int], list[dict[str, Any]]], sizes: Sequence[int]) -> list[str]:
    from scipy import stats

    nothing = spread(result["final_accuracy"] for result in found["finetune", 0])
    lines = ["| memory | no replay | er | mir | mir minus er | p | step of mir / er |", "|---" * 7 + "|"]
    for size in sizes:
        er, mir = ([result["final_accuracy"] for result in found[method, size]] for method in ("er", "mir"))
        apart = [100 * (b - a) for a, b in zip(er, mir, strict=True)]
        test = stats.ttest_rel(mir, er)
        low, high = (100 * bound for bound in test.confidence_interval())
        pairs = zip(found["er", size], found["mir", size], strict=True)
        ratio = median(trained(b) / trained(a) for a, b in pairs if common.computed_on([a]) == common.computed_on([b]))
        interval = f"{mean(apart):+.1f} ({low:+.1f} to {high:+.1f})"
        lines.append(f"| {size} | {nothing} | {spread(er)} | {spread(mir)} | {interval} | {test.pvalue:.3f} "
                     f"| {ratio:.2f} |")  # fmt: skip
    return lines


def trained(result: dict[str, Any]) -> float:
    """Seconds of training from the second task on, as the first task has nothing to replay."""
    return sum(task["train"] for task in result["seconds_per_task"][1:])


if __name__ == "__main__":
    main()
