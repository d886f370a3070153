"""Shows the diagnostics of a method: nested dicts become headings, tables and histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.formats import percent
from everlearn.report.figures import ACCENT, columns, short
from everlearn.report.markup import Html, facts, figure, join, table, tag

DEEPEST = 6  # HTML has six levels of headings


def diagnostics(value: Mapping[str, Any], level: int = 3) -> Html:
    """The entries of a dict: plain values first, then each nested value under its own heading.

    {"histogram": {"counts": n numbers, "edges": n + 1 numbers}} and {"histogram": {name: count}} become
    histograms. A list of dicts with equal keys, or of lists of equal length, becomes a table.
    """
    plain = [(name, item) for name, item in value.items() if not _has_parts(item)]
    parts = [(name, item) for name, item in value.items() if _has_parts(item)]
    shown: list[Html] = [facts((name, _plain(item)) for name, item in plain)] if plain else []
    for name, item in parts:
        shown.append(tag(f"h{min(level, DEEPEST)}", name))
        if isinstance(item, Mapping) and _is_histogram(item.get("histogram")):
            shown.append(_histogram(str(name), item["histogram"]))
            item = {key: rest for key, rest in item.items() if key != "histogram"}
        shown.append(diagnostics(item, level + 1) if isinstance(item, Mapping) else _rows(str(name), item))
    return join(*shown)


def _is_histogram(data: object) -> bool:
    if not isinstance(data, Mapping):
        return False
    counts, edges = data.get("counts"), data.get("edges")
    if not isinstance(edges, list) or not isinstance(counts, list):
        return all(map(_is_number, data.values()))
    return len(edges) == len(counts) + 1 and all(map(_is_number, [*edges, *counts]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_parts(item: object) -> bool:
    if isinstance(item, Mapping):
        return bool(item)
    return isinstance(item, (list, tuple)) and any(isinstance(x, (Mapping, list, tuple)) for x in item)


def _rows(name: str, items: Sequence[Any]) -> Html:
    """A list of nested items: a table if all items have the same form, else one numbered entry per item."""
    first = items[0]
    if isinstance(first, Mapping) and all(isinstance(x, Mapping) and x.keys() == first.keys() for x in items):
        return table(name, list(first), [[_plain(cell) for cell in row.values()] for row in items], text=0)
    if all(isinstance(x, (list, tuple)) and len(x) == len(items[0]) for x in items):
        return table(name, range(1, len(items[0]) + 1), [[_plain(cell) for cell in row] for row in items], text=0)
    return diagnostics({str(i + 1): item for i, item in enumerate(items)}, DEEPEST)


def _plain(item: object) -> str:
    if item is None:
        return percent(None)
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int):
        return f"{item:,}"
    if isinstance(item, float):
        return f"{item:.4g}"
    if isinstance(item, (list, tuple)):
        return ", ".join(map(_plain, item)) or "none"
    return str(item)


def _histogram(name: str, data: Mapping[str, Any]) -> Html:
    edges = data.get("edges")
    if isinstance(edges, list):
        counts, names = data["counts"], [short(edge) for edge in edges]
        label = f"{name}: histogram of {len(counts)} columns, the highest {max(counts, default=0)}"
        drawn = columns(label, [[float(count)] for count in counts], names, [ACCENT], "count", "", edges=True)
        return tag("div", figure(None, "histogram", drawn), class_="charts")
    longest = max(data.values(), default=0) or 1

    def bar(count: float) -> Html:
        return tag("div", tag("i", style=f"width:{100 * count / longest:.1f}%"), class_="meter", aria_hidden="true")

    rows = [[bar(count), key, _plain(count)] for key, count in data.items()]
    return table(name, ["", "value", "count"], rows, text=2)
