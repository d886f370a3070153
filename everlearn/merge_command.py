"""The command `everlearn merge`: one model of several runs that learned different data."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import options
from everlearn.errors import EverlearnError, as_word, printable

ABOUT = (
    "make one model of several runs of one method that learned different data: exact if the method keeps sums or "
    "features (simplecil, lda, logistic, …), else an average of the trained weights. The scores on the examples of the "
    "first run and of the others, before and after, are printed; `rollback` returns to the first run"
)
HOW = ("average", "fisher", "ties", "dare", "interpolate")
"""Those of `merge_runs`; listed here too, so that help is fast."""


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `merge` to the command line."""
    p = verb("merge", ABOUT)
    p.add_argument("directories", metavar="DIR", type=Path, nargs="+", help="at least two run folders")
    p.add_argument("--out", required=True, type=Path, metavar="FOLDER",
                   help="a new or empty folder, for a copy of the first run with the merged model")  # fmt: skip
    p.add_argument("--how", choices=HOW, help="average: of the trained weights (default); fisher: weighted by how "
                   "important a weight is for each run, on its validation examples; ties: the largest changes of the "
                   "encoder, of those that have the sign of their sum; dare: the changes, most of them dropped at "
                   "random and the others enlarged; interpolate: between two runs, as near to the second as "
                   "--target-old allows. A class that only one run has keeps its row of the head")  # fmt: skip
    p.add_argument("--weights", metavar="LIST", help="a number for each run, such as 0.7,0.3 (default: equal)")
    p.add_argument("--density", type=float, default=0.2, metavar="S",
                   help="ties: share of the changes that is kept (default: 0.2)")  # fmt: skip
    p.add_argument("--drop", type=float, default=0.9, metavar="P",
                   help="dare: share of the changes that is dropped (default: 0.9)")  # fmt: skip
    p.add_argument("--target-old", type=float, metavar="S",
                   help="interpolate: share of the first run's accuracy on --data that must be kept, such as "
                        "0.95")  # fmt: skip
    p.add_argument("--data", type=Path, metavar="FILE",
                   help="interpolate: labelled examples of the data that the first run learned, but no test "
                        "examples")  # fmt: skip
    options.own_method(p)
    options.as_json(p)


def _merge(args: argparse.Namespace) -> int:
    weights = None if args.weights is None else _numbers(args.weights)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn.model import merge
        from everlearn.versions import describe

        _, version = merge(args.directories, args.out, how=args.how, weights=weights, density=args.density,
                           drop=args.drop, target=args.target_old, data=args.data, method=args.method)  # fmt: skip
    if args.json:
        print(json.dumps(version.record, indent=1))
    else:
        print(describe(version))
        print(f"the first run alone: everlearn rollback {as_word(args.out)}")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise EverlearnError(f"--weights {printable(text)} is no list of numbers: give such as 0.7,0.3") from None


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"merge": _merge}
