"""What the benches that write a page under docs/results share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from everlearn.config import build_config, find_recipe

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def recipe_settings(stream: str, name: str, **changes: Any) -> dict[str, Any]:
    """A method's section: what its recipe in the collection `stream` says, and the changes."""
    recipe = find_recipe(stream, name)
    return build_config({"method": {"name": name, **changes}}, recipe=str(recipe or "none"))[0]["method"]


def machine(environment: dict[str, Any]) -> str:
    """Where and when a run was made, from its results."""
    threads = environment["threads"]
    return (f"{environment['cpu']}, {threads} thread{'s' * (threads != 1)}, torch {environment['torch']}, "
            f"{environment['date']}")  # fmt: skip


def command(parser: argparse.ArgumentParser, args: argparse.Namespace, but: tuple[str, ...] = ("out",)) -> str:
    """What was called, without what is the default and the options named in `but`; folders by the word alone."""
    told = [f"python bench/{Path(parser.prog).name}"]
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if action.dest in but or value == action.default:
            continue
        told += [action.option_strings[0]] if action.option_strings else []
        told.append("FOLDER" if isinstance(value, Path) else str(value))
    return " ".join(told)


def write_page(name: str, lines: list[str]) -> None:
    """docs/results/NAME.md, with what was written by hand in NAME.notes.md below it."""
    notes = RESULTS / f"{name}.notes.md"
    by_hand = ["", *notes.read_text(encoding="utf-8").splitlines()] if notes.exists() else []
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join([*lines, *by_hand]).rstrip() + "\n", encoding="utf-8")
    print(f"written: docs/results/{name}.md")
