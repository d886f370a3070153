"""Model mixture beside single models: ensembles, merging, and methods that need an image and a text encoder.

    python bench/mixture.py [--sets cifar10,tinyimagenet100,pacs] [--data FOLDER] [--methods a,b] [--rates 3]
                            [--test-per-class 50] [--seeds 0,1,2] [--backbone lit@112] [--out FOLDER]

FOLDER holds NAME_train.parquet and NAME_test.parquet; for lit, EVERLEARN_WEIGHTS names the folder of its weights. Every
method that trains has the settings of its recipe, and each set chooses its learning rate: as many rates, a factor of
three apart around the one of the recipe, learn the first three tasks (PACS: the first two domains), and validation
examples, a fifth of the training examples, decide. Test examples choose nothing. A seed decides the order of the
classes, which examples are learned and what the method draws.

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
from retrieval import default, learned, spread

from everlearn import methods, streams
from everlearn.search import best
from everlearn.streams.stream import Stream
from everlearn.streams.validation import on_validation

METHODS = ("frozen", "simplecil", "ranpac", "finetune", "joint", "slca", "cofima", "lae", "esn", "zscl", "proof",
           "prompt_fusion")  # fmt: skip
SETS: dict[str, dict[str, Any]] = {
    "cifar10": {"tasks": 5, "max_train_per_class": 100},
    "tinyimagenet100": {"tasks": 10, "max_train_per_class": 20},
    "pacs": {"kind": "domain-incremental", "domain_column": "domain", "max_train_per_class": 20},
}
"""The options of each stream. Sets of fewer classes have more training images of each, and similar steps."""
TUNED_ON = {"pacs": 2}


def main() -> None:
    parser = common.options(__doc__, backbone="lit@112")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/images"), help="folder of the Parquet files")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rates", type=int, default=3, help="learning rates tried; 1 takes that of the recipe")
    parser.add_argument("--test-per-class", type=int, default=50)
    args, folder = common.parsed(parser)
    lines: list[str] = []
    for name in args.sets.split(","):
        rows: dict[str, list[dict[str, Any]]] = {}
        for method in args.methods.split(","):
            section = tuned(method, name, args, folder / name / "tuning")
            rows[method] = [one(section, name, seed, args, folder / name) for seed in map(int, args.seeds.split(","))]
            print(f"{name} {method}: {spread(run['final_accuracy'] for run in rows[method])}", flush=True)
        lines += [f"## {name}, {SETS[name]['max_train_per_class']} training images a class", "", *table(rows), ""]
        print("\n".join(lines), flush=True)
    common.write_page("mixture", [
        "# Model mixture", "", f"From `{common.command(parser, args, ('out', 'threads', 'data'))}`.", "",
        f"Measured: {args.backbone}, {args.test_per_class} test images of each class (PACS: images of each class in "
        f"each domain), seeds {args.seeds}; "
        f"{common.machine(next(iter(rows.values()))[0]['environment'])}.", "", *lines,
    ])  # fmt: skip


def of_seed(name: str, seed: int, args: argparse.Namespace) -> Stream:
    files = {part: str(args.data / f"{name}_{part}.parquet") for part in ("train", "test")}
    return streams.load(files["train"], test=files["test"], class_seed=seed, split_seed=seed, validation=0.2,
                        max_test_per_class=args.test_per_class, **SETS[name])  # fmt: skip


def one(section: dict[str, Any], name: str, seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The results of one run."""
    out = folder / " ".join([section["name"], f"lr {section['lr']}" if "lr" in section else "", str(seed)])
    return learned(section, of_seed(name, seed, args), args.backbone, seed, out)


def tuned(method: str, name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The section of a method, with the learning rate that validation examples of the first tasks choose."""
    section = common.recipe_settings("images", method)
    made = methods.get(method)
    if args.rates < 2 or made.tags.trained_by(section) == "nothing":
        return section
    section["lr"] = default(made, section, "lr")
    judged, results = on_validation(of_seed(name, 0, args), TUNED_ON.get(name, 3)), {}
    for step in range(-(args.rates // 2), args.rates - args.rates // 2):
        rate = float(f"{section['lr'] * 3.0**step:.3g}")
        results[rate] = learned({**section, "lr": rate}, judged, args.backbone, 0, folder / f"{method} {rate}")
        print(f"{name} {method} lr={rate}: validation accuracy {results[rate]['final_accuracy']:.4f}", flush=True)
    return {**section, "lr": best(results)}


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
