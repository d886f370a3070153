"""The commands on a finished run: update, rollback, versions, export. See `cli.py` for the others."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import options, streams
from everlearn.config import check_arguments, run_folder
from everlearn.errors import EverlearnError, as_word, printable, unknown

SETTINGS = ("text_column", "image_column", "label_column", "split_column", "id_column", "skip_bad_rows")
"""The settings of a stream that update and evaluate take; listed here too, so that help is fast."""


def add_parsers(verb: Callable[[str, str], Any]) -> None:
    """Add the four commands to the command line."""
    p = verb("update", "teach a finished run new data as one more task: new classes, new domains or more examples of "
             "old classes; the scores on old and new data before and after are printed, and the previous version is "
             "kept")  # fmt: skip
    options.run_folder(p)
    p.add_argument("--data", required=True, type=Path, metavar="FILE", help="the new examples, as `run` reads them")
    p.add_argument("--test", type=Path, metavar="FILE",
                   help="test examples (default: a fifth of the new examples of each class is held out)")  # fmt: skip
    p.add_argument("--stream.KEY", metavar="VALUE", help="text_column, image_column, label_column, split_column or "
                   "id_column, if they differ from the run's; skip_bad_rows")  # fmt: skip
    options.keep(p, "as many as the run was told to keep")
    options.own_method(p)
    options.as_json(p)
    p = verb("rollback", "return to the version before the last update; no version is removed")
    options.run_folder(p)
    options.as_json(p)
    p = verb("versions", "list the versions of a run that was updated")
    options.run_folder(p)
    options.as_json(p)
    p = verb("export", "write the model for another library, where it gives equal predictions; if this is not "
             "possible, the reason is printed")  # fmt: skip
    options.run_folder(p)
    p.add_argument("--to", required=True, metavar="FORMAT",
                   help="sentence-transformers: the encoder, with trained weights and merged LoRA, as a folder; "
                        "setfit: the same with a head of logistic regression; onnx: the classifier "
                        "as model.onnx, with its tokenizer (extra: onnx)")  # fmt: skip
    p.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new or empty folder")
    options.own_method(p)
    options.as_json(p)


def to_keep(given: str | None) -> int:
    """What --keep means: a number of held-out examples, none, or the default.

    >>> to_keep("none"), to_keep("50")
    (0, 50)
    """
    from everlearn.held_out import KEEP

    if given is None or given == "none":
        return KEEP if given is None else 0
    if not given.isascii() or not given.isdecimal() or len(given) > 9:
        raise EverlearnError(f"--keep {printable(given)} is neither a number of examples nor none: give one of the two")
    return int(given)


def _update(args: argparse.Namespace) -> int:
    given = settings_of(args, "an update")
    keep = None if args.keep is None else to_keep(args.keep)
    directory = run_folder(args.directory)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn.model import update
        from everlearn.versions import describe

        _, version = update(directory, args.data, test=args.test, keep=keep, method=args.method, progress=True, **given)
    if args.json:
        print(json.dumps(version.record, indent=1))
    else:
        print(describe(version))
        print(f"to go back: everlearn rollback {as_word(directory)}")
    return 0


def settings_of(args: argparse.Namespace, doing: str) -> dict[str, Any]:
    """The settings of the data that are given on the command line."""
    settings = args.settings["stream"]
    if unfit := [key for key in settings if key not in SETTINGS]:
        raise unknown(f"setting of {doing}", f"--stream.{unfit[0]}", [f"--stream.{key}" for key in SETTINGS])
    return check_arguments("stream", streams.load, settings)


def _rollback(args: argparse.Namespace) -> int:
    directory = run_folder(args.directory)
    with contextlib.redirect_stdout(sys.stderr):
        from everlearn.versions import rollback

        before, now = rollback(directory)
    if args.json:
        print(json.dumps({"version": now, "before": before}))
    else:
        print(f"{printable(directory)} answers as version {now} again; version {before} stays in "
              f"{printable(directory / 'versions')}")  # fmt: skip
    return 0


def _versions(args: argparse.Namespace) -> int:
    directory = run_folder(args.directory)
    with contextlib.redirect_stdout(sys.stderr):
        from everlearn import versions

        now, found = versions.current(directory), versions.versions(directory)
    if args.json:
        print(json.dumps({"current": now, "versions": [version.record for version in found]}, indent=1))
        return 0
    print(f"version 1 of {printable(directory)}: the run itself")
    for version in found:
        print(versions.describe(version))
    print(f"current: version {now}")
    return 0


def _export(args: argparse.Namespace) -> int:
    directory = run_folder(args.directory)
    with contextlib.redirect_stdout(sys.stderr):
        from everlearn.model import load

        out = load(directory, method=args.method).export(args.to, args.out)
    print(json.dumps({"format": args.to, "folder": str(out)}) if args.json else printable(out))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "update": _update, "rollback": _rollback, "versions": _versions, "export": _export,
}  # fmt: skip
