"""Do two encoders side by side know more than one? The same frozen-feature methods on each alone and on both joined.

    python bench/joined_encoders.py [--sets clinc150,banking77,tinyimagenet100] [--methods ranpac,lda,klda]
        [--seeds 0,1,2] [--train-per-class 30] [--texts minilm,minilm@layers=3] [--images vit-tiny@112,vit-tiny@224]
        [--out FOLDER]

The backbones are each of `--texts` (or `--images`) alone, and all of them joined with "+". Each method learns the set
in ten tasks with the settings of its recipe; nothing is chosen here. A seed decides the order of the classes, which
examples are learned, and what a method draws. The features of each encoder are stored before anything is learned, so no
seconds hold them. A folder that is given is gone on with: what is finished there is not learned again. Writes
docs/results/joined_encoders.md.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import common
from common import learned, spread

from everlearn import streams

IMAGES = ("tinyimagenet100", "cifar10", "pacs")


def main() -> None:
    parser = common.options(__doc__, backbone=None)
    parser.add_argument("--sets", default="clinc150,banking77,tinyimagenet100")
    parser.add_argument("--methods", default="ranpac,lda,klda")
    parser.add_argument("--texts", default="minilm,minilm@layers=3", help="encoders of texts")
    parser.add_argument("--images", default="vit-tiny@112,vit-tiny@224", help="encoders of images")
    parser.add_argument("--train-per-class", type=int, default=30)
    parser.add_argument("--test-per-class", type=int)
    parser.add_argument("--data", type=Path, default=common.SHARED / "images")
    args, folder = common.parsed(parser)
    lines: list[str] = []
    for name in args.sets.split(","):
        kind = "images" if name in IMAGES else "clinc150"
        alone = (args.images if name in IMAGES else args.texts).split(",")
        place = str(args.data / name) if name in IMAGES else name
        size = {"max_train_per_class": args.train_per_class, "max_test_per_class": args.test_per_class}
        of_seeds = {seed: streams.load(place, tasks=10, class_seed=seed, split_seed=seed, **size)
                    for seed in map(int, args.seeds.split(","))}  # fmt: skip
        rows: list[str] = []
        measured: list[dict[str, Any]] = []
        for backbone in alone:  # the joined encoder has these features side by side
            for stream in of_seeds.values():
                common.store_features(stream, backbone)
        for method in args.methods.split(","):
            frozen = {"first_session": False} if method == "ranpac" else {}  # which trains inside one encoder
            section = common.recipe_settings(kind, method, **frozen)
            for backbone in (*alone, "+".join(alone)):
                runs = [learned(section, stream, backbone, seed, folder / f"{name}-{method}-{backbone}-{seed}")
                        for seed, stream in of_seeds.items()]  # fmt: skip
                measured += runs
                rows.append(row(method, backbone, runs))
                print(name, rows[-1], flush=True)
        told = f"{args.train_per_class} training examples per class"
        lines += ["", f"## {name}", "", f"{len(next(iter(of_seeds.values())))} tasks, {told}, seeds {args.seeds}, ± "
                  f"standard deviation; {common.machines(measured)}.", "",
                  "| method | backbone | final | average | forgetting | stored, MB | seconds |", "|---" * 7 + "|",
                  *rows]  # fmt: skip
    called = common.command(parser, args, ("out", "data", "threads"))
    common.write_page("joined_encoders", ["# Two encoders side by side", "", f"From `{called}`.", *lines])


def row(method: str, backbone: str, runs: list[dict[str, Any]]) -> str:
    scores = [spread(result[name] for result in runs) for name in ("final_accuracy", "average_accuracy", "forgetting")]
    stored = mean(result["stored_bytes"] for result in runs) / 1e6
    seconds = mean(result["seconds"]["total"] for result in runs)
    return f"| {method} | {backbone} | {' | '.join(scores)} | {stored:.1f} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
