"""The HTML page of a report: head, style, title and footer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any

from everlearn.judgement import judge
from everlearn.metrics.gate import Least
from everlearn.report import heatmap, several, single
from everlearn.report.markup import Html, join, tag

# This policy forbids the browser to fetch or to run anything, whatever a class name contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(results: Sequence[Mapping[str, Any]], recommendation: str | None, least: Least) -> str:
    """A single finished run is shown in full; everything else is shown as a comparison."""
    if len(results) == 1 and "final_accuracy" in results[0]:
        run = results[0]
        title, about, body = f"{run['method']} on {run['stream']}", _about(run), single.body(run)
    else:
        runs = [r for r in results if "final_accuracy" in r]
        streams = list(dict.fromkeys(str(r["stream"]) for r in runs))
        absent = {r["method"] for r in results if "final_accuracy" not in r}
        methods = len(judge(results)) + len(absent - {r["method"] for r in runs})
        count = f"{methods} methods" if len({r["method"] for r in results}) > 1 else f"{len(results)} runs"
        title = f"{count} on {', '.join(streams)}" if streams else "No run finished"
        about, body = _about(runs[0]) if runs else join(), several.body(results, recommendation, least)
    style = resources.files("everlearn.report").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"{title} · everlearn"),
        tag("link", rel="icon", href="data:,"),
        # Our own style sheet is not escaped: quotes and > belong to its CSS.
        tag("style", Html(style + heatmap.style())),
    )
    header = tag("header", tag("p", "everlearn", class_="brand"), tag("h1", title), about)
    footer = tag("footer", f"Written by everlearn {version('everlearn')}.")
    return f"<!doctype html>\n{tag('html', head, tag('body', header, tag('main', body), footer), lang='en')}\n"


def _about(run: Mapping[str, Any]) -> Html:
    tasks = len(run["tasks"])
    facts = [run["kind"], run["input"], run["goal"], f"{tasks} task{'s' if tasks > 1 else ''}",
             f"backbone {run['backbone']}", f"seed {run['seed']}", run["environment"].get("date")]  # fmt: skip
    return tag("p", " · ".join(str(fact) for fact in facts if fact is not None), class_="about")
