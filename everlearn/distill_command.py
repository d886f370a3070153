"""The command `everlearn distill`: a small set of synthetic or selected examples in the place of much data."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import options
from everlearn.errors import printable

ABOUT = (
    "make a small set that can replace much training data, and write it to a file with its recipe; the set is compared "
    "with real subsets of equal size, and test data are not used to choose anything"
)
KINDS = ("features", "texts", "soft")
NEAREST = 10
"""Synthetic examples that are shown with the real example nearest to them; --json has all."""


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `distill` to the command line."""
    p = verb("distill", ABOUT)
    p.add_argument("--stream", metavar="NAME|FILE", default="clinc150", help="the data (default: clinc150)")
    p.add_argument("--stream.KEY", metavar="VALUE", help="a setting of the stream; validation is 0.2 by default where "
                   "the data have no validation examples")  # fmt: skip
    p.add_argument("--tasks", type=int, metavar="N", help="number of tasks, as for run")
    p.add_argument("--until", type=int, metavar="N", help="distil the first N tasks only (default: all)")
    p.add_argument("--backbone", metavar="NAME|DIR", help="default: minilm, or vit-tiny for images")
    p.add_argument("--kind", choices=KINDS, default="features",
                   help="features of the frozen encoder, in closed form (default); texts: real ones, selected and "
                        "weighted; soft: trained sequences in the place of embedded tokens, also of pairs")  # fmt: skip
    p.add_argument(
        "--per-class", type=int, metavar="N", help="examples of each class, or pairs of each domain (default: 10)"
    )
    p.add_argument("--labels", choices=("fixed", "learned"), help="learn the labels too (features and soft); er and "
                   "logistic, which train on a set beside new data, take the class instead")  # fmt: skip
    p.add_argument("--documents", choices=("soft", "real"), help="soft pairs: learn the documents too (default: soft)")
    p.add_argument("--length", type=int, metavar="N", help="soft: tokens of a sequence (default: 8)")
    p.add_argument("--train", metavar="PART", help="soft: what is trained on the set: head (default), full, or an "
                   "insertion such as lora")  # fmt: skip
    p.add_argument("--steps", type=int, metavar="N", help="steps of distillation (default: 150)")
    p.add_argument("--rate", type=float, metavar="R", help="their learning rate (default: 0.003, 0.02 for soft)")
    p.add_argument("--inner-steps", type=int, metavar="N", help="soft: steps of training on the set (default: 30 of a "
                   "head, 2 of an encoder)")  # fmt: skip
    p.add_argument("--inner-rate", type=float, metavar="R", help="soft: their first size, which is learned (default: "
                   "20 of a head, 0.05 of an encoder)")  # fmt: skip
    p.add_argument("--second", metavar="NAME|DIR", help="texts: another encoder, for which transfer is measured "
                   "(default: the words themselves)")  # fmt: skip
    p.add_argument("--seed", type=int, metavar="N", help="the random seed (default: 0)")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help="a new file, in safetensors")
    options.as_json(p)


SETTINGS = ("kind", "per_class", "until", "labels", "documents", "length", "train", "steps", "rate", "inner_steps",
            "inner_rate", "seed")  # fmt: skip


def _distill(args: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn import backbones, streams
        from everlearn.config import check_arguments
        from everlearn.distillation.distill import distill, with_validation

        given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
        of_stream: dict[str, Any] = dict(args.settings["stream"])
        if args.tasks is not None:
            of_stream["tasks"] = args.tasks
        stream = with_validation(args.stream, **check_arguments("stream", streams.load, of_stream))
        backbone = backbones.load(args.backbone or backbones.default_for(stream.input))
        second = backbones.load(args.second) if args.second else None
        command = shlex.join(["everlearn", *args.words])
        _, report = distill(stream, backbone, args.out, **given, second=second, command=command, progress=True)
    if args.json:
        print(json.dumps({"file": str(args.out), **report}, indent=1))
    else:
        print("\n".join(described(report)))
        print(f"written  {printable(args.out)}")
    return 0


def described(report: dict[str, Any]) -> list[str]:
    """The report in lines.

    >>> described({"kind": "texts", "examples": 30, "share of the data": 0.1, "bytes": 2048,
    ...            "accuracy": {"herding": {"validation": 0.9, "test": 0.875}}})[-1].split()
    ['herding', '90.0', '87.5']
    """
    share = f"{100 * report['share of the data']:.2g} % of the data"
    lines = [f"{report['kind']}: {report['examples']:,} examples, {share}, {report['bytes']:,} bytes"]  # fmt: skip
    for name, title in (("accuracy", "accuracy of a model trained on it, %"), ("nDCG@10", "nDCG@10, %")):
        if name in report:
            lines += _table(title, report[name])
    others = ("fresh starts", "own steps, fresh starts", "ridge regression")
    starts: dict[str, Any] = {name: report[name] for name in others if name in report}
    if starts:
        lines += _table("transfer: the set in other training", starts)
    if "second encoder" in report:
        other = dict(report["second encoder"])
        lines += _table(f"transfer to a second encoder: {printable(other.pop('encoder'))}", other)
    if "nearest" in report:
        lines += ["", "synthetic examples, each with the real example nearest to it"]
        every = max(len(report["nearest"]) // NEAREST, 1)
        for entry in report["nearest"][::every][:NEAREST]:
            real = entry["nearest"][0]
            lines.append(f"  {printable(entry['class'], 40):<28}{printable(real['text'] or real['id'], 68)}")
    return lines


def _table(title: str, rows: dict[str, Any]) -> list[str]:
    lines = [(title, "validation", "test")]
    lines += [(f"  {name}", _cell(row["validation"]), _cell(row["test"])) for name, row in rows.items()]
    return ["", *(f"{name:<52}{validation:>14}{test:>14}" for name, validation, test in lines)]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f} ± {100 * value['deviation']:.1f}"
    return f"{100 * value:.1f}"


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"distill": _distill}
