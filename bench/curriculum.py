"""Does the order of examples matter? Curricula by present confusion beside shuffled order and beside their reverse.

    python bench/curriculum.py [--sets clinc150,banking77] [--train head] [--epochs 2,10] [--seeds 0,1,2,3,4]
                               [--per-class 30] [--out FOLDER]

All classes of a set are learned at once, so that no forgetting is mixed in, from up to 30 examples a class. Every order
has the same number of steps of the same size. Nothing is chosen: the rates are the defaults of `finetune`, easy and
hard are told anew every 50 steps, and the thresholds are those of `everlearn/curriculum.py`.

Written to docs/results/curriculum.md: the test accuracy, its difference to shuffled order with the same seed, the
seconds of a run, and how many of them are for telling easy from hard.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, partial
from statistics import mean
from typing import Any, get_args

import common
import torch
from common import spread

from everlearn import backbones, curriculum, streams
from everlearn.backbones.backbone import Role
from everlearn.engine import learn
from everlearn.methods.finetune import Finetune
from everlearn.progress import Progress
from everlearn.results import environment
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Task


def main() -> None:
    parser = common.options(__doc__, seeds="0,1,2,3,4")
    parser.add_argument("--sets", default="clinc150,banking77")
    parser.add_argument("--train", default="head", help="what finetune trains, with semicolons between several")
    parser.add_argument("--epochs", default="2,10")
    parser.add_argument("--orders", default=",".join(get_args(curriculum.Order)))
    parser.add_argument("--per-class", type=int, default=30)
    args, folder = common.parsed(parser)
    orders, seeds = args.orders.split(","), list(map(int, args.seeds.split(",")))
    cells = [(name, train, int(epochs)) for train in args.train.split(";") for name in args.sets.split(",")
             for epochs in args.epochs.split(",")]  # fmt: skip
    lines = ["| set | trained | epochs | steps | order | accuracy | beside shuffled | seconds | of them scoring |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    with Progress(len(cells) * len(seeds) * len(orders), "curricula") as bar:
        for name, train, epochs in cells:
            runs: dict[str, list[dict[str, Any]]] = {order: [] for order in orders}
            for seed in seeds:
                for order in orders:
                    words = f"{name}-{train}-{args.per_class}-{epochs}-{order}-{seed}.json".replace(" ", "-")
                    asked = partial(measured, name, train, epochs, order, seed, args.per_class, args.backbone)
                    runs[order].append(common.kept(folder / words, asked))
                    bar.advance(1, words)
            lines += table(name, train, epochs, runs)
            print("\n".join(lines), flush=True)
    told = common.machine(environment(backbones.load(args.backbone)))
    common.write_page("curriculum", [
        "# The order of examples", "", f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
        f"Measured: {args.backbone}, up to {args.per_class} examples a class, seeds {args.seeds}; {told}. Test "
        "accuracy in %, with its standard deviation; the difference to shuffled order is paired by seed.", "", *lines,
    ])  # fmt: skip


class Head(Finetune):
    """`finetune` with train="head", whose features come from the feature store in training too."""

    def features(self, inputs: Sequence[Input], role: Role | None = None) -> torch.Tensor:
        return self.backbone.encode(inputs)


encoder = cache(backbones.load)
"""A frozen encoder, loaded once."""


@cache
def loaded(name: str, per_class: int) -> Task:
    return streams.load(name, tasks=1, max_train_per_class=per_class)[0]


def measured(
    name: str, train: str, epochs: int, order: str, seed: int, per_class: int, backbone: str
) -> dict[str, Any]:
    """The test accuracy of one run, its steps, its seconds, and those of the scoring among them."""
    task = loaded(name, per_class)
    cls = Head if train == "head" else Finetune
    method = cls(encoder(backbone) if train == "head" else backbones.load(backbone), train=train, epochs=epochs,
                 order=order, seed=seed)  # fmt: skip
    if train == "head":
        method.features(task.train.inputs)  # else the first run would encode for all others
    scoring = 0.0
    told = curriculum.OrderedExamples.told

    def timed(batches: curriculum.OrderedExamples) -> torch.Tensor:
        nonlocal scoring
        before = time.monotonic()
        found = told(batches)
        scoring += time.monotonic() - before
        return found

    curriculum.OrderedExamples.told = timed  # type: ignore[method-assign]
    before = time.monotonic()
    try:
        learning = learn(method, task)
    finally:
        curriculum.OrderedExamples.told = told  # type: ignore[method-assign]
    seconds = time.monotonic() - before
    with torch.no_grad():
        right = method.predict(task.test.bare()).argmax(1).cpu() == task.test.labels
    return {"accuracy": float(right.double().mean()), "steps": learning.steps, "seconds": seconds, "scoring": scoring}


def table(name: str, train: str, epochs: int, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for order, found in runs.items():
        scores = [run["accuracy"] for run in found]
        apart = [score - run["accuracy"] for score, run in zip(scores, runs["shuffled"], strict=True)]
        beside = "" if order == "shuffled" else spread(apart, "+.1f")
        lines.append(f"| {name} | {train} | {epochs} | {found[0]['steps']:,} | {order} | {spread(scores)} "
                     f"| {beside} | {mean(run['seconds'] for run in found):.1f} "
                     f"| {mean(run['scoring'] for run in found):.1f} |")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
