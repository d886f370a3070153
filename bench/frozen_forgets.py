"""Does a frozen backbone forget? The loss of each insertion on data that was never trained on.

    python bench/frozen_forgets.py [--stream clinc150] [--probe banking77] [--tasks 3] [--train-per-class 30]

The weights of the backbone never change, but its output depends on the insertion. Each insertion is trained
task after task on `--stream` (`sequential`). Before and after, two values are measured on `--probe`, which is
never trained on: the accuracy of the nearest class prototype (from the probe's training examples), and the
mean cosine of each test embedding to that of the pre-trained model. `finetune`, whose backbone is not frozen,
is included for comparison. Writes docs/results/frozen_forgets.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from common import command, machine, write_page

from everlearn import backbones, methods, run, streams
from everlearn.heads.prototype import Prototype
from everlearn.method import Method
from everlearn.peft.unified import INSERTIONS
from everlearn.streams.stream import Stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="clinc150")
    parser.add_argument("--probe", default="banking77")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--insertions", default=",".join(INSERTIONS), help="names separated by commas")
    for name, default in (("tasks", 3), ("train-per-class", 30), ("test-per-class", 10), ("epochs", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    size = {"max_train_per_class": args.train_per_class, "max_test_per_class": args.test_per_class}
    learned = streams.load(args.stream, tasks=10, **size)
    learned = replace(learned, tasks=learned.tasks[: args.tasks])
    probe = streams.load(args.probe, tasks=1, **size)
    untouched = backbones.load(args.backbone)
    before, reference = capability(untouched, probe)
    rows = []
    for insertion in [*args.insertions.split(","), "finetune"]:
        method = build(insertion, args)
        result = run(method, learned)
        after, embedded = capability(method.backbone, probe)
        likeness = torch.nn.functional.cosine_similarity(embedded, reference, dim=1).mean().item()
        rows.append((insertion, result.trainable_parameters, result.final_accuracy, after, likeness))
        print(f"{insertion}: learned {100 * result.final_accuracy:.1f}, {args.probe} {100 * before:.1f} -> "
              f"{100 * after:.1f}, cosine {likeness:.3f}", flush=True)  # fmt: skip
    write(args, command(parser, args), before, rows, result.environment)


def build(insertion: str, args: argparse.Namespace) -> Method:
    backbone = backbones.load(args.backbone)
    if insertion == "finetune":
        return methods.get("finetune")(backbone, epochs=args.epochs, lr=1e-4, seed=args.seed)
    return methods.get("sequential")(backbone, train=insertion, epochs=args.epochs, seed=args.seed)


def capability(backbone: Any, probe: Stream) -> tuple[float, torch.Tensor]:
    """The nearest-prototype accuracy on the probe with the backbone in its present state, and its test embeddings."""
    task = probe[0]
    head = Prototype(backbone.width)
    head.grow(len(task.class_names))
    head.add(backbone.infer(task.train.inputs), task.train.labels)
    embedded = backbone.infer(task.test.inputs)
    return (head(embedded).argmax(1) == task.test.labels).double().mean().item(), embedded


def write(args: argparse.Namespace, called: str, before: float, rows: list[Any], where: dict[str, Any]) -> None:
    lines = [
        "# Does a frozen backbone forget?", "",
        f"Measured with `{called}`: {args.stream}, the first {args.tasks} "
        f"of 10 tasks, {args.train_per_class} training examples per class, {args.epochs} epochs per task, "
        f"{args.backbone}, seed {args.seed}; {machine(where)}.", "",
        f"Nearest-prototype accuracy of the pre-trained model on {args.probe} (never trained on): {100 * before:.1f}.",
        "", f"| insertion | trained | final on {args.stream} | {args.probe} after | lost | cosine to pre-trained |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for insertion, trained, final, after, likeness in sorted(rows, key=lambda row: -row[3]):
        lines.append(f"| {insertion} | {trained:,} | {100 * final:.1f} | {100 * after:.1f} "
                     f"| {100 * (before - after):.1f} | {likeness:.3f} |")  # fmt: skip
    write_page("frozen_forgets", lines)


if __name__ == "__main__":
    main()
