"""Which parameters are worth merging? The average of the models of consecutive tasks, restricted to a part of them.

    python bench/merged_parts.py [--parts nothing,all,attention,mlp,norms,head] [--stream clinc150]
        [--tasks 10] [--first 10] [--backbone minilm] [--lr 1e-4] [--train-per-class 10]
        [--test-per-class 10] [--seeds 0,1,2] [--out FOLDER]

`cofima` without Fisher information: after each task the trained weights become their average with those before it, here
those of one part only; all others stay as the task left them. "Nothing" is `slca`. The settings are those of cofima's
recipe, the published weight of the new model (0.4) included, but for `--lr`, the learning rate of the encoder. Nothing
is chosen here. A seed decides the order of the classes, which examples are learned and what the method draws. A folder
that is given is gone on with. Writes docs/results/merged_parts.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import common
import torch
from common import spread

from everlearn import backbones, streams
from everlearn.engine import learn
from everlearn.evaluation import Evaluation
from everlearn.methods import CoFiMA
from everlearn.metrics import summary
from everlearn.results import environment
from everlearn.streams.stream import Task

PARTS = ("nothing", "all", "attention", "mlp", "norms", "head")


def part_of(name: str) -> str:
    """The part that a parameter of a transformer belongs to.

    >>> [part_of(f"backbone.model.encoder.layer.0.{name}") for name in ("attention.self.query.weight", "output.bias")]
    ['attention', 'mlp']
    """
    if name.startswith("head."):
        return "head"
    if "LayerNorm" in name or ".norm" in name:
        return "norms"
    if ".attention." in name or ".attn." in name:
        return "attention"
    return "mlp" if ".layer." in name or ".blocks." in name else "embeddings"


class PartlyAveraged(CoFiMA):
    """CoFiMA without Fisher information that averages the weights of one part."""

    tags = CoFiMA.tags
    part = "all"

    def average(self, task: Task) -> None:
        learned = {name: parameter.detach().clone() for name, parameter in self.trained().items()}
        super().average(task)
        with torch.no_grad():
            for name, parameter in self.trained().items():
                if self.part not in ("all", part_of(name)):
                    parameter.copy_(learned[name])


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--stream", default="clinc150")
    parser.add_argument("--tasks", type=int, default=10, help="that the classes are divided into")
    parser.add_argument("--first", type=int, default=10, help="of them, that are learned")
    parser.add_argument("--lr", type=float, default=1e-4, help="of the encoder")
    parser.add_argument("--train-per-class", type=int, default=10)
    parser.add_argument("--test-per-class", type=int, default=10)
    args, folder = common.parsed(parser)
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in args.parts.split(",")}
    sizes = f"{args.first} of {args.tasks}, {args.train_per_class} and {args.test_per_class}"
    set_of_runs = f"{args.stream} {args.backbone} {sizes}, {args.lr}"
    for seed in map(int, args.seeds.split(",")):
        for part in rows:
            file = folder / f"{set_of_runs} {part} {seed}.json"
            rows[part].append(common.kept(file, partial(one, part, seed, args)))
            print(part, seed, rows[part][-1]["final_accuracy"], flush=True)
    runs = [run for found in rows.values() for run in found]
    lines = ["| averaged | parameters | final | average | forgetting | retention | gain |", "|---" * 7 + "|"]
    for part, found in rows.items():
        scores = ("final_accuracy", "average_accuracy", "forgetting", "retention", "gain")
        cells = [spread(run[name] for run in found) for name in scores]
        lines.append(f"| {part} | {found[0]['parameters']:,} | {' | '.join(cells)} |")
    common.write_page("merged_parts", [
        "# Which parameters are worth merging", "", f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
        f"Measured: {args.stream}, the first {args.first} of {args.tasks} tasks, {args.backbone}, "
        f"{args.train_per_class} training and {args.test_per_class} test examples per class, seeds {args.seeds}, ± "
        f"standard deviation; {common.machines(runs)}; {mean(run['seconds'] for run in runs):.0f} seconds a run.", "",
        *lines,
    ])  # fmt: skip


def one(part: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The scores of one run."""
    whole = streams.load(args.stream, tasks=args.tasks, class_seed=seed, split_seed=seed,
                         max_train_per_class=args.train_per_class, max_test_per_class=args.test_per_class)  # fmt: skip
    stream = replace(whole, tasks=whole.tasks[: args.first])
    section = common.recipe_settings(args.stream, "cofima", fisher=False, lr=args.lr)
    del section["name"]
    method = PartlyAveraged(backbones.load(args.backbone), seed=seed, **section)
    method.part = part
    evaluation, matrix, started = Evaluation(stream, method), [], time.perf_counter()
    for task in stream:
        learn(method, task)
        scores = evaluation.after(task)["scores"]
        matrix.append([*scores, *[None] * (len(stream) - len(scores))])
    blank = [None] * len(stream)
    return {
        **summary(matrix, [len(task.test) for task in stream], blank, blank),
        "parameters": sum(p.numel() for name, p in method.trained().items() if part in ("all", part_of(name))),
        "seconds": time.perf_counter() - started, "environment": environment(method.backbone),
    }  # fmt: skip


if __name__ == "__main__":
    main()
