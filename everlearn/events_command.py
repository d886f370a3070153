"""The command `everlearn events DIR`: which examples were forgotten, never learned, or have a doubtful label."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import options
from everlearn.config import check_file, run_folder
from everlearn.errors import EverlearnError, printable

if TYPE_CHECKING:
    from everlearn.presentations import History
    from everlearn.streams.stream import Stream

SHOWN = 60
"""Characters of a text that are shown."""


def add_parser(verb: Any) -> None:
    """Add the command to the command line."""
    p = verb(
        "events",
        "list the training examples that were forgotten while they were trained on (those of a memory in later tasks "
        "too), or never learned, and those whose label may be wrong; the run must have a method that trains",
    )
    options.run_folder(p)
    p.add_argument(
        "--top", type=int, default=10, metavar="N", help="examples that are shown of each kind (default: 10)"
    )
    p.add_argument("--never-forgotten", type=Path, metavar="FILE",
                   help="write the ids of the examples that were learned and never forgotten, one a line: these "
                        "are the least important for training")  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    p.add_argument("--json", action="store_true", help="write only JSON to standard output, with all examples")


def run_events(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.top < 0:
        raise EverlearnError(f"--top {args.top} is negative: give how many examples of each kind to show")
    run_folder(args.directory)
    if args.never_forgotten:
        check_file("--never-forgotten", args.never_forgotten, overwrite=args.overwrite)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn.files import write_whole
        from everlearn.presentations import doubtful, histories

        found = histories(args.directory)
        stream = _stream(args.directory)
        if args.never_forgotten:
            kept = [one.id for one in found if one.events.is_never_forgotten]
            write_whole(args.never_forgotten, "".join(f"{id}\n" for id in kept))
    suspects = doubtful(found)
    told = _named(found, stream)
    if args.json:
        print(json.dumps({**_counts(found), "examples": [told[one.id] for one in found],
                          "doubtful": [one.id for one in suspects]}, indent=1))  # fmt: skip
        return 0
    print("\n".join(_lines(found, suspects, told, args.top)))
    if stream is None:
        print("the texts are not shown, because the data of the run have changed, or cannot be read any more")
    return 0


def _stream(folder: Path) -> Stream | None:
    """What the run learned, if that can still be read and is what it was: the ids of other rows name other texts."""
    from everlearn.protocol import load_stream, read_run

    config = read_run(folder)[0]["stream"]
    if "in_memory" in config:
        return None
    try:
        stream, learned = load_stream(config), _fingerprint(folder)
        return stream if learned in (None, stream.fingerprint()) else None
    except EverlearnError:
        return None


def _fingerprint(folder: Path) -> str | None:
    """That of the data which the run has learned; None before its first checkpoint."""
    from everlearn import checkpoint
    from everlearn.schemas.results import read_results

    if (folder / "results.json").exists():
        return str(read_results(folder / "results.json")["fingerprint"])
    name = checkpoint.newest(folder / "checkpoints")
    return None if name is None else str(checkpoint.read_state(folder / "checkpoints" / name)["fingerprint"])


def _named(found: Sequence[History], stream: Stream | None) -> dict[str, dict[str, Any]]:
    """What is told of each example, by its id."""
    is_ranking = stream is not None and stream.goal == "ranking"
    names = () if stream is None else stream.class_names
    texts = {id: item for task in stream or () for id, item in zip(task.train.ids, task.train.inputs, strict=True)}

    def named(label: int) -> str | None:
        return None if is_ranking else names[label] if label < len(names) else f"class {label + 1}"

    return {
        one.id: {
            "id": one.id, **asdict(one.events), "label": named(one.label),
            "mistaken_for": one.mistaken_for and named(one.mistaken_for[0]),
            "times": one.mistaken_for[1] if one.mistaken_for else 0,
            "text": text if isinstance(text := texts.get(one.id), str) else None,
        }
        for one in found
    }  # fmt: skip


def _counts(found: Sequence[History]) -> dict[str, int]:
    return {
        "trained_on": len(found), "presentations": sum(one.events.presented for one in found),
        "never_learned": sum(one.events.learned is None for one in found),
        "never_forgotten": sum(one.events.is_never_forgotten for one in found),
        "forgotten": sum(one.events.forgotten > 0 for one in found),
    }  # fmt: skip


def _lines(
    found: Sequence[History], suspects: Sequence[History], told: dict[str, dict[str, Any]], top: int
) -> list[str]:
    counts = _counts(found)
    lines = [f"{counts['trained_on']:,} examples were trained on, in {counts['presentations']:,} presentations"]
    for name in ("never_forgotten", "forgotten", "never_learned"):
        share = 100 * counts[name] / counts["trained_on"]
        lines.append(f"{name.replace('_', ' '):<16}{counts[name]:>9,}  {share:5.1f} %")
    most = [one for one in found if one.events.forgotten][:top]
    if most:
        lines += ["", "forgotten most often: times, example, label"]
        lines += [f"{one.events.forgotten:>5}  {_shown(told[one.id])}" for one in most]
    if suspects[:top]:
        lines += ["", "labels to look at: the model answers another class; times, example, label, its answer"]
        lines += [f"{told[one.id]['times']:>5}  {_shown(told[one.id])} -> {told[one.id]['mistaken_for'] or 'another'}"
                  for one in suspects[:top]]  # fmt: skip
    return [printable(line, 400) for line in lines]


def _shown(told: dict[str, Any]) -> str:
    """An example in a list: its id, its text where it has one, and its label."""
    text, label = told["text"], told["label"]
    short = text if not text or len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    if label is None:
        return short or told["id"]
    return f"{told['id']}: {short}, {label}" if short else f"{told['id']}, {label}"
