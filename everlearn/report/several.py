"""The report of several runs: what each method reaches on old tasks and on new ones, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from everlearn.formats import duration, human_bytes, percent, ranged, short_count
from everlearn.judgement import Judged, above_joint, beside_joint, differences, front, judge, without_result
from everlearn.metrics.accuracy_matrix import mean
from everlearn.metrics.gate import Least
from everlearn.metrics.intervals import conclusion
from everlearn.report import figures
from everlearn.report.costs import ANSWER, PASSES, answer_per_task, stored_per_task
from everlearn.report.figures import COLOURS, GREY, INK, MARKS, Line, Point
from everlearn.report.markup import Html, figure, formula, join, section, table, tag
from everlearn.report.single import alarms, headline, hundred, matrices, verdict

Results = Mapping[str, Any]
SCORES = {"forgot": "forgetting_proper", "retention": "retention"}
"""The scores in the table of methods, by the short name of their column."""


def body(results: Sequence[Results], recommendation: str | None, least: Least) -> Html:
    """The sections of a comparison: the best final score first, failed and skipped methods last."""
    judged = sorted(judge(results, least), key=lambda one: -(one.final.mean if one.final else 0.0))
    absent = without_result(results)
    runs = [run for one in judged for run in one.runs]
    names = labels([one.runs[0] for one in judged])
    parts = [_other_data(judged), _above(results)]
    if recommendation:
        parts.append(section("recommendation", "Recommendation", tag("p", recommendation, class_="recommendation")))
    if judged:
        charts = tag(
            "div", *_scatters(judged, names, least), _curves(judged, names), *_growth(judged, names), class_="charts"
        )
        parts.append(section("methods", "Methods", _table(judged, names, least)))
        tested = [_seeds(judged, names), significance([one.runs[0] for one in judged], names)]
        if any(tested):
            parts.append(section("significance", "Is the difference more than chance?", *tested))
        parts.append(section("charts", "Old, new and scores over the tasks", charts))
    if absent:
        head = ["method", "status", "reason"]
        parts.append(section("absent", "Methods without a result", table("Methods without a result", head, absent, 3)))
    if runs:
        details = [
            _details(run, name, beside_joint(run, runs), least) for run, name in zip(runs, labels(runs), strict=True)
        ]
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


def _kinds(judged: Sequence[Judged]) -> list[str]:
    """The kind of each: its verdict at the gate, "front" (on the Pareto front of those that pass) or "reference"."""
    best = front(judged)
    return ["reference" if one.is_reference else "front" if one in best else one.verdict for one in judged]


def _other_data(judged: Sequence[Judged]) -> Html | None:
    """A warning where two methods have no data in common; the seeds of a method may each have their own."""
    data = [{(run.get("fingerprint"), run["metric"]) for run in one.runs} for one in judged]
    if all(a & b for a, b in combinations(data, 2)):
        return None
    text = "These runs learned different data (their fingerprints differ), so their results are not comparable."
    return tag("div", tag("strong", "Warning: "), text, class_="warning", role="alert")


def _above(results: Sequence[Results]) -> Html | None:
    warnings = above_joint(results)
    return (
        tag("div", tag("strong", "Warning: "), " ".join(warnings), class_="warning", role="alert") if warnings else None
    )


def _table(judged: Sequence[Judged], names: Sequence[str], least: Least) -> Html:
    rows = []
    for i, (one, name, kind) in enumerate(zip(judged, names, _kinds(judged), strict=True)):
        run = one.runs[0]
        leak = tag("span", "paper_compat: true", class_="alarm-word") if run.get("paper_compat") else None
        star = tag("span", " ◆", class_="front") if kind == "front" else None
        seeds = {"seeds": len(one.runs)} if any(len(other.runs) > 1 for other in judged) else {}
        rows.append({
            "#": i + 1,
            "method": join(tag("strong", name), leak, star),
            "gate": one.at_the_gate if one.is_reference else verdict(one.verdict),
            **seeds,
            "final": ranged(one.final), "old": ranged(one.old), "new": ranged(one.new),
            **{short: percent(over.mean if (over := one.over(key)) else None) for short, key in SCORES.items()},
            "general": percent(one.general.mean if one.general else None),
            "time": duration(sum(r["seconds"]["total"] for r in one.runs) / len(one.runs)),
            "stored": human_bytes(run["stored_bytes"]),
            "ms": _last(answer_per_task(run, "milliseconds")),
            "trained": short_count(run["trainable_parameters"]),
            "encoded": f"{run['examples_encoded']:,}",
        })  # fmt: skip
    explained = {"final": "final_accuracy", "old": "old", "new": "new", **SCORES, "general": "general", "gate": "gate"}
    formulas = [tag("li", tag("strong", short), " ", formula(key)) for short, key in explained.items()]
    asked = f"Gate: {100 * least[0]:g} % of joint's score on old tasks and {100 * least[1]:g} % on the newest one"
    note = (
        f"Scores: {judged[0].runs[0]['metric']} in %, best final score first; ± 95 % interval over seeds. Old and "
        f"new: in % of joint's. {asked}. ◆: "
        "on the Pareto front of old, new and time. Ms: milliseconds of one answer at the end, without the encoding "
        "of features that the feature store keeps. Trained: number of trained parameters. Encoded: number of encoded "
        "examples."
    )
    shown = table("All methods", list(rows[0]), [list(row.values()) for row in rows], text=3)
    return join(shown, tag("p", note, class_="note"), tag("ul", *formulas, class_="formulas"))


def _seeds(judged: Sequence[Judged], names: Sequence[str]) -> Html | None:
    """Each method beside the first, seed by seed; None where that cannot be asked."""
    rows = [
        [names[i], _points(gap.mean), f"{_points(gap.low)} to {_points(gap.high)}", conclusion(gap)]
        for i, gap in differences(judged, judged[0]).items()
        if gap.half is not None
    ]
    note = (f"Final score on the tests: each method less {names[0]}, in points, in pairs of runs with the same seed "
            "and data, with the 95 % interval of Student's t. Cannot tell: the interval holds 0.")  # fmt: skip
    head = ["method", "difference", "interval", f"at least as good as {names[0]}"]
    return join(table("Differences over seeds", head, rows), tag("p", note, class_="note")) if rows else None


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


def _scatters(judged: Sequence[Judged], names: Sequence[str], least: Least) -> list[Html]:
    """Old and new of all methods beside joint, and an enlarged chart without those that fail the gate."""
    kinds = _kinds(judged)
    points = [
        Point(i + 1, names[i], 100 * one.old.mean, 100 * one.new.mean, kinds[i])
        for i, one in enumerate(judged)
        if one.old and one.new
    ]
    if not points:
        return []
    # The most important points are drawn last, so that they lie on top.
    points.sort(key=lambda point: ("fail", "reference", "unknown", "cannot tell", "pass", "front").index(point.kind))
    meaning = {
        "front": "on the Pareto front of old, new and time among the methods that pass the gate",
        "pass": "passes the gate",
        "cannot tell": "the seeds cannot tell",
        "unknown": "gate unknown",
        "fail": "fails the gate",
        "reference": "joint: retraining on all data",
    }

    def drawn(name: str, title: str, shown: Sequence[Point], lines: tuple[float | None, float | None]) -> Html:
        titles = "score on old tasks, % of joint's", "score on the newest task, % of joint's"
        chart = figures.scatter(title, shown, *titles, *lines)
        keys = figures.legend([(kind, "", meaning[kind]) for kind in meaning if any(p.kind == kind for p in shown)])
        told = "" if lines[0] is None else " The dashed lines show the gate."
        return figure(name, title, chart, keys, note=f"The numbers refer to the rows of the table.{told}")

    close = [point for point in points if point.kind != "fail"]
    charts = [drawn("pareto", "Old and new", points, (100 * least[0], 100 * least[1]))]
    if 1 < len(close) < len(points):
        charts.append(drawn("pareto-close", "Old and new without the methods that fail", close, (None, None)))
    return charts


def _last(values: Sequence[float | None]) -> str:
    return percent(None) if not values or values[-1] is None else f"{values[-1]:.3g}"


def _curves(judged: Sequence[Judged], names: Sequence[str]) -> Html:
    curves = [hundred(mean(scores) for scores in zip(*(run["curve"] for run in one.runs), strict=True))
              for one in judged]  # fmt: skip
    lines, keys = _lines(judged, names, curves)
    label = "score over all seen tasks, after each task, for every method"
    drawn = figures.line_chart(label, lines, f"{judged[0].runs[0]['metric']} over all seen, %")
    return figure("curves", "Score over all seen tasks, after each task", drawn, figures.legend(keys))


def _growth(judged: Sequence[Judged], names: Sequence[str]) -> list[Html]:
    """What each method stores after each task, and what an answer costs then, in the first seed: what an ensemble adds
    can be seen."""
    charts, runs = [], [one.runs[0] for one in judged]
    for name, title, unit, values in (
        ("stored", "Stored after each task", "MiB", [stored_per_task(run) for run in runs]),
        ("milliseconds", ANSWER, "milliseconds", [answer_per_task(run, "milliseconds") for run in runs]),
        ("passes", PASSES, "passes", [answer_per_task(run, "encoder_passes") for run in runs]),
    ):
        if max(map(len, values)) > 1:
            lines, keys = _lines(judged, names, values)
            drawn = figures.line_chart(title, lines, unit, from_zero=True)
            charts.append(figure(f"growth-{name}", title, drawn, figures.legend(keys)))
    return charts


def _lines(
    judged: Sequence[Judged], names: Sequence[str], values_of_all: Sequence[Sequence[float | None]]
) -> tuple[list[Line], list[tuple[str, str, str]]]:
    """A line for each method, the first on top, and the entries of the legend."""
    lines: list[Line] = []
    keys = []
    shown = 0
    for i, (one, values) in enumerate(zip(judged, values_of_all, strict=True)):
        if one.is_reference:
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


def _details(run: Results, name: str, beside: tuple[float | None, float | None], least: Least) -> Html:
    about = f"final {percent(run['final_accuracy'])} %, {duration(run['seconds']['total'])}"
    summary = tag("summary", tag("strong", name), f": {about}")
    return tag("details", summary, alarms(run), headline(run, beside, least), matrices(run, name=None), class_="run")
