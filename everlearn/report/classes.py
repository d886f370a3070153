"""The scores of each class, worst first, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.formats import percent
from everlearn.metrics.per_class import worst
from everlearn.report.heatmap import SHADES
from everlearn.report.markup import Html, figure, formula, join, scroll, table, tag

OPEN = 20
"""Classes that are shown at once; the others are behind a click."""

DRAWN = 20
"""Classes up to which the confusion matrix is drawn; with more it is unreadable, and the pairs say it better."""


def classes(run: Mapping[str, Any]) -> Html:
    """The table of classes, the confusion matrix where it can be read, and the most frequent confusions."""
    scores, confused = worst(run["per_class"]), run.get("confusion") or {"pairs": [], "matrix": None}
    first, rest = scores[:OPEN], scores[OPEN:]
    others = tag("details", tag("summary", f"the other {len(rest)} classes"), _scores("Other classes", rest))
    drawn = confused["matrix"] and len(confused["matrix"]) <= DRAWN
    keys = [join(f"{name}: ", formula(name), ". ") for name in ("recall", "precision", "f1")]
    return join(
        _scores("Classes, lowest recall first", first),
        others if rest else None,
        tag("p", "After the last task, over the tests of all tasks, in %. ", *keys, class_="note"),
        figure("confusion", "Test examples of the class of the row, by the predicted class of the column",
               _matrix([score["name"] for score in run["per_class"]], confused["matrix"])) if drawn else None,
        _pairs(confused["pairs"]) if confused["pairs"] else None,
    )  # fmt: skip


def _scores(label: str, scores: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        [tag("bdi", score["name"]), *(percent(score[name]) for name in ("recall", "precision", "f1")),
         f"{score['examples']:,}", tag("bdi", score["confused_with"] or "")]
        for score in scores
    ]  # fmt: skip
    return table(label, ["class", "recall", "precision", "F1", "test examples", "most often taken for"], rows)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Html:
    rows = [[tag("bdi", p["true"]), tag("bdi", p["predicted"]), f"{p['examples']:,}"] for p in pairs]
    listed = table("Most frequent confusions", ["class", "predicted as", "test examples"], rows, text=2)
    return tag("details", tag("summary", f"the {len(pairs)} most frequent confusions"), listed)


def _matrix(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> Html:
    def cell(count: int, total: int) -> Html:
        shade = min(int(count / total * SHADES), SHADES - 1) if total else 0
        return tag("td", f"{count:,}", class_=f"h{shade}") if count else tag("td")

    heads = (tag("th", f"{i} ", tag("bdi", name), scope="row", title=name) for i, name in enumerate(names, start=1))
    rows = [tag("tr", head, *(cell(n, sum(row)) for n in row)) for head, row in zip(heads, matrix, strict=True)]
    tops = [tag("th", str(j + 1), scope="col", title=name) for j, name in enumerate(names)]
    head = tag("thead", tag("tr", tag("th", "class \\ predicted", scope="col"), *tops))
    size = "heat" if len(names) <= 12 else "heat dense"
    return scroll("Confusion matrix", tag("table", head, tag("tbody", *rows), class_=size))
