"""SetFit beside heads on frozen features, and beside the setfit package, with a few examples of each class.

    python bench/setfit.py [--sets trec6,banking77] [--shots 8,16] [--seeds 0,1,2] [--package PYTHON] [--out FOLDER]

For each set and number of examples a class, every method learns all classes at once from the same examples, which the
seed draws. SetFit and the package draw R pairs of each kind for every example (R is in SETS: fewer where there are many
classes, because of the cost), make the same number of steps and start from the same encoder. Nothing is chosen: all
settings are the defaults. The package needs a Python that has it (`pip install setfit`), or its columns are left out.

Beside each set stand the mean cosines of two examples of one class and of two classes, before anything is learned.

Then classes are added in five tasks (`--adding SET`), and old test examples are asked again after each: among the
classes that were known when theirs were learned, and among all.

A folder that is given is gone on with; with `--page` nothing is measured, and the page shows what the folder holds.
Written to docs/results/setfit.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import common
import torch

from everlearn import backbones, export, methods, streams
from everlearn.calibration import scores_of
from everlearn.engine import learn
from everlearn.method import Method
from everlearn.results import environment
from everlearn.streams.stream import Examples, Stream

SETS = {"trec6": (10, 250), "agnews": (10, 125), "banking77": (5, 20), "clinc150": (2, 10)}
"""R, and the most test examples of a class."""
FROZEN = ("simplecil", "lda", "logistic")
COLUMNS = (*FROZEN, "setfit", "package, own head", "package, same head")
TASKS, ADDING_PAIRS = 5, 2
"""Of the part in which classes are added, and its R."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="trec6,agnews,banking77")
    parser.add_argument("--shots", default="8,16", help="examples of each class")
    parser.add_argument(
        "--adding", default="banking77", help="the set whose classes are added in tasks; empty for none"
    )
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--texts", type=Path, default=common.SHARED / "text", help="NAME_train.parquet and so on")
    parser.add_argument("--package", default=sys.executable, help="a Python that has the setfit package")
    parser.add_argument("--page", action="store_true", help="measure nothing more")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, help="a folder for the results; a temporary one by default")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = args.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    has_package = subprocess.run([args.package, "-P", "-c", "import setfit"], capture_output=True).returncode == 0
    if not has_package:
        print(f"{args.package} has no package setfit (pip install setfit), so its columns are left out", flush=True)
    told = (args.backbone, args.texts, args.threads)
    seeds, rows = [int(seed) for seed in args.seeds.split(",")], {}
    for name in filter(None, args.sets.split(",")):
        for shots in map(int, args.shots.split(",")):
            for seed in seeds:
                found = kept(folder / f"{name}-{shots}-{seed}.json", args.page, compared, name, shots, seed, *told)
                found |= kept(folder / f"{name}-{shots}-{seed}-cosines.json", args.page,
                              cosines, name, shots, seed, *told)  # fmt: skip
                if has_package or args.page:
                    found |= kept(folder / f"{name}-{shots}-{seed}-package.json", args.page,
                                  of_package, name, shots, seed, *told, args.package)  # fmt: skip
                if len(steps := {found[key] for key in ("steps", "package, steps") if key in found}) > 1:
                    raise SystemExit(f"setfit and the package made different numbers of steps: {steps}")
                rows.setdefault((name, shots), []).append(found)
                print(name, shots, seed, {key: found.get(key) for key in COLUMNS}, flush=True)
    lines = ["# SetFit", "", f"From `{common.command(parser, args, ('out', 'threads', 'texts', 'package', 'page'))}`.",
             "", f"Measured: {args.backbone}, seeds {args.seeds}; {machine(rows)}.", "", *table(rows)]  # fmt: skip
    if args.adding:
        shots = int(args.shots.split(",")[0])
        added = [kept(folder / f"{args.adding}-{shots}-{seed}-adding.json", args.page,
                      adding, args.adding, shots, seed, *told) for seed in seeds]  # fmt: skip
        if any(added):
            lines += ["", f"## {args.adding} in {TASKS} tasks, {shots} examples a class, R = {ADDING_PAIRS}", "",
                      *adding_table([run for run in added if run])]  # fmt: skip
    common.write_page("setfit", lines)


def few(name: str, texts: Path, shots: int, seed: int, tasks: int = 1) -> Stream:
    """The set with so many training examples of each class."""
    options: dict[str, Any] = {"tasks": tasks, "split_seed": seed, "max_train_per_class": shots,
                               "max_test_per_class": SETS[name][1]}  # fmt: skip
    if name in streams.names():
        return streams.load(name, **options)
    return streams.load(str(texts / f"{name}_train.parquet"), test=str(texts / f"{name}_test.parquet"), **options)


def kept(file: Path, is_all: bool, measure: Callable[..., dict[str, Any]], *told: Any) -> dict[str, Any]:
    """What the file holds, or what is measured and written there now; nothing, if what is held `is_all`."""
    if is_all and not file.exists():
        return {}
    held: dict[str, Any] = common.kept(file, lambda: measure(*told))
    return held


def build(name: str, pairs: int, backbone: str, seed: int) -> Method:
    return methods.get(name)(backbones.load(backbone), seed=seed, **({"pairs": pairs} if name == "setfit" else {}))


