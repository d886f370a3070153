"""Model mixture beside single models: ensembles, merging, and methods that need an image and a text encoder.

    python bench/mixture.py [--sets cifar10,tinyimagenet100,pacs] [--data FOLDER] [--methods a,b] [--rates 3]
                            [--seeds 0,1,2] [--backbone lit@112] [--out FOLDER]

FOLDER holds NAME_train.parquet and NAME_test.parquet; for lit, EVERLEARN_WEIGHTS names the folder of its weights. Every
method that trains has the settings of its recipe, and each set chooses its learning rate: as many rates, a factor of
three apart around the one of the recipe, and up to two more where the best is the smallest or the largest, learn the
first three tasks (PACS: the first two domains), and validation examples decide: as many of a class as there are for
testing, out of a fifth of the training examples. Test examples choose nothing. A seed decides the order of the classes,
which examples are learned and what the method draws.

Written to docs/results/mixture.md: final accuracy and forgetting, the zero-shot accuracy on classes not learned yet as
a share of what the untouched encoders have, what is stored, and what a prediction costs at the end: passes of an
encoder, and milliseconds with the encoder, as the runs measured them (`common.milliseconds`; they are left out where
all features were in the feature store already). A folder that is given is gone on with.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import common
from common import default, learned, rate, spread

from everlearn import methods, streams
from everlearn.errors import EverlearnError
from everlearn.search import best
from everlearn.streams.stream import Stream

METHODS = ("frozen", "simplecil", "ranpac", "finetune", "joint", "slca", "cofima", "lae", "esn", "zscl",
           "zscl with reference", "proof", "prompt_fusion")  # fmt: skip
"""The rows; the first word names the method."""
REFERENCE = {"cifar10": "tinyimagenet100", "tinyimagenet100": "cifar10", "pacs": "cifar10"}
"""For "zscl with reference": another set, whose training images and class names it may read."""
SETS: dict[str, dict[str, Any]] = {
    "cifar10": {"tasks": 5, "max_train_per_class": 100, "max_test_per_class": 50},
    "tinyimagenet100": {"tasks": 10, "max_train_per_class": 20, "max_test_per_class": 10},
    "pacs": {"kind": "domain-incremental", "domain_column": "domain", "max_train_per_class": 20,
             "max_test_per_class": 20},
}  # fmt: skip
"""The options of each stream. Sets of fewer classes have more images of each, and similar steps. For PACS, images of a
class in a domain are counted."""
TUNED_ON = {"pacs": 2}


def main() -> None:
    parser = common.options(__doc__, backbone="lit@112")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--data", type=Path, default=common.SHARED / "images", help="folder of the Parquet files")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rates", type=int, default=3, help="learning rates tried; 1 takes that of the recipe")
    args, folder = common.parsed(parser)
    lines: list[str] = []
    measured: list[dict[str, Any]] = []
    for name in args.sets.split(","):
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in args.methods.split(","):
            section = tuned(row, name, args, folder / name / "tuning")
            told = " ".join([row, f"lr {section['lr']}" if "lr" in section else ""])
            rows[row] = [
                learned(section, of_seed(name, seed, args), args.backbone, seed, folder / name / f"{told} {seed}")
                for seed in map(int, args.seeds.split(","))
            ]
            print(f"{name} {row}: {spread(run['final_accuracy'] for run in rows[row])}", flush=True)
        measured += [run for runs in rows.values() for run in runs]
        limits = SETS[name]
        lines += [f"## {name}, {limits['max_train_per_class']} training and {limits['max_test_per_class']} test images "
                  f"a class{' and domain' * ('domain_column' in limits)}", "", *table(rows), ""]  # fmt: skip
        print("\n".join(lines), flush=True)
    common.write_page("mixture", [
        "# Model mixture", "", f"From `{common.command(parser, args, ('out', 'threads', 'data'))}`.", "",
        f"Measured: {args.backbone}, seeds {args.seeds}, ± standard deviation; {common.machines(measured)}.", "",
        *lines,
    ])  # fmt: skip


def of_seed(name: str, seed: int, args: argparse.Namespace, tuning: int | None = None) -> Stream:
    files = {part: str(args.data / f"{name}_{part}.parquet") for part in ("train", "test")}
    return streams.load(files["train"], test=files["test"], class_seed=seed, split_seed=seed, validation=0.2,
                        tuning=tuning, **SETS[name])  # fmt: skip


def tuned(row: str, name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The section of a row, with the learning rate that validation examples of the first tasks choose."""
    section = common.recipe_settings("images", row.split()[0])
    if row == "zscl with reference":
        section["reference"] = str((args.data / f"{REFERENCE[name]}_train.parquet").resolve())
    if args.rates < 2 or methods.get(section["name"]).tags.trained_by(section) == "nothing":
        return section
    middle = default(section, "lr")
    judged = of_seed(name, 0, args, tuning=TUNED_ON.get(name, 3))

    def judge(step: int) -> dict[str, Any]:
        lr = rate(middle, step)
        try:
            result = learned({**section, "lr": lr}, judged, args.backbone, 0, folder / f"{row} {lr}")
        except EverlearnError as error:  # the rate is so large that the loss is not finite
            print(f"{name} {row} lr={lr}: failed: {error}", flush=True)
            return {"final_accuracy": 0.0, "notes": judged.notes}
        print(f"{name} {row} lr={lr}: validation accuracy {result['final_accuracy']:.4f}", flush=True)
        return result

    return {**section, "lr": rate(middle, best(common.around(judge, args.rates)))}


def table(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = ["| method | lr | final | forgetting | retention | gain | zero-shot kept, % | trained | stored, MB "
             "| passes | ms a prediction | seconds |", "|---" * 12 + "|"]  # fmt: skip
    for name, runs in sorted(rows.items(), key=lambda row: -mean(run["final_accuracy"] for run in row[1])):
        cells = [spread(run[key] for run in runs) for key in ("final_accuracy", "forgetting", "retention", "gain")]
        known = [each for run in runs if (each := common.milliseconds(run)) is not None]
        kept = [run["zero_shot"]["retention"] for run in runs if run.get("zero_shot")]
        lines.append(
            f"| {name} | {runs[0]['config']['method'].get('lr', '')} | {' | '.join(cells)} "
            f"| {spread(kept) if kept else ''} "
            f"| {runs[0]['trainable_parameters']:,} | {mean(run['stored_bytes'] for run in runs) / 1e6:.1f} "
            f"| {mean(run['answer_per_task'][-1]['encoder_passes'] for run in runs):.1f} "
            f"| {f'{mean(known):.1f}' if known else ''} | {mean(run['seconds']['total'] for run in runs):.0f} |"
        )
    return lines


if __name__ == "__main__":
    main()
