"""Output to the terminal: safe text and plain tables, at most 100 columns wide."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.padding import PaddingDimensions
from rich.table import Column, Table
from rich.text import Text

from everlearn.errors import printable
from everlearn.formats import human_bytes, percent
from everlearn.settings import told

WIDTH = 100


def safe(text: object, style: str = "") -> Text:
    """A text for the terminal. A class name or a file name may hold anything, but must not move the cursor."""
    return Text(printable(text, 2000), style=style)


def terminal() -> Console:
    """Standard output, as wide as the terminal but never wider than 100 columns."""
    return Console(width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns), highlight=False, markup=False)


def plain_table(*columns: Column | str, padding: PaddingDimensions = (0, 1, 0, 0)) -> Table:
    """A table without lines. A column that is given by its name alone holds numbers."""
    made = (Column(c, justify="right", no_wrap=True) if isinstance(c, str) else c for c in columns)
    return Table(*made, box=None, padding=padding, pad_edge=False)


def trials_table(record: dict[str, Any]) -> None:
    """Print the trials of a search, best first, what was chosen, and by how much it moved the score.

    Args:
        record: the content of tune.json.
    """
    out, chosen, default = terminal(), record["chosen"], record["default"]
    steps = f", about {record['steps']:,} steps a task" if record["steps"] else ""
    count = f"{record['tasks']} task{'s' * (record['tasks'] > 1)}"
    head = f"{record['method']['name']} on {record['stream']}, the first {count}{steps}"
    out.print(safe(head, style="bold"))
    out.print(safe(f"{record['metric']} on validation examples in %, best first"))
    table = plain_table(*record["grid"], "score", "seconds", Column("", overflow="fold"), padding=(0, 2, 0, 0))
    for trial in sorted(record["trials"], key=lambda trial: -(trial["score"] or 0.0)):
        settings = trial["settings"]
        words = ["chosen"] * (settings.items() <= chosen.items()) + ["the method's own"] * (settings == default)
        if trial["score"] is None:
            words.append(f"failed: {shorten(printable(trial['error'], 600), 40, placeholder=' …')}")
        seconds = "-" if trial["seconds"] is None else f"{trial['seconds']:.0f}"
        table.add_row(*(told(value) for value in settings.values()), percent(trial["score"]), seconds,
                      safe(", ".join(words)))  # fmt: skip
    out.print(table)
    settings = ", ".join(f"{name} {told(chosen[name])}" for name in record["grid"])
    own, moved = record["default_score"], "the method's own values failed"
    if own is not None:
        by = 100 * (record["score"] - own)
        moved = f"the method's own values have {percent(own)} %, so tuning gave {by:+.1f} points"
    out.print(safe(f"chosen   {settings}: {percent(record['score'])} %; {moved}", style="bold"))


def cache_table(entries: Sequence[dict[str, Any]]) -> None:
    """Print the content of the feature store, one line per backbone."""
    out = terminal()
    texts = (Column("identity", overflow="ellipsis", max_width=24), Column("description", overflow="fold"))
    table = plain_table(*texts, "examples", "size", "last used", padding=(0, 1))
    for e in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e["last_used"]))
        about = safe(e["identity"]), safe(e["description"])
        table.add_row(*about, f"{e['examples']:,}", human_bytes(e["bytes"]), used)
    out.print(table if entries else "the feature store is empty")
