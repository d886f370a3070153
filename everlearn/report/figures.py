"""Charts as SVG, generated without a plotting library: a few kilobytes each, sharp in print, readable on a phone.

A chart is 480 units wide and scales with its container; the style sheet enlarges its text on narrow
screens. The colours are those of Okabe and Ito, which colour-blind readers can tell apart, and lines
also differ in their marks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from everlearn.report.markup import Html, join, tag

INK, GREY, ACCENT = "#1f2328", "#b4bcc6", "#0072b2"
COLOURS = (ACCENT, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6f4ea1", "#7f6000")
MARKS = ["circle", "square", "triangle", "diamond"]
WIDTH = 480
CROWDED = 40  # above this number of tasks no marks are drawn, because they would overlap
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 34, 52


@dataclass(frozen=True)
class Line:
    """One line of a chart: one value per position, None where a value is missing."""

    name: str
    values: Sequence[float | None]
    colour: str = ACCENT
    mark: str | None = "circle"
    width: float = 2.5
    dashes: str | None = None


@dataclass(frozen=True)
class Point:
    """One numbered point of a scatter plot."""

    number: int
    name: str
    x: float
    y: float
    kind: str


class Axes:
    """The coordinate system of a chart: it maps values to positions and draws the grid and the labels."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: int = 290) -> None:
        self.x_range, self.y_range, self.height = x, y, height

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - BOTTOM - (value - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM)

    def chart(
        self, label: str, x_title: str, y_title: str, x_labels: Sequence[tuple[float, str]], *drawn: object
    ) -> Html:
        """An SVG element with `label` as its text description for screen readers."""
        bottom = self.height - BOTTOM
        parts = []
        for value in ticks(*self.y_range):
            y = self.y(value)
            parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", short(value), x=LEFT - 8, y=y + 5, text_anchor="end"))
        parts += [tag("text", name, x=self.x(at), y=bottom + 20, text_anchor="middle") for at, name in x_labels]
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
        parts.append(tag("text", y_title, x=4, y=16, class_="title"))
        parts.append(tag("text", x_title, x=WIDTH - RIGHT, y=self.height - 8, text_anchor="end", class_="title"))
        box = f"0 0 {WIDTH} {self.height}"
        return tag("svg", tag("g", *parts), *drawn, viewBox=box, role="img", aria_label=label, class_="chart")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about `about` of them.

    >>> ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    span = (high - low) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(float(step * i), 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def around(values: Sequence[float]) -> tuple[float, float]:
    """Round bounds with a margin around all values, clipped to 0 and 100 if all values lie within them. (A score
    may be 460 % of joint's.)

    >>> around([62.0, 97.0]), around([0.0, 460.0])
    ((60, 100), (0.0, 500))
    """
    low, high = min(values, default=0.0), max(values, default=100.0)
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(step for step in steps if high - low <= 8 * step)
    low, high = math.floor(low / step - 0.2) * step, math.ceil(high / step + 0.2) * step
    return (max(low, 0.0) if min(values, default=0) >= 0 else low,
            min(high, 100.0) if max(values, default=0) <= 100 else high)  # fmt: skip


def short(value: float) -> str:
    """A number in the short form that axis labels use.

    >>> short(0.5), short(20.0), short(1500000)
    ('0.5', '20', '1.5M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def numbers(tasks: int) -> list[str]:
    """The labels of so many tasks: 1, 2, …"""
    return [str(i + 1) for i in range(tasks)]


def some_labels(names: Sequence[str], about: int = 10) -> list[tuple[float, str]]:
    """A selection of at most `about` evenly spaced names, with their positions."""
    step = max(1, math.ceil(len(names) / about))
    return [(float(i), name) for i, name in enumerate(names) if i % step == 0]


def line_chart(label: str, lines: Sequence[Line], y_title: str, from_zero: bool = False) -> Html:
    """One line per series over the tasks, in percent; or from zero on, in any unit. The last line is drawn on top."""
    tasks = max(len(line.values) for line in lines)
    known = [value for line in lines for value in line.values if value is not None]
    bounds = (0.0, 1.04 * (max(known, default=0.0) or 1.0)) if from_zero else around(known)
    axes = Axes((-0.3, max(tasks - 0.7, 0.3)), bounds)
    drawn = []
    for line in lines:
        points = [(axes.x(i), axes.y(value)) for i, value in enumerate(line.values) if value is not None]
        title = f"{line.name}: " + ", ".join("none" if v is None else f"{v:{'.3g' if from_zero else '.1f'}}"
                                             for v in line.values)  # fmt: skip
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = {"stroke": line.colour, "stroke_width": line.width, "stroke_dasharray": line.dashes}
        stroke = tag("path", d=path, fill="none", **style, stroke_linejoin="round") if len(points) > 1 else None
        marks = [mark(line.mark, x, y, line.colour) for x, y in points if line.mark and tasks <= CROWDED]
        drawn.append(tag("g", tag("title", title), stroke, *marks))
    return axes.chart(label, "task", y_title, some_labels(numbers(tasks)), *drawn)


def mark(kind: str, x: float, y: float, colour: str, hollow: bool = False, r: float = 4.5) -> Html:
    """A mark at (x, y): a circle, square, triangle or diamond."""
    style = {"fill": "#fff" if hollow else colour, "stroke": colour if hollow else "#fff"}
    style["stroke_width"] = "2" if hollow else "1"
    if kind == "circle":
        return tag("circle", cx=x, cy=y, r=r, **style)
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.25), (1.2, 1), (-1.2, 1)),
        "diamond": ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    }[kind]
    scaled = " ".join(f"{x + dx * r * 0.9:.1f},{y + dy * r * 0.9:.1f}" for dx, dy in corners)
    return tag("polygon", points=scaled, **style)


def then_and_now(label: str, pairs: Sequence[tuple[float | None, float | None]], y_title: str) -> Html:
    """The score of each task in percent: a hollow point when it was learned, a filled point at the end, and a line."""
    axes = Axes((-0.5, len(pairs) - 0.5), around([v for pair in pairs for v in pair if v is not None]))
    size = 4.5 if len(pairs) <= CROWDED else 2.0
    drawn = []
    for i, (then, now) in enumerate(pairs):
        if then is None or now is None:
            continue
        x, colour = axes.x(i), COLOURS[1] if now < then else ACCENT
        title = tag("title", f"{i + 1}: {then:.1f} when learned, {now:.1f} at the end")
        line = tag("line", x1=x, x2=x, y1=axes.y(then), y2=axes.y(now), stroke=colour, stroke_width=size * 2 / 3)
        start = mark("circle", x, axes.y(then), colour, hollow=True, r=size)
        drawn.append(tag("g", title, line, start, mark("circle", x, axes.y(now), colour, r=size)))
    return axes.chart(label, "task", y_title, some_labels(numbers(len(pairs))), *drawn)


def columns(
    label: str, stacks: Sequence[Sequence[float]], names: Sequence[str], colours: Sequence[str],
    y_title: str, x_title: str, edges: bool = False,
) -> Html:  # fmt: skip
    """One stacked column per name, with one part per colour; with `edges`, the n + 1 names label the column edges."""
    top = max((sum(stack) for stack in stacks), default=0) or 1.0
    axes = Axes((-0.5, len(stacks) - 0.5), (0, top * 1.04), 250)
    width = (WIDTH - LEFT - RIGHT) / max(len(stacks), 1)
    gap = min(width * 0.2, 8) if not edges else min(width * 0.1, 1)
    drawn = []
    for i, stack in enumerate(stacks):
        base = 0.0
        for size, colour in zip(stack, colours, strict=True):
            y = axes.y(base + size)
            drawn.append(tag("rect", x=axes.x(i) - width / 2 + gap / 2, y=y, width=width - gap,
                             height=axes.y(base) - y, fill=colour) if size > 0 else None)  # fmt: skip
            base += size
    labels = [(at - 0.5 * edges, name) for at, name in some_labels(names, 6 if edges else 10)]
    return axes.chart(label, x_title, y_title, labels, *drawn)


def share_bar(label: str, parts: Sequence[tuple[str, float, str]]) -> Html:
    """One bar that is divided into (name, size, colour) parts in proportion to their sizes."""
    total, base, drawn = sum(size for _, size, _ in parts) or 1.0, 0.0, []
    for name, size, colour in parts:
        drawn.append(tag("rect", tag("title", name), x=base / total * 100, y="0", width=size / total * 100,
                         height="4", fill=colour))  # fmt: skip
        base += size
    return tag(
        "svg", *drawn, viewBox="0 0 100 4", preserveAspectRatio="none", role="img", aria_label=label, class_="bar"
    )


POINTS = {"front": (ACCENT, ACCENT, "#fff"), "pass": ("#d6ebf7", ACCENT, INK), "unknown": ("#fff", ACCENT, INK),
          "cannot tell": ("#fff4d6", "#8b949e", INK),
          "fail": ("#f1f3f5", "#8b949e", "#57606a"), "reference": ("#fff", INK, INK)}  # fmt: skip
"""The colours of each kind of point: fill, edge and text."""


def scatter(
    label: str, points: Sequence[Point], x_title: str, y_title: str, x_line: float | None, y_line: float | None
) -> Html:
    """Numbered points, in percent. Dashed lines mark the gate, and the region that passes it is shaded."""
    height = 380
    xs = [point.x for point in points] + ([] if x_line is None else [x_line])
    ys = [point.y for point in points] + ([] if y_line is None else [y_line])
    axes = Axes(around(xs), around(ys), height)
    left, top, right, bottom = LEFT, TOP, WIDTH - RIGHT, height - BOTTOM
    gate = []
    if x_line is not None:
        x = axes.x(x_line)
        low = bottom if y_line is None else axes.y(y_line)
        gate.append(tag("rect", x=x, y=top, width=right - x, height=low - top, class_="good"))
        gate.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="gate"))
    if y_line is not None:
        gate.append(tag("line", x1=left, x2=right, y1=axes.y(y_line), y2=axes.y(y_line), class_="gate"))
    drawn = []
    for point in points:
        x, y, text = axes.x(point.x), axes.y(point.y), POINTS[point.kind][2]
        title = tag("title", f"{point.number} {point.name}: old {point.x:.1f}, new {point.y:.1f}")
        number = tag("text", point.number, x=x, y=y + 4.5, text_anchor="middle", fill=text, class_="number")
        drawn.append(tag("g", title, _disc(point.kind, x, y, 11, stroke_width="1.5"), number))
    x_labels = [(value, short(value)) for value in ticks(*axes.x_range, 6)]
    return axes.chart(label, x_title, y_title, x_labels, *gate, *drawn)


def _disc(kind: str, x: float, y: float, r: int, **attributes: object) -> Html:
    """The circle of one kind of point."""
    fill, edge, _ = POINTS[kind]
    dashes = "3 2" if kind == "reference" else None
    return tag("circle", cx=x, cy=y, r=r, fill=fill, stroke=edge, stroke_dasharray=dashes, **attributes)


def legend(items: Sequence[tuple[str, str, str]]) -> Html:
    """A legend of (mark, colour, name); a mark is one of `mark`, "hollow", "line", "box" or a kind of point."""

    def sample(kind: str, colour: str) -> Html:
        if kind in POINTS:
            drawn = _disc(kind, 8, 8, 6)
        elif kind == "line":
            drawn = tag("path", d="M1,8H15", stroke=colour, stroke_width="2.5")
        elif kind == "box":
            drawn = tag("rect", x="2", y="2", width="12", height="12", fill=colour)
        else:
            drawn = mark("circle" if kind == "hollow" else kind, 8, 8, colour, kind == "hollow", 5)
        return tag("svg", drawn, viewBox="0 0 16 16", aria_hidden="true", class_="key")

    return tag("ul", *(tag("li", sample(kind, colour), join(name)) for kind, colour, name in items), class_="legend")
