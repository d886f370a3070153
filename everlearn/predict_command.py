"""The command `everlearn predict`: the answers of a saved run, as CSV or JSON."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import options
from everlearn.config import check_file, run_folder
from everlearn.errors import EverlearnError, printable
from everlearn.files import write_whole

MOST_TOLD = 20
"""Rows without an answer whose reasons are printed."""


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `predict` to the command line."""
    p = verb("predict", "predict with the model of a run; writes CSV with id, prediction and score (the probability of "
             "the predicted class); rows that cannot be read come last, without a prediction")  # fmt: skip
    options.run_folder(p)
    p.add_argument("--input", required=True, type=Path, metavar="FILE",
                   help="CSV, TSV, JSON Lines, Parquet, Excel, a text with one input per line, or images")  # fmt: skip
    p.add_argument("--column", metavar="NAME", help="the column of the inputs, if its name is not a usual one")
    p.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    p.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    p.add_argument("--proba", action="store_true", help="also write the probability of each class")
    options.own_method(p)
    options.as_json(p)


def run_predict(args: argparse.Namespace) -> int:
    """Print or write a row for each input of the file."""
    run_folder(args.directory)
    if not args.input.exists():
        raise EverlearnError(f"{args.input}: no such file; check the path")
    if args.out:
        check_file("--out", args.out, [args.input], overwrite=args.overwrite)
    with contextlib.redirect_stdout(sys.stderr):  # of libraries: standard output holds the answers alone
        from everlearn import model
        from everlearn.streams.inputs import kind
        from everlearn.streams.readers import read_inputs
        from everlearn.streams.records import BadRows

        loaded = model.load(args.directory, method=args.method)
        learned = loaded.method.task.input
        bad = BadRows(skip=True)
        inputs, ids = read_inputs(args.input, **{f"{learned}_column": args.column}, learned=loaded.columns, bad=bad)
        if not inputs:
            raise EverlearnError(f"{args.input} has no row that can be answered: {': '.join(bad.rows[0])}")
        if (found := kind(inputs[0])) != learned:
            raise EverlearnError(f"{args.input} holds {found}s, but the model in {args.directory} learned {learned}s")
        scores = loaded.predict_proba(inputs, progress=True)
    names, best = loaded.class_names, scores.argmax(axis=1)
    rows = [(id_, names[k], float(row[k]), row) for id_, k, row in zip(ids, best, scores, strict=True)]
    if args.json:
        each: list[dict[str, Any]] = [{"id": i, "prediction": name, "score": score}
                | ({"probabilities": dict(zip(names, map(float, row), strict=True))} if args.proba else {})
                for i, name, score, row in rows]  # fmt: skip
        each += [{"id": where, "prediction": None, "score": None, "reason": cause} for where, cause in bad.rows]
        text = json.dumps(each, indent=1) + "\n"
    else:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["id", "prediction", "score", *(map(_cell, names) if args.proba else ())])
        for i, name, score, row in rows:
            probabilities = [f"{p:.6g}" for p in row] if args.proba else ()
            writer.writerow([_cell(i), _cell(name), f"{score:.6g}", *probabilities])
        writer.writerows([_cell(where), "", "", *([""] * len(names) if args.proba else ())] for where, _ in bad.rows)
        text = table.getvalue()
    if args.out:
        write_whole(args.out, text.encode("utf-8", "backslashreplace"))
    else:
        sys.stdout.write(text)
    for where, cause in bad.rows[:MOST_TOLD]:
        print(f"{printable(where)} has no answer: {printable(cause)}", file=sys.stderr)
    if len(bad.rows) > MOST_TOLD:
        print(f"{len(bad.rows) - MOST_TOLD} more rows have no answer", file=sys.stderr)
    return 0


def _cell(text: str) -> str:
    """A text that a spreadsheet shows and does not compute: an apostrophe comes before what looks like a formula.

    >>> _cell("=1+1"), _cell("-5"), _cell("card lost")
    ("'=1+1", '-5', 'card lost')
    """
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text
