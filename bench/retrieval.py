"""Ways to teach a dense retriever one domain after another, compared with equal care.

    python bench/retrieval.py [--stream NAME] [--methods a,b] [--rates 3] [--seeds 0,1,2] [--out FOLDER]

Every method first learns the first two domains with each of as many learning rates, a factor of three apart around the
one of its row or its default, and their validation queries decide; where the best is the smallest or the largest, up to
two more are tried beyond it. Test queries and later domains are not used. Then the method learns the stream with the
rate found, once with every seed. A folder that is given is gone on with: what is finished there is not learned again.

Written to docs/results/retrieval.md: nDCG@10 on all domains at the end, on the old ones and on the new one when it was
learned, beside the model before any learning and joint training; how many documents would have to be encoded again;
and what the first source document claims, that a prompt pool keeps more than 80 % of the old performance and reaches
98 % of joint training on new data.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import common
import torch

from everlearn import methods, resume, run, streams
from everlearn.schemas import read_results
from everlearn.streams.stream import Corpus, Examples, Stream, Task

METHODS = {
    "frozen": {}, "finetune": {"epochs": 1}, "er": {"epochs": 1}, "joint": {"epochs": 1}, "lora": {"epochs": 1},
    "lora query side": {"epochs": 3, "side": "query"},
    "prompt_retriever": {"length": 1, "selected": 1, "lr": 0.03}, "prompt_retriever of source A": {"lr": 0.03},
    "qdc": {"epochs": 1}, "qdc without distillation": {"epochs": 1, "distill": 0.0},
    "l2r": {"epochs": 1}, "interpolate": {"epochs": 1, "weight": "auto"},
}  # fmt: skip
"""The settings of each row, where lr is the middle of the learning rates tried; the first word names the method."""

TUNED_ON = 2
"""Domains of the stream on which learning rates are chosen."""
FURTHER = 2
"""Rates that are tried besides, where the best is the smallest or the largest so far."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="domains4")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--rates", type=int, default=3, help="learning rates tried; 1 takes the method's default")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path, help="a folder for the runs; a temporary one by default")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = args.out or Path(tempfile.mkdtemp())
    stream = streams.load(args.stream)
    rows = {}
    for name in args.methods.split(","):
        section = {"name": name.split()[0], **METHODS[name]}
        if name != "frozen":
            section["lr"] = tuned(section, stream, args, folder / "tuning" / name)
        rows[name] = [
            learned(section, stream, args.backbone, seed, folder / f"{name} {section.get('lr', '')} {seed}")
            for seed in ([0] if name == "frozen" else map(int, args.seeds.split(",")))
        ]
        print("\n".join(table(rows)), flush=True)
        lines = ["# Retrievers that learn one domain after another", "",
                 f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
                 f"Measured: {stream.name}, {len(stream)} domains, {args.backbone}, seeds {args.seeds}; "
                 f"{common.machine(rows[name][0]['environment'])}.", "", *table(rows)]  # fmt: skip
        common.write_page("retrieval", lines)


def learned(section: dict[str, Any], stream: Stream, backbone: str, seed: int, out: Path) -> dict[str, Any]:
    """The results of a run, which goes on where it was stopped; those in the folder where it is finished already."""
    if (out / "results.json").exists():
        return read_results(out / "results.json")
    if (out / "config.yaml").exists():
        return resume(out, stream=stream).results
    return run(section, stream, backbone=backbone, seed=seed, out=out).results


def tuned(section: dict[str, Any], stream: Stream, args: argparse.Namespace, folder: Path) -> float:
    """The learning rate with the highest final score on validation queries."""
    rate = section.get("lr") or default_rate(methods.get(section["name"]), section)
    if args.rates == 1:
        return rate
    scores: dict[int, float] = {}
    judged, tried = on_validation(stream), [step - args.rates // 2 for step in range(args.rates)]
    while tried:
        for step in tried:
            lr = float(f"{rate * 3.0**step:.3g}")
            scores[step] = learned({**section, "lr": lr}, judged, args.backbone, 0, folder / f"{lr}")["final_accuracy"]
            print(f"{section} lr={lr}: validation nDCG@10 {scores[step]:.4f}", flush=True)
        best = max(scores, key=scores.__getitem__)
        # A best rate at the end of those tried may have a better one beyond it.
        tried = [step for step in (best - 1, best + 1) if step not in scores and len(scores) < args.rates + FURTHER]
    return float(f"{rate * 3.0**best:.3g}")


def default_rate(method: type[Any], section: dict[str, Any]) -> float:
    """What the method takes where no learning rate is given."""
    from everlearn import backbones

    given = {key: value for key, value in section.items() if key != "name"}
    return float(method(backbones.load("tiny"), **given).lr)


def on_validation(stream: Stream) -> Stream:
    """The first domains of the stream, with their validation queries in place of their test queries."""

    def judged(task: Task) -> Task:
        validation, corpus = task.validation, task.corpus
        assert corpus is not None
        assert validation.positives is not None
        ids = {text: id for id, text in zip(corpus.ids, corpus.texts, strict=True)}
        for text in validation.positives:
            ids.setdefault(text, f"validation {len(ids)}")
        relevant = [{ids[text]: 1} for text in validation.positives]
        test = Examples(validation.inputs, validation.labels, validation.ids, relevant=relevant)
        return replace(task, examples={"train": task.train, "validation": validation, "test": test},
                       corpus=Corpus(list(ids.values()), list(ids)))  # fmt: skip

    return replace(stream, tasks=tuple(judged(task) for task in stream.tasks[:TUNED_ON]))


def table(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    joint = mean(result["gain"] for result in rows["joint"]) if "joint" in rows else None
    lines = ["| method | lr | all domains | old domains | retention, % | new domain | of joint's new, % "
             "| documents to encode again | trained | seconds |", "|---" * 10 + "|"]  # fmt: skip
    for name, runs in sorted(rows.items(), key=lambda row: -mean(result["final_accuracy"] for result in row[1])):
        old = [mean(result["accuracy_matrix"][-1][:-1]) for result in runs]
        stale = [
            0 if result["retrieval"]["index"] == "kept" else result["retrieval"]["stale_documents"] for result in runs
        ]
        part = f"{100 * mean(result['gain'] for result in runs) / joint:.1f}" if joint else ""
        keys = ("final_accuracy", "retention", "gain")
        final, retention, gain = (spread(result[key] for result in runs) for key in keys)
        lines.append(
            f"| {name} | {runs[0]['config']['method'].get('lr', '')} | {final} | {spread(old)} | {retention} | {gain} "
            f"| {part} | {max(stale):,} of {runs[0]['retrieval']['documents']:,} "
            f"| {runs[0]['trainable_parameters']:,} | {mean(result['seconds']['total'] for result in runs):.0f} |"
        )
    return lines


def spread(values: Any) -> str:
    """Mean and standard deviation in %."""
    found: Sequence[float] = [100 * value for value in values]
    return f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


if __name__ == "__main__":
    main()
