"""Which examples may be left out, and which labels are wrong, from what a run forgot while it trained.

    python bench/forgetting_events.py [--sets clinc150,banking77] [--train head;lora] [--epochs 10] [--seeds "0,1,2;0"]
                                      [--share 0.05] [--shown 20] [--out FOLDER]

All classes of a set are learned at once by `finetune`, so that nothing is forgotten but within one task.

* Pruning: a third of the training examples is left out, drawn from those that a first run learned and never forgot, and
  the rest is trained on as often. Beside it as many drawn from all examples.
* Flipped labels: a share of the training labels is replaced by another class drawn at random. How many of the flipped
  ones stand in the lists of `everlearn events`, beside what chance would put there.
* The labels of the data as they are, that `everlearn events` doubts most.

Seeds with a semicolon between them are those of each way to train. Test examples choose nothing. Written to
docs/results/forgetting_events.md. A folder that is given is gone on with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import common
import numpy as np
import torch
from common import learned, spread

from everlearn import streams
from everlearn.presentations import History, doubtful, histories
from everlearn.streams.stream import Stream


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--sets", default="clinc150,banking77")
    parser.add_argument("--train", default="head;lora", help="what finetune trains, with semicolons between several")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.05, help="of the training labels that are flipped")
    parser.add_argument("--shown", type=int, default=20, help="doubtful labels of each set that are shown")
    args, folder = common.parsed(parser)
    trains, seeds = args.train.split(";"), [list(map(int, some.split(","))) for some in args.seeds.split(";")]
    pruning = ["| set | trained | never forgotten, % | all examples | without a third of the never forgotten "
               "| cost | without a third by chance | cost |", "|---" * 8 + "|"]  # fmt: skip
    flips = ["| set | trained | flipped, % | never learned: how many | flipped among them, % | of as many of the "
             "most forgotten, % | of as many of the most doubtful, % |", "|---" * 7 + "|"]  # fmt: skip
    shown: list[str] = []
    measured: list[dict[str, Any]] = []
    for name in args.sets.split(","):
        for train, some in zip(trains, seeds if len(seeds) > 1 else seeds * len(trains), strict=True):
            section = {"name": "finetune", "train": train, "epochs": args.epochs}
            found: dict[str, list[Any]] = {key: [] for key in ("all", "pruned", "chance", "share", "flipped")}
            for seed in some:
                stream, out = streams.load(name, tasks=1), folder / f"{name} {train} {args.epochs} {seed}"
                results, seen = trained(section, stream, args.backbone, seed, out / "all")
                never = [one.id for one in seen if one.events.is_never_forgotten]
                found["all"].append(results)
                found["share"].append(len(never) / len(seen))
                count = min(len(seen) // 3, len(never))  # as many of both
                for kind, ids in (("pruned", never), ("chance", [one.id for one in seen])):
                    fewer = stream.without(drawn(ids, count, seed))
                    found[kind].append(trained(section, fewer, args.backbone, seed, out / kind)[0])
                wrong, marked = flipped(stream, args.share, seed)
                _, seen_wrong = trained(section, wrong, args.backbone, seed, out / f"flipped {args.share}")
                found["flipped"].append(lists(seen_wrong, marked))
                if train == trains[-1] and seed == some[0]:
                    shown += [f"## {name}, {train}", "", *told(stream, seen, args.shown), ""]
            measured += [*found["all"], *found["pruned"], *found["chance"]]
            pruning.append(f"| {name} | {train} | {spread(found['share'])} | " + " | ".join(costs(found)) + " |")
            flips.append(f"| {name} | {train} | " + " | ".join(caught(found["flipped"])) + " |")
            print("\n".join([*pruning, "", *flips, "", *shown]), flush=True)
    common.write_page("forgetting_events", [
        "# What forgetting events tell", "", f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
        f"Measured: {args.backbone}, {args.epochs} epochs, seeds {args.seeds.replace(';', ' and ')}; "
        f"{common.machines(measured)}. Test accuracy in % with its standard deviation; a cost is "
        "the mean of the differences to the run on all examples with the same seed, in points.", "",
        "## A third of the examples left out", "", *pruning, "",
        f"## {100 * args.share:g} % of the labels flipped", "", *flips, "", *shown,
    ])  # fmt: skip


def trained(
    section: dict[str, Any], stream: Stream, backbone: str, seed: int, out: Path
) -> tuple[dict[str, Any], list[History]]:
    """The results of a run and the history of its examples, the most forgotten first."""
    results = learned(section, stream, backbone, seed, out)
    return results, histories(out)


def drawn(ids: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the ids by chance."""
    ids = sorted(ids)
    rows = np.random.default_rng(seed).permutation(len(ids))[:count]
    return [ids[row] for row in rows]


def flipped(stream: Stream, share: float, seed: int) -> tuple[Stream, set[str]]:
    """The stream with another class, drawn at random, for a share of its training examples, and their ids."""
    rng = np.random.default_rng(seed)
    task, classes = stream[0], len(stream.class_names)
    labels = task.train.labels.clone()
    rows = torch.from_numpy(rng.permutation(len(labels))[: round(share * len(labels))])
    labels[rows] = (labels[rows] + torch.from_numpy(rng.integers(1, classes, len(rows)))) % classes
    train = replace(task.train, labels=labels)
    other = replace(stream, tasks=(replace(task, examples={**task.examples, "train": train}),), config={})
    return other, {task.train.ids[row] for row in rows.tolist()}


def lists(seen: Sequence[History], flipped: set[str]) -> dict[str, float]:
    """What share of each list is flipped. Each list but that of the never learned is cut to as many as were flipped."""

    def share(found: Sequence[History]) -> float:
        return mean(one.id in flipped for one in found) if found else 0.0

    never = [one for one in seen if one.events.learned is None]
    forgotten = [one for one in seen if one.events.learned is not None][: len(flipped)]
    return {"flipped": len(flipped) / len(seen), "count": len(never), "never": share(never),
            "forgotten": share(forgotten), "doubtful": share(doubtful(list(seen))[: len(flipped)])}  # fmt: skip


def costs(found: dict[str, list[Any]]) -> list[str]:
    accuracies = {kind: [run["final_accuracy"] for run in found[kind]] for kind in ("all", "pruned", "chance")}
    cells = [spread(accuracies["all"])]
    for kind in ("pruned", "chance"):
        lost = mean(full - part for full, part in zip(accuracies["all"], accuracies[kind], strict=True))
        cells += [spread(accuracies[kind]), f"{100 * lost:+.2f}"]
    return cells


def caught(found: Sequence[dict[str, float]]) -> list[str]:
    count = f"{mean(one['count'] for one in found):.0f}"
    shares = [spread([one[key] for one in found]) for key in ("flipped", "never", "forgotten", "doubtful")]
    return [shares[0], count, *shares[1:]]


def told(stream: Stream, seen: list[History], count: int) -> list[str]:
    """The examples whose labels are doubted most, as a table."""
    texts = dict(zip(stream[0].train.ids, stream[0].train.inputs, strict=True))
    names = stream.class_names
    lines = ["| text | label | the model's answer | times |", "|---|---|---|---|"]
    for one in doubtful(seen)[:count]:
        assert one.mistaken_for
        answer, times = one.mistaken_for
        text = str(texts[one.id]).replace("|", "/")
        lines.append(f"| {text} | {names[one.label]} | {names[answer]} | {times} of {one.events.presented} |")
    return lines


if __name__ == "__main__":
    main()
