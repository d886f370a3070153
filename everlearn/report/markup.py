"""HTML that is safe by default: everything that is not of type `Html` is escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

from everlearn.metrics import FORMULAS

VOID = {"br", "link", "meta"}


class Html(str):
    """Text that is already HTML markup. Only `tag`, `join` and `formula` should create it."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An HTML element. Text is escaped and None is omitted; `class_` becomes class, `stroke_width` stroke-width.

    >>> tag("td", "a < b", class_="n", aria_label=None)
    '<td class="n">a &lt; b</td>'
    """
    opened = name
    for key, value in attributes.items():
        if value is not None:
            opened += f' {key.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"'
    return Html(f"<{opened}>" if name in VOID else f"<{opened}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """The children in order; text that is not markup is escaped, and None is omitted.

    >>> join(tag("b", "x"), "&", None)
    '<b>x</b>&amp;'
    """
    parts = (child if isinstance(child, Html) else html.escape(str(child)) for child in children if child is not None)
    return Html("".join(parts))


def _attribute(value: object) -> str:
    """The text of an attribute; floats are rounded to two decimals, which is enough for coordinates."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def formula(name: str) -> Html:
    """The formula of a metric, with its subscripts typeset.

    >>> formula("gain")
    '<span class="formula">mean<sub>j&gt;1</sub> R<sub>j,j</sub></span>'
    """
    typeset = re.sub(r"_\{(.*?)\}", r"<sub>\1</sub>", html.escape(FORMULAS[name]))
    return tag("span", Html(typeset), class_="formula")


def section(name: str, title: str, *body: object) -> Html:
    """A page section with a heading; `name` is the id of the heading."""
    return tag("section", tag("h2", title, id=name), *body, aria_labelledby=name)


def figure(name: str | None, title: object, *body: object, note: object = None) -> Html:
    """A chart with its title above and a note below; its id is `fig-` and `name`."""
    below = tag("p", note, class_="note") if note else None
    return tag("figure", tag("figcaption", title), *body, below, id=f"fig-{name}" if name else None)


def scroll(label: str, *body: object) -> Html:
    """A box with its own horizontal scrolling, also by keyboard, so that the page itself never scrolls sideways."""
    return tag("div", *body, class_="scroll", role="region", tabindex="0", aria_label=label)


def table(label: str, head: Sequence[object], rows: Iterable[Sequence[object]], text: int = 1) -> Html:
    """A table in its own scroll box; the first `text` columns contain text, the others numbers."""

    def cells(kind: str, row: Sequence[object], **attributes: object) -> Html:
        made = (tag(kind, cell, class_=None if i < text else "n", **attributes) for i, cell in enumerate(row))
        return tag("tr", *made)

    body = tag("tbody", *(cells("td", row) for row in rows))
    return scroll(label, tag("table", tag("thead", cells("th", head, scope="col")), body))


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values, one pair per line."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))
