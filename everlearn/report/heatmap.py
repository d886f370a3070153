"""The accuracy matrix as a coloured HTML table: its text can be copied, searched and read by screen readers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from everlearn.formats import percent
from everlearn.report.markup import Html, scroll, tag

SHADES = 24
RAMP = ((243, 248, 252), (158, 202, 225), (49, 130, 189), (8, 48, 107))  # one hue, from light to dark


def _shade(position: float) -> tuple[float, ...]:
    places = np.linspace(0, 1, len(RAMP))
    return tuple(float(np.interp(position, places, channel)) for channel in zip(*RAMP, strict=True))


def luminance(colour: Sequence[float]) -> float:
    """The relative luminance of (red, green, blue) in 0..255, as WCAG defines it."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def style() -> str:
    """The CSS rules of the shades h0 (lowest) to h23, each with the text colour of higher contrast."""
    rules = []
    for i in range(SHADES):
        colour = _shade(i / (SHADES - 1))
        text = "#fff" if 1.05 / (luminance(colour) + 0.05) > (luminance(colour) + 0.05) / 0.05 else "#000"
        red, green, blue = (round(c) for c in colour)
        rules.append(f".h{i}{{background:#{red:02x}{green:02x}{blue:02x};color:{text}}}")
    return "".join(rules)


def heatmap(
    metric: str, matrix: Sequence[Sequence[float | None]], curve: Sequence[float | None] | None, names: Sequence[str]
) -> Html:
    """Row i: after learning task i. Column j: on the tests of task j. Last column: over all seen tasks. In percent.

    Args:
        metric: the name of the score, for screen readers.
        matrix: (T, T) scores; None becomes an empty cell.
        curve: (T,) scores over all seen tasks, shown as the last column; None omits the column.
        names: (T,) task names; a name other than the default ("task 3") is shown next to the row number.
    """
    known = [score for row in matrix for score in row if score is not None]
    low = math.floor(min(known, default=0) * 10) / 10
    high = max(math.ceil(max(known, default=1) * 10) / 10, low + 0.1)

    def cell(score: float | None, **attributes: str) -> Html:
        if score is None:
            return tag("td")
        shade = min(int((score - low) / (high - low) * SHADES), SHADES - 1)
        return tag("td", percent(score).replace("100.0", "100"), class_=f"h{shade}", **attributes)

    rows = []
    for i, row in enumerate(matrix):
        named = None if names[i] == f"task {i + 1}" else tag("span", f" {names[i]}")
        total = None if curve is None else tag("td", percent(curve[i]), class_="all")
        rows.append(tag("tr", tag("th", str(i + 1), named, scope="row", title=names[i]), *map(cell, row), total))
    tops = [tag("th", str(j + 1), scope="col", title=name) for j, name in enumerate(names)]
    all_seen = None if curve is None else tag("th", "all", scope="col", class_="all")
    head = tag("thead", tag("tr", tag("th", "after \\ on", scope="col"), *tops, all_seen))
    size = "heat" if len(names) <= 12 else "heat dense" if len(names) <= 24 else "heat tiny"
    table = scroll(f"{metric} matrix in percent", tag("table", head, tag("tbody", *rows), class_=size))
    ramp = tag("span", *(tag("i", class_=f"h{i}") for i in range(SHADES)), class_="ramp", aria_hidden="true")
    return tag("div", table, tag("p", f"{100 * low:.0f} %", ramp, f"{100 * high:.0f} %", class_="scale"))
