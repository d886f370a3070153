"""Ways to teach a dense retriever one domain after another, compared with equal care.

    python bench/retrieval.py [--stream NAME] [--methods a,b] [--rates 3] [--seeds 0,1,2] [--out FOLDER]

Every method first learns the first two domains with each of as many learning rates, a factor of three apart around the
one of its row or its default, and their validation queries decide; where the best is the smallest or the largest, up to
two more are tried beyond it. Then it learns them three times as long, with the best rate and the next smaller one. Test
queries and later domains are not used. With the rate and the epochs found, the method learns the stream once with every
seed. A folder that is given is gone on with: what is finished there is not learned again.

Written to docs/results/retrieval.md: nDCG@10 on all domains at the end, on the old ones and on the new one when it was
learned, beside the model before any learning and joint training; how many documents would have to be encoded again;
and the claim that a prompt pool keeps more than 80 % of the old performance and reaches 98 % of joint training on new
data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import common
from common import default, learned, spread

from everlearn import streams
from everlearn.search import best
from everlearn.streams.stream import Stream
from everlearn.streams.validation import on_validation

METHODS: dict[str, dict[str, Any]] = {
    "frozen": {}, "finetune": {"epochs": 1}, "er": {"epochs": 1}, "joint": {"epochs": 1}, "lora": {"epochs": 1},
    "joint with mined negatives": {"epochs": 1, "negatives": 2},
    "lora query side": {"epochs": 3, "side": "query"},
    "prompt_retriever": {"length": 1, "selected": 1, "lr": 0.03}, "prompt_retriever with long prompts": {"lr": 0.03},
    "qdc": {"epochs": 1}, "qdc without distillation": {"epochs": 1, "distill": 0.0},
    "l2r": {"epochs": 1}, "interpolate": {"epochs": 1, "weight": "auto"},
}  # fmt: skip
"""The settings of each row, where lr is the middle of the learning rates tried; the first word names the method."""

COMPARED = (
    ("qdc", "joint"),
    ("qdc", "finetune"),
    ("qdc", "qdc without distillation"),
    ("qdc without distillation", "finetune"),
    ("l2r", "joint"),
    ("l2r", "joint with mined negatives"),
    ("l2r", "qdc"),
    ("er", "finetune"),
    ("interpolate", "finetune"),
    ("lora query side", "prompt_retriever"),
)
"""Rows whose difference is given with an interval."""  # fmt: skip

TUNED_ON = 2
"""Domains of the stream on which learning rates are chosen."""
LONGER = 3
"""Times the epochs of a row, which are tried with the best rate and the next smaller one."""


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--stream", default="domains4")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rates", type=int, default=3, help="learning rates tried; 1 takes the settings of the row")
    args, folder = common.parsed(parser)
    stream = streams.load(args.stream)
    rows = {}
    for name in args.methods.split(","):
        section = {"name": name.split()[0], **METHODS[name]}
        if name != "frozen" and args.rates > 1:
            section = tuned(section, stream, args, folder / "tuning" / name)
        rows[name] = [
            learned(section, stream, args.backbone, seed, folder / " ".join([name, *_chosen(section), str(seed)]))
            for seed in ([0] if name == "frozen" else map(int, args.seeds.split(",")))
        ]
        print("\n".join(table(rows)), flush=True)
        lines = ["# Retrievers that learn one domain after another", "",
                 f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
                 f"Measured: {stream.name}, {len(stream)} domains, {args.backbone}, seeds {args.seeds}, "
                 f"± standard deviation; {common.machines(run for runs in rows.values() for run in runs)}.", "",
                 *table(rows), "", *differences(rows)]  # fmt: skip
        common.write_page("retrieval", lines)


def tuned(section: dict[str, Any], stream: Stream, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The settings with the learning rate and the epochs that have the highest final score on validation queries."""
    section = {"epochs": default(section, "epochs"), "lr": default(section, "lr"), **section}
    judged = on_validation(stream, TUNED_ON)

    def with_(step: int, times: int) -> dict[str, Any]:
        return {**section, "lr": common.rate(section["lr"], step), "epochs": times * section["epochs"]}

    def judge(step: int, times: int = 1) -> dict[str, Any]:
        tried = with_(step, times)
        out = folder / (f"{tried['lr']}" if times == 1 else f"{tried['lr']} times {times}")
        result = learned(tried, judged, args.backbone, 0, out)
        print(f"{tried}: validation nDCG@10 {result['final_accuracy']:.4f}", flush=True)
        return result

    found = {(step, 1): result for step, result in common.around(judge, args.rates).items()}
    middle = best(found)[0]
    for step in (middle - 1, middle):
        found[step, LONGER] = judge(step, LONGER)
    return with_(*best(found))


def _chosen(section: dict[str, Any]) -> list[str]:
    """The settings that were chosen, for the name of a folder."""
    return [f"{name} {section[name]}" for name in ("lr", "epochs") if name in section]


def table(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    joint = mean(result["gain"] for result in rows["joint"]) if "joint" in rows else None
    lines = ["| method | lr | epochs | all domains | old domains | retention, % | new domain | of joint's new, % "
             "| documents to encode again | trained | seconds | on |", "|---" * 12 + "|"]  # fmt: skip
    for name, runs in sorted(rows.items(), key=lambda row: -mean(result["final_accuracy"] for result in row[1])):
        old = [mean(result["accuracy_matrix"][-1][:-1]) for result in runs]
        stale = [
            0 if result["retrieval"]["index"] == "kept" else result["retrieval"]["stale_documents"] for result in runs
        ]
        chosen = runs[0]["config"]["method"]
        part = f"{100 * mean(result['gain'] for result in runs) / joint:.1f}" if joint else ""
        keys = ("final_accuracy", "retention", "gain")
        final, retention, gain = (spread(result[key] for result in runs) for key in keys)
        lines.append(
            f"| {name} | {chosen.get('lr', '')} | {chosen.get('epochs', '')} | {final} | {spread(old)} "
            f"| {retention} | {gain} | {part} | {max(stale):,} of {runs[0]['retrieval']['documents']:,} "
            f"| {runs[0]['trainable_parameters']:,} | {mean(result['seconds']['total'] for result in runs):.0f} "
            f"| {common.computed_on(runs)} |"
        )
    return lines


def differences(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The mean difference of two rows over the seeds, with its 95 % interval."""
    from scipy import stats

    lines = ["| row minus row | all domains | old domains | new domain |", "|---" * 4 + "|"]
    for first, second in COMPARED:
        cells = []
        for score in (lambda run: run["final_accuracy"], lambda run: mean(run["accuracy_matrix"][-1][:-1]),
                      lambda run: run["gain"]):  # fmt: skip
            found = [(score(a), score(b)) for a, b in zip(rows.get(first, []), rows.get(second, []), strict=False)]
            if len(found) > 1:
                apart = [100 * (a - b) for a, b in found]
                low, high = stats.t.interval(0.95, len(apart) - 1, mean(apart), stats.sem(apart))
                cells.append(f"{mean(apart):+.1f} ({low:+.1f} to {high:+.1f})")
        if cells:
            lines.append(f"| {first} minus {second} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
