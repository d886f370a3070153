"""The command `everlearn label`: write what a person should label next, and read the labels back."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from everlearn import options
from everlearn.config import check_file, run_folder
from everlearn.errors import EverlearnError, as_word, printable
from everlearn.settings import Count, Seed, checked

STRATEGIES = ("random", "margin", "entropy", "k-center", "typical", "facility", "badge", "fass")
"""Listed here too, so that help is fast."""
ABOUT = (
    "choose the unlabelled examples that a person should label next, write them to a file, the most useful first, and "
    "say when to stop; with --read, learn the labels that were written into that file"
)


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `label` to the command line."""
    p = verb("label", ABOUT)
    p.add_argument("directory", metavar="DIR", type=Path, nargs="?",
                   help="the run whose model chooses the examples, or learns the labels; without it, the examples are "
                        "chosen by a pre-trained encoder alone (--backbone)")  # fmt: skip
    p.add_argument("--data", type=Path, metavar="FILE", help="the unlabelled examples: a table, a text with one input "
                   "per line, or images")  # fmt: skip
    p.add_argument("--budget", type=int, default=50, metavar="N", help="how many to label (default: 50)")
    p.add_argument("--labelled", type=Path, metavar="FILE", nargs="+", default=[],
                   help="examples that have labels already; they are not chosen again")  # fmt: skip
    p.add_argument("--strategy", choices=STRATEGIES,
                   help="how to choose (default: what did best on validation examples)")  # fmt: skip
    p.add_argument("--backbone", metavar="NAME|DIR", help="the encoder that chooses if DIR is not given")
    p.add_argument("--column", metavar="NAME", help="the column of the inputs, if its name is not a usual one")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="the random seed (default: 0)")
    p.add_argument("--out", type=Path, metavar="FILE", help="the table to label; with --read and without DIR, the "
                   "labelled rows as a table for `everlearn run`")  # fmt: skip
    p.add_argument("--read", type=Path, metavar="FILE", help="the table with labels: DIR learns them as an update")
    p.add_argument("--new-classes", action="store_true", help="allow labels that the model does not know yet")
    p.add_argument("--test", type=Path, metavar="FILE", help="with --read: test examples (default: a fifth of the "
                   "labelled examples of each class is held out)")  # fmt: skip
    options.skip_bad_rows(p)
    p.add_argument("--overwrite", action="store_true", help="replace the file of --out if it exists")
    options.own_method(p)
    options.as_json(p)


def _label(args: argparse.Namespace) -> int:
    if (args.data is None) == (args.read is None):
        raise EverlearnError("give --data FILE to choose what to label, or --read FILE to read labels back")
    if args.directory:
        run_folder(args.directory)
    if not (args.directory and args.read):
        for option, given in (("--test", args.test), ("--new-classes", args.new_classes)):
            if given:
                raise EverlearnError(f"{option} is for labels that a run learns: give DIR and --read FILE, or leave it "
                                     "out")  # fmt: skip
    _check_out(args)
    return _read(args) if args.read else _ask(args)


def _check_out(args: argparse.Namespace) -> None:
    """Refuse to replace what the user has, above all a table with labels."""
    if args.out is None:
        if args.data or not args.directory:
            raise EverlearnError("--out FILE is missing: name the table to write")
        return
    if args.directory and args.read:
        raise EverlearnError("--out is not written where a run learns the labels: leave it out")
    given = [file for file in (args.data, args.read, args.test, *args.labelled) if file]
    check_file("--out", args.out, given, overwrite=args.overwrite)


def _ask(args: argparse.Namespace) -> int:
    budget, seed = checked("--budget", args.budget, Count), checked("--seed", args.seed, Seed)
    if args.directory and args.backbone:
        raise EverlearnError("--backbone is for the start, where nothing is learned: leave it or DIR out")
    if not args.data.exists():
        raise EverlearnError(f"{args.data}: no such file")
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn import backbones, labelling, model

        name = args.backbone or backbones.default_for(_input_of(args.data))
        source = (model.load(args.directory, method=args.method) if args.directory
                  else backbones.load_when_needed(name))  # fmt: skip
        asked = labelling.ask(source, args.data, args.out, budget, labelled=args.labelled, strategy=args.strategy,
                              column=args.column, seed=seed, skip_bad_rows=args.skip_bad_rows,
                              progress=True)  # fmt: skip
    if args.json:
        print(json.dumps({**asdict(asked), "stop": asked.stop, "out": str(args.out)}, indent=1))
        return 0
    print(asked.describe())
    then = f" {as_word(args.directory)}" if args.directory else ""
    to = "" if args.directory else " --out LABELLED.csv"
    print(f"written: {printable(args.out)}; fill in its column label, from the top as far as you like, then\n"
          f"  everlearn label{then} --read {as_word(args.out)}{to}")  # fmt: skip
    return 0


def _input_of(data: Path) -> str:
    from everlearn.streams.peek import input_of

    return input_of({"name": str(data)})


def _read(args: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):
        from everlearn import labelling, model
        from everlearn.streams.records import BadRows
        from everlearn.versions import describe

        bad = BadRows(args.skip_bad_rows, option="--skip-bad-rows")
        if args.directory is None:
            records = labelling.read(args.read, bad=bad)
            labelling.write_labelled(records, args.out)
        else:
            loaded = model.load(args.directory, method=args.method)
            known = None if args.new_classes else loaded.class_names
            records = labelling.read(args.read, known=known, bad=bad)
            tests = labelling.read(args.test, columns=loaded.columns, bad=bad) if args.test else []
            tests = [replace(record, id=f"test {record.id}", split="test") for record in tests]
            version = loaded.update([*records, *tests], progress=True)
    notes = list(bad.notes())
    if args.directory is None:
        classes = len({record.label for record in records})
        told = {"labelled": len(records), "classes": classes, "out": str(args.out), "notes": notes}
        lines = [*map(printable, notes),
                 f"{len(records):,} labelled rows of {classes:,} classes: {printable(args.out)}; learn them with",
                 f"  everlearn run --stream {as_word(args.out)} --tasks 1 --out model"]  # fmt: skip
        print(json.dumps(told, indent=1) if args.json else "\n".join(lines))
        return 0
    version = replace(version, record={**version.record, "notes": [*version.notes, *notes]})
    print(json.dumps(version.record, indent=1) if args.json else describe(version))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"label": _label}
