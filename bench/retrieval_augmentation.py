"""Retrieved neighbours and new layers, beside heads on the same frozen features.

    python bench/retrieval_augmentation.py [--sets clinc150,banking77] [--methods a;b] [--seeds 0,1,2] [--out FOLDER]
    python bench/retrieval_augmentation.py --sets tinyimagenet100 --data FOLDER --backbone vit-tiny@112

The streams are those of bench/families.py: 10 tasks, 30 training examples per class, class order seed 1993. Settings
are those of the clinc150 recipes, with the changes that a row names. What is chosen (λ, k, T of
`knn`) is chosen on training examples; test examples choose nothing. The features of the frozen encoder are stored
before anything is learned, so the seconds of no row hold them. Runs of FOLDER are not repeated, so the same command
goes on with a stopped one, and the table has every finished run of it. A seed decides only what a method draws: rows
without anything random run once.

Writes docs/results/retrieval_augmentation.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import common
import torch
from families import spread

from everlearn import streams
from everlearn.streams.stream import Stream

METHODS: dict[str, dict[str, Any]] = {
    "simplecil": {},
    "lda": {},
    "logistic": {},
    "knn, λ = 0": {"interpolation": 0.0},
    "knn, λ auto": {},
    "knn, λ = 1": {"interpolation": 1.0},
    "knn of lda, λ auto": {"head": "lda"},
    "extra_layers": {},
    "extra_layers, a block a task": {"blocks": "per task"},
    "extra_layers, no distillation": {"strength": 0.0},
    "retrieval_augmented, nothing tuned": {"train": "head"},
    "retrieval_augmented": {},
    "ranpac": {},
    "lora": {},
    "joint": {},
}
"""The settings of each row; its first word names the method."""

FIXED = (*list(METHODS)[:7], "retrieval_augmented, nothing tuned")
"""Rows of which nothing is random: they run with one seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="clinc150,banking77")
    parser.add_argument("--data", type=Path, help="folder of Parquet files, for sets that are not in the package")
    parser.add_argument("--backbone", help="of the stream's kind by default")
    parser.add_argument("--methods", default=";".join(METHODS), help="rows, separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--train-per-class", type=int, default=30)
    parser.add_argument("--test-per-class", type=int)
    parser.add_argument("--out", type=Path, help="a folder for the runs; a temporary one by default")
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    for name in args.sets.split(","):
        stream = stream_of(name, args)
        common.store_features(stream, args.backbone)
        for row in args.methods.split(";"):
            section = common.recipe_settings("clinc150", row.replace(",", "").split()[0], **METHODS[row])
            seeds = [int(seed) for seed in args.seeds.split(",")]
            for seed in seeds[:1] if row in FIXED else seeds:
                place = folder / f"{name} {args.train_per_class} {args.test_per_class}--{written(row)}--{seed}"
                result = common.learned(section, stream, args.backbone, seed, place)
                print(f"{name} {row} seed {seed}: {result['final_accuracy']:.4f}", flush=True)
            common.write_page("retrieval_augmentation", page(folder, parser, args))


def stream_of(name: str, args: argparse.Namespace) -> Stream:
    limits = {"max_train_per_class": args.train_per_class, "max_test_per_class": args.test_per_class}
    place = str(args.data / name) if args.data else name  # NAME_train.parquet and NAME_test.parquet
    return streams.load(place, tasks=10, class_seed=1993, **limits)


def written(row: str) -> str:
    """A row as a part of the name of a folder."""
    return row.replace(",", "").replace(" ", "-").replace("λ", "lambda").replace("=-", "")


def page(folder: Path, parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    lines = ["# Neighbours and new layers", "", f"From `{common.command(parser, args, ('out', 'methods', 'seeds'))}`."]
    for measured in dict.fromkeys(place.name.split("--")[0] for place in sorted(folder.glob("*--*--*"), reverse=True)):
        found = {row: [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(
                 f"{measured}--{written(row)}--*/results.json"))] for row in METHODS}  # fmt: skip
        rows = {row: runs for row, runs in found.items() if runs}
        if not rows:
            continue
        first = next(iter(rows.values()))[0]
        name, train, test = measured.split()
        lines += ["", f"## {name}, {train} training examples per class", "",
                  f"{len(first['tasks'])} tasks, {first['backbone']}, at most {train} training and "
                  f"{'all' if test == 'None' else f'at most {test}'} test examples per class; "
                  f"{common.machines(run for runs in rows.values() for run in runs)}. ± 95 % interval.", "",
                  "| method | seeds | final | forgetting | retention | gain | trained | stored, MB | seconds |",
                  "|---" * 9 + "|"]  # fmt: skip
        for row, runs in sorted(rows.items(), key=lambda item: -mean(one["final_accuracy"] for one in item[1])):
            figures = [spread(runs, key) for key in ("final_accuracy", "forgetting", "retention", "gain")]
            lines.append(f"| {row} | {len(runs)} | {' | '.join(figures)} "
                         f"| {runs[0]['trainable_parameters']:,} "
                         f"| {runs[0]['stored_bytes'] / 1e6:.1f} "
                         f"| {mean(one['seconds']['total'] for one in runs):.0f} |")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
