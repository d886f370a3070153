"""Queries of augmented images: one query per image (the original) or per view (the augmented image of the step).

    python bench/view_queries.py --data FOLDER [--tasks 3] [--train-per-class 20] [--test-per-class 20] [--epochs 3]

Both variants of L2P learn tinyimagenet100 with random crops and mirror images, from the Parquet files in FOLDER and
the ViT-Ti weights in EVERLEARN_WEIGHTS. Each has a feature store of its own, so that both encode the originals.
Reported are accuracy, seconds of training, number of encodings for queries, and how often the view selects other
prompts than the original. Writes docs/results/view_queries.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import command, machine, write_page

from everlearn import backbones, methods, run, streams
from everlearn.features import FeatureStore, using_store
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
    for name in ("once per image", "once per view"):
        method = methods.get("l2p")(
            backbones.load(args.backbone), epochs=args.epochs, lr=0.03, head_lr=None, seed=args.seed
        )
        counts = ask_every_view(method) if name == "once per view" else {}
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, using_store(FeatureStore(folder)):
            result = run(method, stream)
        rows.append(f"| {name} | {100 * result.final_accuracy:.1f} | {100 * result.average_accuracy:.1f} "
                    f"| {counts.get('views', 0):,} | {result.seconds['train']:.0f} "
                    f"| {time.perf_counter() - start:.0f} |")  # fmt: skip
        print(rows[-1], flush=True)
        if counts:
            differing = (
                f"{100 * counts['other'] / counts['views']:.0f} % of the views select other prompts than the original."
            )
    write_page("view_queries", [
        "# Queries of augmented images", "",
        f"Measured with `{command(parser, args)}`: L2P, tinyimagenet100, the first {args.tasks} of "
        f"10 tasks, {args.train_per_class} training and {args.test_per_class} test images per class, "
        f"{args.epochs} epochs, {args.backbone}, random crops and mirror images, seed {args.seed}; "
        f"{machine(result.environment)}.", "",
        "| query | final | average | views encoded for queries | training, s | total, s |",
        "|---|---|---|---|---|---|", *rows, "", differing,
    ])  # fmt: skip


def ask_every_view(method: Any) -> dict[str, int]:
    """Make training query with the view; count the views, and those that select other prompts."""
    backbone, counts = method.backbone, {"views": 0, "other": 0}
    stored = backbone.encode

    def encoded(inputs: Any) -> Any:
        if not isinstance(inputs[0], View):
            return stored(inputs)
        usual, now = stored(inputs), backbone.infer(inputs)
        chosen = [method.choose(queries, learning=True).sort(1).values for queries in (usual, now)]
        counts["views"] += len(inputs)
        counts["other"] += int((chosen[0] != chosen[1]).any(1).sum())
        return now

    object.__setattr__(backbone, "encode", encoded)
    return counts


if __name__ == "__main__":
    main()
