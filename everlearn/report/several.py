"""The report of several runs: the retention, the gain and the costs of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.console import duration, human_bytes, percent, short_count
from everlearn.metrics import own_seconds, pareto_front, passes
from everlearn.metrics.accuracy_matrix import mean
from everlearn.metrics.gate import GAIN_OF_REFERENCE, RETENTION
from everlearn.report import figures
from everlearn.report.costs import ANSWER, PASSES, answer_per_task, stored_per_task
from everlearn.report.figures import COLOURS, GREY, INK, MARKS, Line, Point
from everlearn.report.markup import Html, figure, formula, join, section, table, tag
from everlearn.report.single import alarms, headline, hundred, matrices, verdict

Results = Mapping[str, Any]
REFERENCE = "joint"
SCORES = {"final": "final_accuracy", "retention": "retention", "gain": "gain", "average": "average_accuracy",
          "forgetting": "forgetting"}  # fmt: skip
"""The scores in the table of methods, by the short name of their column."""


def body(results: Sequence[Results], recommendation: str | None) -> Html:
    """The sections of a comparison: the best final score first, failed and skipped methods last."""
    runs = sorted((r for r in results if "final_accuracy" in r), key=lambda r: -(r["final_accuracy"] or 0.0))
    absent = [r for r in results if "final_accuracy" not in r]
    names = labels(runs)
    parts = [_differences(runs)]
    if recommendation:
        parts.append(section("recommendation", "Recommendation", tag("p", recommendation, class_="recommendation")))
    if runs:
        charts = tag("div", *_scatters(runs, names), _curves(runs, names), *_growth(runs, names), class_="charts")
        parts.append(section("methods", "Methods", _table(runs, names)))
        if tested := significance(runs, names):
            parts.append(section("significance", "Is the difference more than chance?", tested))
        parts.append(section("charts", "Retention, gain and scores over the tasks", charts))
    if absent:
        parts.append(section("absent", "Methods without a result", _absent(absent)))
    if runs:
        details = [_details(run, name, reference_gain(run, runs)) for run, name in zip(runs, names, strict=True)]
        parts.append(section("runs", "Each run", *details))
    return join(*parts)


def labels(runs: Sequence[Results]) -> list[str]:
    """A distinct name for each run: its method and, where needed, its stream, backbone or seed.

    >>> labels([{"method": "l2p", "seed": 0}, {"method": "l2p", "seed": 1}])
    ['l2p, seed 0', 'l2p, seed 1']
    """
    names = [str(run["method"]) for run in runs]
    for key in ("stream", "backbone", "seed"):
        if len({str(run.get(key)) for run in runs}) > 1 and len(set(names)) < len(names):
            prefix = "seed " if key == "seed" else ""
            names = [f"{name}, {prefix}{run.get(key)}" for name, run in zip(names, runs, strict=True)]
    return [f"{n} ({names[: i + 1].count(n)})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def reference_gain(run: Results, runs: Sequence[Results]) -> float | None:
    """The mean gain of the runs of `joint` on the same data and backbone; None if there is no such run."""
    return mean(r["gain"] for r in runs if r["method"] == REFERENCE and _same_data(r, run))


def _same_data(a: Results, b: Results) -> bool:
    return (a.get("fingerprint"), a.get("backbone")) == (b.get("fingerprint"), b.get("backbone"))


def _kinds(runs: Sequence[Results]) -> list[str]:
    """The kind of each run: its verdict at the gate, "front" (on the Pareto front) or "reference".

    The front consists of the runs that pass the gate. Without a run of `joint` no run can pass; then the
    front consists of the runs whose verdict is unknown.
    """
    kinds: list[str] = [passes(r["retention"], r["gain"], reference_gain(r, runs)) for r in runs]
    kinds = ["reference" if r["method"] == REFERENCE else kind for r, kind in zip(runs, kinds, strict=True)]
    wanted = "pass" if any(reference_gain(r, runs) is not None for r in runs) else "unknown"
    good = [i for i, r in enumerate(runs) if kinds[i] == wanted and None not in (r["retention"], r["gain"])]
    for k in pareto_front([(runs[i]["retention"], runs[i]["gain"], -own_seconds(runs[i])) for i in good]):
        kinds[good[k]] = "front"
    return kinds


def _differences(runs: Sequence[Results]) -> Html | None:
    if len({(r.get("fingerprint"), r["metric"]) for r in runs}) < 2:
        return None
    text = "These runs learned different data (their fingerprints differ), so their results are not comparable."
    return tag("div", tag("strong", "Warning: "), text, class_="warning", role="alert")


def _table(runs: Sequence[Results], names: Sequence[str]) -> Html:
    rows = []
    for i, (run, name, kind) in enumerate(zip(runs, names, _kinds(runs), strict=True)):
        leak = tag("span", "paper_compat: true", class_="alarm-word") if run.get("paper_compat") else None
        star = tag("span", " ◆", class_="front") if kind == "front" else None
        rows.append({
            "#": i + 1,
            "method": join(tag("strong", name), leak, star),
            "gate": verdict(passes(run["retention"], run["gain"], reference_gain(run, runs))),
            **{short: percent(run[key]) for short, key in SCORES.items()},
            "time": duration(run["seconds"]["total"]),
            "stored": human_bytes(run["stored_bytes"]),
            "ms": _last(answer_per_task(run, "milliseconds")),
            "passes": _last(answer_per_task(run, "encoder_passes")),
            "trained": short_count(run["trainable_parameters"]),
            "encoded": f"{run['examples_encoded']:,}",
        })  # fmt: skip
    explained = {**SCORES, "gate": "gate"}
    formulas = [tag("li", tag("strong", short), " ", formula(key)) for short, key in explained.items()]
    note = (
        f"Scores: {runs[0]['metric']} in %, best final score first. ◆: on the Pareto front of retention, gain and "
        "time. Ms and passes: milliseconds of one answer at the end, without the encoding of features that the feature "
        "store keeps, and passes of an encoder for it. Trained: number of trained parameters. Encoded: number of "
        "encoded examples."
    )
    shown = table("All methods", list(rows[0]), [list(row.values()) for row in rows], text=3)
    return join(shown, tag("p", note, class_="note"), tag("ul", *formulas, class_="formulas"))


def significance(runs: Sequence[Results], names: Sequence[str]) -> Html | None:
    """Each run against the first, on the same test queries; None where that cannot be asked."""
    scores = [_per_query(run) for run in runs]
    same = [i for i, found in enumerate(scores) if found and found.keys() == scores[0].keys()]
    if len(same) < 2 or same[0] != 0 or len({runs[i].get("fingerprint") for i in same}) > 1:
        return None
    from everlearn.metrics.significance import compare_scores, holm

    first = list(scores[0].values())
    compared = [compare_scores(first, list(scores[i].values())) for i in same[1:]]
    rows = [
        [names[i], _points(found.difference), f"{_points(found.low)} to {_points(found.high)}", f"{p:.3g}"]
        for i, found, p in zip(same[1:], compared, holm([found.p for found in compared]), strict=True)
    ]
    note = (f"nDCG@10 of {len(first):,} test queries at the end: each run less {names[0]}, in points, with the 95 % "
            "bootstrap interval; p of a paired randomisation test, with Holm's correction.")  # fmt: skip
    return join(table("Differences", ["run", "difference", "interval", "p"], rows), tag("p", note, class_="note"))


def _per_query(run: Results) -> dict[tuple[str, str], float]:
    """The score at the end of every test query, by its domain and name; empty where the goal is not ranking."""
    tasks = (run.get("retrieval") or {}).get("queries", [])
    return {
        (task["task"], id): score for task in tasks for id, score in zip(task["ids"], task["at_the_end"], strict=True)
    }


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _scatters(runs: Sequence[Results], names: Sequence[str]) -> list[Html]:
    """Retention and gain of all runs, and an enlarged chart without the runs that fail the gate."""
    kinds = _kinds(runs)
    points = [
        Point(i + 1, names[i], 100 * run["retention"], 100 * run["gain"], kinds[i])
        for i, run in enumerate(runs)
        if run["retention"] is not None and run["gain"] is not None
    ]
    if not points:
        return []
    # The most important points are drawn last, so that they lie on top.
    points.sort(key=lambda point: ("fail", "reference", "unknown", "pass", "front").index(point.kind))
    gains = {gain for run in runs if (gain := reference_gain(run, runs)) is not None}
    gate = 100 * GAIN_OF_REFERENCE * min(gains) if len(gains) == 1 else None
    who = "that pass the gate" if gains else "with sufficient retention (joint was not run)"
    meaning = {
        "front": f"on the Pareto front of retention, gain and time among the runs {who}",
        "pass": "passes the gate",
        "unknown": "gate unknown",
        "fail": "fails the gate",
        "reference": "joint: retraining on all data",
    }

    def drawn(name: str, title: str, shown: Sequence[Point], x_line: float | None, y_line: float | None) -> Html:
        y_title = f"gain: {runs[0]['metric']} on new tasks, %"
        chart = figures.scatter(title, shown, "retention, %", y_title, x_line, y_line)
        keys = figures.legend([(kind, "", meaning[kind]) for kind in meaning if any(p.kind == kind for p in shown)])
        lines = "" if x_line is None else " The dashed lines show the gate."
        return figure(name, title, chart, keys, note=f"The numbers refer to the rows of the table.{lines}")

    close = [point for point in points if point.kind != "fail"]
    charts = [drawn("pareto", "Retention and gain", points, 100 * RETENTION, gate)]
    if 1 < len(close) < len(points):
        charts.append(drawn("pareto-close", "Retention and gain without the runs that fail", close, None, None))
    return charts


def _last(values: Sequence[float | None]) -> str:
    return percent(None) if not values or values[-1] is None else f"{values[-1]:.3g}"


def _curves(runs: Sequence[Results], names: Sequence[str]) -> Html:
    lines, keys = _lines(runs, names, [hundred(run["curve"]) for run in runs])
    label = "score over all seen tasks, after each task, for every method"
    drawn = figures.line_chart(label, lines, f"{runs[0]['metric']} over all seen, %")
    return figure("curves", "Score over all seen tasks, after each task", drawn, figures.legend(keys))


def _growth(runs: Sequence[Results], names: Sequence[str]) -> list[Html]:
    """What each method stores after each task, and what an answer costs then: what an ensemble adds can be seen."""
    charts = []
    for name, title, unit, values in (
        ("stored", "Stored after each task", "MiB", [stored_per_task(run) for run in runs]),
        ("milliseconds", ANSWER, "milliseconds", [answer_per_task(run, "milliseconds") for run in runs]),
        ("passes", PASSES, "passes", [answer_per_task(run, "encoder_passes") for run in runs]),
    ):
        if max(map(len, values)) > 1:
            lines, keys = _lines(runs, names, values)
            drawn = figures.line_chart(title, lines, unit, from_zero=True)
            charts.append(figure(f"growth-{name}", title, drawn, figures.legend(keys)))
    return charts


def _lines(
    runs: Sequence[Results], names: Sequence[str], values_of_all: Sequence[Sequence[float | None]]
) -> tuple[list[Line], list[tuple[str, str, str]]]:
    """A line for each run, the first on top, and the entries of the legend."""
    lines: list[Line] = []
    keys = []
    shown = 0
    for i, (run, values) in enumerate(zip(runs, values_of_all, strict=True)):
        if run["method"] == REFERENCE:
            line = Line(names[i], values, INK, None, 2, "5 4")
            keys.append(("line", INK, f"{i + 1} {names[i]} (dashed)"))
        elif shown < len(COLOURS):
            line = Line(names[i], values, COLOURS[shown], MARKS[shown % len(MARKS)], 2)
            keys.append((line.mark or "line", line.colour, f"{i + 1} {names[i]}"))
            shown += 1
        else:
            line = Line(names[i], values, GREY, None, 1.2)
        lines.append(line)
    if any(line.colour == GREY for line in lines):
        keys.append(("line", GREY, "other methods"))
    return lines[::-1], keys


def _absent(results: Sequence[Results]) -> Html:
    rows = []
    for r in results:
        word, reason = ("failed", r["error"]) if "error" in r else ("skipped", r["skipped"])
        rows.append([r["method"], word, reason])
    return table("Methods without a result", ["method", "status", "reason"], rows, text=3)


def _details(run: Results, name: str, reference: float | None) -> Html:
    about = f"final {percent(run['final_accuracy'])} %, {duration(run['seconds']['total'])}"
    summary = tag("summary", tag("strong", name), f": {about}")
    return tag("details", summary, alarms(run), headline(run, reference), matrices(run, name=None), class_="run")
