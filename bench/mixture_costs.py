"""What an ensemble costs as tasks go by: the bytes that it stores and the time of a prediction, after each of 20 tasks.

    python bench/mixture_costs.py [--methods simplecil,ranpac,task_adapters,esn,lae] [--tasks 20] [--train-per-class 5]
        [--test-per-class 4] [--stream clinc150] [--backbone minilm]
    python bench/mixture_costs.py --stream tinyimagenet100 --data FOLDER --backbone lit@112 --methods lae,esn,proof

Each method learns the stream with the settings of its recipe, one epoch a task, because neither cost depends on how
long it trained. Both costs are those that every run measures after each task, on the test examples: passes of an
encoder are counted; the time is that of a first answer, the encoder included (`common.milliseconds`), for which each
run has a feature store of its own. Stored bytes are those of a checkpoint, without the encoder where it is frozen.
Images are read from NAME_train.parquet and NAME_test.parquet of the folder --data.
Writes docs/results/mixture_costs.md, or mixture_costs_images.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

from everlearn import methods, run, streams
from everlearn.config import arguments
from everlearn.features import FeatureStore, using_store

Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="simplecil,ranpac,task_adapters,esn,lae")
    parser.add_argument("--stream", default="clinc150")
    parser.add_argument("--data", type=Path, help="folder of Parquet files, for images")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--train-per-class", type=int, default=5)
    parser.add_argument("--test-per-class", type=int, default=4)
    parser.add_argument("--threads", type=int, help="of torch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    place = str(args.data / args.stream) if args.data else args.stream
    stream = streams.load(place, tasks=args.tasks, max_train_per_class=args.train_per_class,
                          max_test_per_class=args.test_per_class)  # fmt: skip
    found: dict[str, Results] = {}
    for name in args.methods.split(","):
        section = common.recipe_settings("images" if args.data else args.stream, name)
        if "epochs" in arguments(methods.get(name)):
            section["epochs"] = 1
        with tempfile.TemporaryDirectory() as folder, using_store(FeatureStore(folder)):
            found[name] = run(section, stream, backbone=args.backbone).results
        print(name, found[name]["stored_bytes_per_task"], found[name]["answer_per_task"][-1], flush=True)
    shown = sorted({*(k for k in (1, 2, 5, 10, 15) if k <= len(stream)), len(stream)})
    lines = ["# What a mixture costs as tasks go by", "", f"From `{common.command(parser, args, ('threads',))}`.", "",
             f"Measured: {args.stream}, {len(stream)} tasks, {args.backbone}, {args.train_per_class} training examples "
             f"per class, one epoch, seed 0; {common.machines(found.values())}.", ""]  # fmt: skip
    costs: list[tuple[str, str, Callable[[Results, int], float]]] = [
        ("Stored, MB", ".2f", lambda results, k: results["stored_bytes_per_task"][k] / 1e6),
        ("Milliseconds of a first answer", ".2f", lambda results, k: common.milliseconds(results, k) or 0.0),
        ("Passes of an encoder for it", ".1f", lambda results, k: results["answer_per_task"][k]["encoder_passes"]),
    ]
    for title, digits, cost in costs:
        lines += [f"## {title}", "", f"| method | {' | '.join(f'after task {k}' for k in shown)} | a task |",
                  "|---" * (2 + len(shown)) + "|"]  # fmt: skip
        for name, results in found.items():
            each = (cost(results, -1) - cost(results, 0)) / max(1, len(stream) - 1)
            cells = [f"{cost(results, k - 1):{digits}}" for k in shown]
            lines.append(f"| {name} | {' | '.join(cells)} | {each:{digits}} |")
        lines.append("")
    common.write_page("mixture_costs_images" if args.data else "mixture_costs", lines)


if __name__ == "__main__":
    main()
