"""How the targets say what is done with an input: a command, or a Python function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.damage import Draw
from fuzzing.watch import Case, spoken


def run_case(d: Draw, options: dict[str, str], place: Path) -> Case:
    """`everlearn run` with these options, on a small backbone."""
    given = {"--backbone": "tiny", "--method": "simplecil", "--recipe": "none", "--out": "out", **options}
    return command_case(d, ["run", *(word for pair in given.items() for word in pair)], place)


def command_case(d: Draw, argv: list[str], place: Path, **environment: str) -> Case:
    names = " ".join(f"{key}={value!a}" for key, value in environment.items())
    told = f"{names} everlearn {spoken(argv)}".strip()
    return Case(argv, f"{told} # {', '.join(d.told)}", place, environment)


def call_case(d: Draw, function: Callable[[], Any], told: str, place: Path) -> Case:
    return Case(function, f"{told} # {', '.join(d.told)}", place)
