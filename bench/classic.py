"""Replay, regularisation and isolation with equal budgets: the same memory, and the same steps in every task.

    python bench/classic.py clinc150 [--train full|lora] [--sizes 300,750,1500] [--unit examples|bytes] [--steps 45]
                                     [--seeds 0,1,2] [--methods er,der_pp] [--recipes auto] [--out FOLDER]
    python bench/classic.py banking77 --sizes 154,385,770
    python bench/classic.py tinyimagenet100 --data FOLDER --backbone vit-tiny@112 --train-per-class 20 \\
        --test-per-class 10 --sizes 200,500,1000 --steps 21
    python bench/classic.py texts4 --data FOLDER --test-per-class 100 --sizes 60,120,240 --steps 45

FOLDER holds NAME_train.parquet and NAME_test.parquet. texts4 is AG News, DBpedia, Amazon and Yelp, a task each, from
the files of these four in FOLDER; Amazon and Yelp have the same five classes. A seed decides the order of the classes
(not that of the four sets), which examples are learned, and what a method draws. Finished runs are not repeated, so the
same command goes on with a stopped one, and other sizes and methods are added to the page; nor are those that
docs/results/single_runs/classic_STREAM.jsonl keeps, except with --again.

Methods that keep examples run with every size of memory, the others once; the sizes above are about 2, 5 and 10
examples of a class. Settings are those of the recipes. With --train lora the rate of the insertion is the method's
own, because the one of the recipe was chosen for all weights. Methods of isolation find the task of an example, and are
also judged with the task told. Written to docs/results/classic_STREAM.md, or classic_STREAM_lora.md: all methods with
the middle memory, then those that replay with each memory, and the paired difference of `der_pp` and `er`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import command, machines, store_features, tuning_gain, write_page
from families import judged_by_name, mean, points, recipe, spread
from families import stream as stream_of
from kept_runs import finished, keep, missing

from everlearn import compare, methods, streams
from everlearn.evaluation import TOLD
from everlearn.formats import ranged
from everlearn.judgement import differences, judge
from everlearn.metrics.intervals import conclusion
from everlearn.processes import default_jobs
from everlearn.repeats import varied
from everlearn.settings import arguments

METHODS = (
    "joint", "finetune", "frozen", "simplecil", "ranpac",
    "er", "er_ace", "der", "der_pp", "icarl", "gem", "a_gem", "gdumb", "feature_replay",
    "ewc", "si", "mas", "lwf", "l2_sp", "feature_distillation",
    "packnet", "hat", "piggyback",
)  # fmt: skip
BESIDE = ("methods", "seeds", "again", "data", "out")
"""Options that select which runs a call makes, but do not change the runs themselves."""

FOUR = ("agnews", "dbpedia14", "amazon", "yelp")

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("stream")
PARSER.add_argument("--data", type=Path, help="folder of the Parquet files, for a stream that is not in the package")
PARSER.add_argument("--backbone")
PARSER.add_argument("--methods", default=",".join(METHODS))
PARSER.add_argument("--train", choices=("full", "lora"), default="full", help="what methods train, if they may choose")
PARSER.add_argument("--sizes", default="300,750,1500", help="of the memory")
PARSER.add_argument("--unit", choices=("examples", "bytes"), default="examples", help="of the sizes")
PARSER.add_argument("--steps", type=int, default=45, help="of the optimizer in a task")
PARSER.add_argument("--recipes", default="auto", help="the collection of recipes; by default that of the stream")
PARSER.add_argument("--tasks", type=int, default=10)
PARSER.add_argument("--train-per-class", type=int, default=30)
PARSER.add_argument("--test-per-class", type=int)
PARSER.add_argument("--seeds", default="0,1,2")
PARSER.add_argument("--again", action="store_true", help="also learn what is kept, with the present settings")
PARSER.add_argument("--out", type=Path, help="a folder for the runs; a temporary one by default")


def main() -> None:
    args = PARSER.parse_args()
    folder = args.out or Path(tempfile.mkdtemp())
    if args.stream == "texts4":
        args.data = joined(args.data, folder)
    sizes = [int(size) for size in args.sizes.split(",")]
    for seed in map(int, args.seeds.split(",")):
        store_features(streams.load(**varied(stream(args), seed)), args.backbone)
        for size in sizes:
            names = [name for name in args.methods.split(",") if keeps(name) or size == sizes[len(sizes) // 2]]
            if not args.again:
                names = missing(page(args), label(args, size), seed, names)
            if names:
                learn(args, names, size, seed, folder)
        write(args, folder, sizes)


def keeps(name: str) -> bool:
    """Whether a method keeps examples, so that a size of the memory makes a difference."""
    return bool({"memory_size", "memory_bytes"} & set(arguments(methods.get(name))))


def page(args: argparse.Namespace) -> str:
    return f"classic_{args.stream}{'' if args.train == 'full' else '_lora'}"


def label(args: argparse.Namespace, size: int) -> str:
    """How the folders of a memory size begin."""
    return f"{args.stream} {args.train} {size} {args.unit} {args.steps} steps"


def learn(args: argparse.Namespace, names: list[str], size: int, seed: int, folder: Path) -> None:
    """Run these methods with one memory and one seed."""
    sections = []
    for name in names:
        known = arguments(methods.get(name))
        section: dict[str, Any] = {"name": name}
        if args.train != "full" and "train" in known:
            section["train"] = args.train
        if args.unit == "examples" and keeps(name):
            section["memory_size"] = size
        sections.append(section)
    for run in compare(sections, varied(stream(args), seed), backbone=args.backbone, seed=seed, recipe=args.recipes,
                       out=folder / f"{label(args, size)}-seed{seed}", budget_steps=args.steps,
                       budget_bytes=size if args.unit == "bytes" else None,
                       progress=True, jobs=default_jobs()):  # fmt: skip
        if "error" in run:
            print(f"{run['method']} failed: {run['error']}")


def told_the_task(runs: list[dict[str, Any]]) -> str:
    """The mean accuracy of the tasks at the end, where a method was also told the task of each example."""
    found = [run.get("other_matrices", {}).get(TOLD) for run in runs]
    return spread([{"told": statistics.mean(matrix[-1])} for matrix in found if matrix], "told")


def stream(args: argparse.Namespace) -> dict[str, Any]:
    settings = stream_of(args)
    if args.stream == "texts4":
        settings = {**settings, "kind": "domain-incremental", "domain_column": "domain", "domains": list(FOUR)}
        del settings["tasks"], settings["class_seed"]
    return settings


def joined(data: Path, folder: Path) -> Path:
    """The folder of texts4_train.parquet and texts4_test.parquet, made of the four sets."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        tables = []
        for name in FOUR:
            table = parquet.read_table(data / f"{name}_{part}.parquet")
            of_set = json.loads(table.schema.metadata[b"class_names"])
            told = [of_set[label] for label in table["label"].to_pylist()]
            tables.append(pyarrow.table({"text": table["text"].cast(pyarrow.string()), "label": told,
                                         "domain": [name] * len(table)}))  # fmt: skip
        parquet.write_table(pyarrow.concat_tables(tables), folder / f"texts4_{part}.parquet")
    return folder