def share(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Of the examples, those whose class has the highest score."""
    return float((scores.argmax(1) == labels).double().mean())


def compared(name: str, shots: int, seed: int, backbone: str, texts: Path, threads: int) -> dict[str, Any]:
    stream = few(name, texts, shots, seed)
    test = stream[0].test
    found: dict[str, Any] = {"examples": len(stream[0].train), "tests": len(test)}
    for column in (*FROZEN, "setfit"):
        method, started = build(column, SETS[name][0], backbone, seed), time.perf_counter()
        learning = learn(method, stream[0])
        found[f"{column} seconds"] = time.perf_counter() - started
        found[column] = share(scores_of(method, test.inputs), test.labels)
    return found | {"steps": learning.steps, "environment": environment(method.backbone)}


def cosines(name: str, shots: int, seed: int, backbone: str, texts: Path, threads: int) -> dict[str, float]:
    """Of two training examples of one class, and of two classes, before anything is learned: the mean."""
    train = few(name, texts, shots, seed)[0].train
    features = torch.nn.functional.normalize(backbones.load(backbone).encode(train.inputs).float(), dim=1)
    found, same = features @ features.T, train.labels[:, None] == train.labels
    other_example = ~torch.eye(len(train), dtype=torch.bool)
    return {"same class": found[same & other_example].mean().item(), "other class": found[~same].mean().item()}


def of_package(
    name: str, shots: int, seed: int, backbone: str, texts: Path, threads: int, python: str
) -> dict[str, Any]:  # fmt: skip
    stream = few(name, texts, shots, seed)
    train, test = stream[0].train, stream[0].test
    told = {"texts": list(train.inputs), "labels": train.labels.tolist(), "tests": list(test.inputs),
            "test_labels": test.labels.tolist(), "pairs": SETS[name][0], "seed": seed, "strength": 30.0,
            "threads": threads}  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        encoder, file = build("simplecil", 0, backbone, seed), Path(place) / "told.json"
        learn(encoder, stream[0])
        told["encoder"] = str(export.export(encoder, "sentence-transformers", Path(place) / "encoder"))
        file.write_text(json.dumps(told), encoding="utf-8")
        run = subprocess.run([python, "-P", str(Path(__file__).with_name("setfit_package.py")), str(file)],
                             capture_output=True, text=True)  # fmt: skip
    if run.returncode:
        raise SystemExit(f"the setfit package failed on {name}: {run.stderr.strip()[-2000:]}")
    said = json.loads(run.stdout.strip().splitlines()[-1])
    return {f"package, {key}": value for key, value in said.items()}


def adding(name: str, shots: int, seed: int, backbone: str, texts: Path, threads: int) -> dict[str, Any]:
    """For each method and task, the accuracy of the test examples of the tasks before: just before and after it among
    the old classes, and after it among all."""
    stream, found = few(name, texts, shots, seed, TASKS), {}
    for column in ("logistic", "setfit"):
        method, steps, asked, before = build(column, ADDING_PAIRS, backbone, seed), [], Examples.concatenate([]), 0.0
        for task in stream:
            old, known = len(asked), len(task.class_names) - len(task.classes)
            learn(method, task)
            asked = Examples.concatenate([asked, task.test])
            scores = scores_of(method, asked.inputs)
            if old:
                steps.append({"before": before, "after": share(scores[:old, :known], asked.labels[:old]),
                              "among all": share(scores[:old], asked.labels[:old])})  # fmt: skip
            before = share(scores, asked.labels)
        found[column] = {"steps": steps, "final": before}
    return found


def spread(values: Iterable[float | None]) -> str:
    """The mean in per cent with the spread of seeds, of those that were measured."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.1f} " + (f"± {stdev(known):.1f}" if len(known) > 1 else "(one seed)")


def machine(rows: dict[Any, list[dict[str, Any]]]) -> str:
    return common.machine(next(run for runs in rows.values() for run in runs if "setfit" in run)["environment"])


def table(rows: dict[Any, list[dict[str, Any]]]) -> list[str]:
    lines = [f"| set | examples a class | cosines before | R | steps | {' | '.join(COLUMNS)} | seconds, setfit "
             "| seconds, package |", "|---" * (7 + len(COLUMNS)) + "|"]  # fmt: skip
    for (name, shots), runs in rows.items():
        runs = [run for run in runs if "setfit" in run]
        if not runs:
            continue
        cells = [spread(run.get(column) for run in runs) for column in COLUMNS]
        for key in ("setfit seconds", "package, seconds"):
            seconds = [run[key] for run in runs if key in run]
            cells.append(f"{mean(seconds):.0f}" if seconds else "-")
        before = [mean(run[which] for run in runs) for which in ("same class", "other class")]
        lines.append(f"| {name} | {shots} | {before[0]:.2f}, {before[1]:.2f} | {SETS[name][0]} | {runs[0]['steps']} "
                     f"| {' | '.join(cells)} |")  # fmt: skip
    return lines


def adding_table(runs: list[dict[str, Any]]) -> list[str]:
    lines = ["| task | method | old classes before | after, among the old | after, among all |", "|---" * 5 + "|"]
    for index in range(TASKS - 1):
        for column in ("logistic", "setfit"):
            steps = [run[column]["steps"][index] for run in runs]
            cells = [spread(step[key] for step in steps) for key in ("before", "after", "among all")]
            lines.append(f"| {index + 2} | {column} | {' | '.join(cells)} |")
    finals = {column: spread(run[column]["final"] for run in runs) for column in ("logistic", "setfit")}
    return [*lines, "", f"All classes at the end: logistic {finals['logistic']}, setfit {finals['setfit']}."]


if __name__ == "__main__":
    main()
