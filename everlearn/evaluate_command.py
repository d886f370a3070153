"""The command `everlearn evaluate`: how right a saved model answers labelled examples."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import options
from everlearn.config import run_folder
from everlearn.errors import near, printable
from everlearn.version_commands import settings_of

SHOWN = 10
"""Classes with wrong answers that are printed."""


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `evaluate` to the command line."""
    p = verb("evaluate", "score the model of a run on labelled examples that it has not learned: its accuracy, each "
             "class, and how far its probabilities can be trusted")  # fmt: skip
    options.run_folder(p)
    p.add_argument("--data", required=True, type=Path, metavar="FILE",
                   help="labelled examples, as `run` reads them; where rows are of the split test, these alone are "
                        "scored")  # fmt: skip
    p.add_argument("--stream.KEY", metavar="VALUE", help="as for update")
    options.own_method(p)
    options.as_json(p)


def run_evaluate(args: argparse.Namespace) -> int:
    """Print the scores of the model on the file."""
    given = settings_of(args, "an evaluation")
    directory = run_folder(args.directory)
    with contextlib.redirect_stdout(sys.stderr):  # of libraries
        from everlearn.model import load

        scores = load(directory, method=args.method).evaluate(args.data, progress=True, **given)
    if args.json:
        print(json.dumps(scores, indent=1))
    else:
        _print(scores, directory)
    return 0


def _print(scores: dict[str, Any], directory: Path) -> None:
    """The accuracy, and the classes with the lowest recall."""
    from rich.table import Column

    from everlearn.console import plain_table, safe, terminal
    from everlearn.formats import percent
    from everlearn.metrics.per_class import missed

    out = terminal()
    head = f"version {scores['version']} of {printable(directory)} on {near(scores['data'])}"
    examples, error = scores["examples"], percent(scores["expected_calibration_error"])
    told = f"{head}: {percent(scores['accuracy'])} % of {examples:,} examples are right"
    out.print(safe(told, style="bold"), soft_wrap=True)  # a line stays one line in a file or a pipe
    out.print(safe(f"the probability of an answer and the share of right answers differ by {error} points on average"))
    lowest = missed(scores["per_class"])
    if lowest:
        table = plain_table(Column("lowest recall", overflow="fold"), "examples", "recall", "precision",
                            Column("most often taken for", overflow="fold"))  # fmt: skip
        for score in lowest[:SHOWN]:
            row = f"{score['examples']:,}", percent(score["recall"]), percent(score["precision"])
            table.add_row(safe(score["name"]), *row, safe(score["confused_with"] or ""))
        out.print(table)
    if len(lowest) > SHOWN:
        out.print(safe(f"{len(lowest) - SHOWN} more classes have wrong answers; --json names all of them"))
    for note in scores["notes"]:
        out.print(safe(f"note: {note}"), soft_wrap=True)
