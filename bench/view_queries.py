"""Queries of augmented images: asked once an image (of the image itself) or once a view (of what the step sees).

    python bench/view_queries.py --data FOLDER [--tasks 3] [--train-per-class 20] [--test-per-class 20] [--epochs 3]

L2P on tinyimagenet100 with random crops and mirror images, both ways, from FOLDER's Parquet files and the ViT-Ti
weights that EVERLEARN_WEIGHTS names: accuracy, seconds of training, encodings for queries, and how often the view
would have chosen other prompts. Writes docs/results/view_queries.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import command, machine, write_page

from everlearn import backbones, methods, run, streams
from everlearn.streams.views import View


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="vit-tiny@112")
    defaults = {"tasks": 3, "train-per-class": 20, "test-per-class": 20, "epochs": 3, "seed": 0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    train, test = (str(args.data / f"tinyimagenet100_{part}.parquet") for part in ("train", "test"))
    stream = streams.load(train, test=test, tasks=10, max_train_per_class=args.train_per_class,
                          max_test_per_class=args.test_per_class, augment=True)  # fmt: skip
    stream = replace(stream, tasks=stream.tasks[: args.tasks])
    rows, differing = [], ""
    for name in ("once an image", "once a view"):
        method = methods.get("l2p")(backbones.load(args.backbone), epochs=args.epochs, lr=0.03, seed=args.seed)
        counts = ask_every_view(method) if name == "once a view" else {}
        start = time.perf_counter()
        result = run(method, stream)
        rows.append(f"| {name} | {100 * result.final_accuracy:.1f} | {100 * result.average_accuracy:.1f} "
                    f"| {counts.get('views', 0):,} | {result.seconds['train']:.0f} "
                    f"| {time.perf_counter() - start:.0f} |")  # fmt: skip
        print(rows[-1], flush=True)
        if counts:
            differing = (
                f"{100 * counts['other'] / counts['views']:.0f} % of the views choose other prompts than their image."
            )
    write_page("view_queries", [
        "# Queries of augmented images", "",
        f"Measured with `{command(parser, args)}`: L2P, tinyimagenet100, the first {args.tasks} of "
        f"10 tasks, {args.train_per_class} training and {args.test_per_class} test images a class, "
        f"{args.epochs} epochs, {args.backbone}, random crops and mirror images, seed {args.seed}; "
        f"{machine(result.environment)}.", "",
        "| query | final | average | views encoded for queries | training, s | in all, s |",
        "|---|---|---|---|---|---|", *rows, "", differing,
    ])  # fmt: skip


def ask_every_view(method: Any) -> dict[str, int]:
    """Have training ask the query of what it sees; counts views, and those that choose otherwise."""
    backbone, counts = method.backbone, {"views": 0, "other": 0}
    stored, select = backbone.encode, method.select

    def chosen(inputs: Any, learning: bool = False) -> Any:
        if not isinstance(inputs[0], View):
            return select(inputs, learning)
        object.__setattr__(backbone, "encode", backbone.infer)
        try:
            now = select(inputs, learning)
        finally:
            object.__setattr__(backbone, "encode", stored)
        usual = select(inputs, learning)[0].sort(1).values
        counts["views"] += len(inputs)
        counts["other"] += int((now[0].sort(1).values != usual).any(1).sum())
        return now

    object.__setattr__(method, "select", chosen)
    return counts


if __name__ == "__main__":
    main()