def write(args: argparse.Namespace, folder: Path, sizes: list[int]) -> None:
    """Write the page from all finished runs."""
    sets = finished(page(args), [label(args, size) for size in sizes], folder)
    by_size = dict(zip(sizes, sets.values(), strict=True))
    seeds = sorted({run["seed"] for rows in by_size.values() for runs in rows.values() for run in runs})
    middle = sizes[len(sizes) // 2]
    rows = by_size[middle]
    first = next(iter(rows.values()))[0]
    judged = judged_by_name(rows)
    unit = args.unit if args.unit == "bytes" else "old examples"
    what = "all weights" if args.train == "full" else "LoRA, where a method may choose"
    lines = [
        f"# {args.stream}: replay, regularisation and isolation", "",
        f"Measured with `{command(PARSER, args, BESIDE)}`: {len(first['tasks'])} tasks, "
        f"{first['backbone']}, {what}, {args.steps} steps in a task, at most {args.train_per_class} training examples "
        f"per class, seeds {', '.join(map(str, seeds))}; {machines(run for runs in rows.values() for run in runs)}. "
        "Mean ± 95 % interval.", "",
        f"## All methods, with {middle:,} {unit}", "",
        "| method | seeds | final | told the task | old | new | gate | forgetting proper | general | tuning "
        "| stored, MB | seconds |",
        "|---" * 12 + "|",
    ]  # fmt: skip
    for name in sorted(rows, key=lambda name: -mean(rows[name], "final_accuracy")):
        one, runs, gain = judged[name], rows[name], tuning_gain(recipe(args, name))
        figures = [ranged(one.final), told_the_task(runs), ranged(one.old), ranged(one.new), one.at_the_gate,
                   spread(runs, "forgetting_proper"),
                   ranged(one.general) if one.general else "", "" if gain is None else f"{gain:+.1f}"]  # fmt: skip
        lines.append(f"| {name} | {len(runs)} | {' | '.join(figures)} "
                     f"| {statistics.mean(run['stored_bytes'] for run in runs) / 1e6:.1f} "
                     f"| {statistics.mean(run['seconds']['total'] for run in runs):.0f} |")  # fmt: skip
    replays = [name for name in METHODS if keeps(name)]
    lines += ["", "## By the size of the memory", "", "Final accuracy.", "",
              f"| {unit} | {' | '.join(replays)} | der_pp ≥ er |", "|---" * (len(replays) + 2) + "|"]  # fmt: skip
    for size, found in by_size.items():
        cells = [spread(found[name], "final_accuracy") if name in found else "" for name in replays]
        told = ""
        if {"er", "der_pp"} <= set(found):
            both = {one.method: one for one in judge([*found["er"], *found["der_pp"]])}
            gap = differences([both["der_pp"]], both["er"]).get(0)
            told = f"{conclusion(gap)} ({points(gap)})"
        lines.append(f"| {size:,} | {' | '.join(cells)} | {told} |")
    write_page(page(args), lines)
    keep(page(args), sets)


if __name__ == "__main__":
    main()
