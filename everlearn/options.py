"""Options that several commands have, each told in the same words."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path


def run_folder(parser: ArgumentParser) -> None:
    """DIR, the run that the command is about."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="the run folder")


def own_method(parser: ArgumentParser) -> None:
    """--method, for a run whose method is none of ours."""
    parser.add_argument("--method", metavar="NAME", help="the method of the run; needed only for a method of your own, "
                        "because a run folder never names code to run")  # fmt: skip


def keep(parser: ArgumentParser, default: str) -> None:
    """--keep, of commands that learn."""
    parser.add_argument("--keep", metavar="N|none", help="how many held-out examples stay in the run folder, so that "
                        f"an update can measure what it changed; they are raw texts or images (default: {default})",
                        )  # fmt: skip


def skip_bad_rows(parser: ArgumentParser) -> None:
    """--skip-bad-rows, of commands that read data without the settings of a stream."""
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave out rows that cannot be used")


def as_json(parser: ArgumentParser) -> None:
    """--json, of commands whose answer a program may read."""
    parser.add_argument("--json", action="store_true", help="write only JSON to standard output")
