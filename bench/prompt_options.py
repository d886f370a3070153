"""The effect of the options of the prompt methods: batch votes, diversity, sparse attention, orthogonality.

    python bench/prompt_options.py [--stream banking77] [--tasks 10] [--train-per-class 30] [--test-per-class N]
        [--seed 0]

Each variant has the settings of its clinc150 recipe except the options in its row. Finished runs are not
repeated, so the same command continues a stopped one. Writes docs/results/prompt_options.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import command, machines, recipe_settings, write_page

from everlearn import compare
from everlearn.processes import default_jobs

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("l2p", {}), ("l2p", {"paper_compat": True}), ("l2p", {"diversify": "frequency"}), ("l2p", {"diversify": "mask"}),
    ("l2p", {"grow": 2}), ("l2p", {"readout": "pooled"}),
    ("l2p", {"readout": "pooled", "diversify": "mask"}),
    ("coda_prompt", {}), ("coda_prompt", {"attention": "topk"}), ("coda_prompt", {"attention": "sparsemax"}),
    ("coda_prompt", {"orthogonality": 0.0}),
    ("dual_prompt", {}), ("dual_prompt", {"general_length": 10, "expert_length": 10}),
    ("dual_prompt", {"general_length": 10, "expert_length": 10, "form": "prompt"}),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="banking77")
    for option, default in (("tasks", 10), ("train-per-class", 30), ("seed", 0)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--test-per-class", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/prompt_options"))
    args = parser.parse_args()
    stream = {"name": args.stream, "tasks": args.tasks, "max_train_per_class": args.train_per_class,
              "max_test_per_class": args.test_per_class}  # fmt: skip
    variants = [recipe_settings("clinc150", name, **changes) for name, changes in VARIANTS]
    results = compare(variants, stream, out=args.out, seed=args.seed, progress=True, recipe="none", jobs=default_jobs())
    runs = {tuple(sorted(run["config"]["method"].items(), key=str)): run for run in results if "config" in run}
    write(args, command(parser, args), runs)


def write(args: argparse.Namespace, called: str, runs: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    lines = [
        "# Options of the prompt methods", "",
        f"Measured with `{called}`: {args.stream}, {args.tasks} tasks, {args.train_per_class} "
        f"training and {args.test_per_class or 'all'} test examples per class, MiniLM, seed {args.seed}, "
        f"settings of the clinc150 recipes; each on {machines(runs.values())}.", "",
        "| method | changed | final | average | forgetting | gain | difference to default | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    plain: dict[str, float] = {}
    for name, changes in VARIANTS:
        run = runs.get(tuple(sorted(recipe_settings("clinc150", name, **changes).items(), key=str)))
        if run is None:
            continue
        final = run["final_accuracy"]
        plain.setdefault(name, final)
        told = ", ".join(f"{key}={value}" for key, value in changes.items())
        lines.append(f"| {name} | {told} | {100 * final:.1f} | {100 * run['average_accuracy']:.1f} "
                     f"| {100 * run['forgetting']:.1f} | {100 * run['gain']:.1f} "
                     f"| {100 * (final - plain[name]):+.1f} | {run['seconds']['total']:.0f} |")  # fmt: skip
    lines += ["", "`paper_compat` selects prompts by a vote of the batch, also at test time. The batches follow the "
              "order of the test set, which is grouped by class, so the vote gives each example information on its "
              "neighbours. Its result is not comparable with the others."]  # fmt: skip
    write_page("prompt_options", lines)


if __name__ == "__main__":
    main()
