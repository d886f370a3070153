"""The report of one run: the scores on old tasks and on the newest one first, then the details."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from everlearn.formats import percent
from everlearn.judgement import beside_joint_command, scores_on_old_and_new
from everlearn.metrics import FORMULAS, passes
from everlearn.metrics.accuracy_matrix import mean
from everlearn.metrics.gate import NEW, OLD, Least
from everlearn.report import figures
from everlearn.report.classes import classes
from everlearn.report.costs import costs
from everlearn.report.diagnostics import diagnostics
from everlearn.report.figures import ACCENT, COLOURS, GREY, INK, Line
from everlearn.report.heatmap import heatmap
from everlearn.report.markup import Html, facts, figure, formula, join, scroll, section, table, tag
from everlearn.report.reliability import reliability
from everlearn.report.retrieval import retrieval

Results = Mapping[str, Any]
"""The content of results.json."""

FIGURES = {
    "final_accuracy": ("Final {}", "over the tests of all tasks, after the last task"),
    "average_accuracy": ("Average {}", "mean of the scores over all seen tasks, one score after each task"),
    "forgetting": ("Forgetting", "mean drop of each old task from its best score; lower is better"),
    "retention": ("Retention", "score on old tasks at the end ÷ when they were learned"),
    "gain": ("Gain", "mean score on each new task, just after it was learned"),
    "backward_transfer": ("Backward transfer", "mean change of the score on old tasks since they were learned"),
    "forward_transfer": ("Forward transfer", "how much earlier tasks raised the score on a task before it was learned"),
}
SIGNS = {"pass": "✓", "fail": "✗", "cannot tell": "≈", "unknown": "?"}


def body(run: Results) -> Html:
    """The sections of one run, in reading order."""
    return join(
        alarms(run),
        section("pair", "Old and new", headline(run)),
        section("figures", "Metrics", _figures(run), _symbols(run)),
        section("matrix", f"{_title(run)} matrix", matrices(run)),
        section("tasks-over-time", "Scores over the tasks", _curves(run)) if len(run["tasks"]) > 1 else None,
        section("classes", "Classes", classes(run)) if run.get("per_class") else None,
        section("calibration", "Probabilities", reliability(run["calibration"])) if run.get("calibration") else None,
        section("retrieval", "Queries and indexes, old and new", retrieval(run)) if run.get("retrieval") else None,
        section("zero-shot", "Classes not learned yet", _zero_shot(run)) if run.get("zero_shot") else None,
        section("general", "General ability", _general(run)) if run.get("general") else None,
        section("costs", "Costs", costs(run)),
        section("tasks", "Tasks", _tasks(run)),
        section("diagnostics", "Diagnostics", diagnostics(run["diagnostics"])) if run.get("diagnostics") else None,
        section("made", "Configuration and environment", _made(run)),
    )


def verdict(kind: str) -> Html:
    """The verdict (pass, fail, cannot tell or unknown) as a symbol, a word and a colour."""
    return tag("span", tag("span", SIGNS[kind], aria_hidden="true"), f" {kind}", class_=f"verdict {kind}")


def alarms(run: Results) -> Html:
    """What the reader must see first: an evaluation that leaks information, warnings, and notes on the stream."""
    leak = (
        ". This run uses a published shortcut in which a prediction depends on more than its own example. "
        "Do not compare these results with those of runs without it."
    )
    alarm = tag("p", tag("strong", "paper_compat: true"), leak, class_="alarm", role="alert")
    lists = _list("warning", "Warnings", run.get("warnings")), _list("note-box", "Notes", run.get("notes"))
    return join(alarm if run.get("paper_compat") else None, *lists)


def _list(kind: str, title: str, items: Sequence[str] | None) -> Html | None:
    return tag("div", tag("strong", title), tag("ul", *(tag("li", x) for x in items)), class_=kind) if items else None


def headline(run: Results, beside: tuple[float | None, float | None] = (None, None), least: Least = (OLD, NEW)) -> Html:
    """The scores on old tasks and on the newest one, whether they pass the gate, and forgetting proper.

    Args:
        beside: both scores ÷ those of joint, as `everlearn.judgement.beside_joint` gives them.
        least: what the gate asks for of them.
    """
    old, new = scores_on_old_and_new(run)
    wanted = f"{100 * least[0]:g} % of joint's score on old tasks and {100 * least[1]:g} % on the newest one"
    if old is None:
        reason = "A single task leaves no old task; the gate needs at least two tasks."
    elif None in beside:
        reason = (f"The gate asks for {wanted}. Run the method joint (retraining on all data) on the same stream to "
                  f"know them: {beside_joint_command(run)}")  # fmt: skip
    else:
        reason = (f"{percent(beside[0])} % of joint's score on old tasks, {percent(beside[1])} % on the newest one; "
                  f"the gate asks for {wanted}.")  # fmt: skip
    marks = [part and least[i] * score / part if score else None
             for i, (score, part) in enumerate(zip((old, new), beside, strict=True))]  # fmt: skip
    dropped = run.get("forgetting_proper")
    told = "mean drop of old tasks over the classes known when each was learned; lower is better"
    if "forgetting_proper" not in run:
        told = "not measured: the version of everlearn that made this run did not know it"
    cards = [
        _big("Old", old, f"{run['metric']} on old tasks, after the last task", "old", marks[0]),
        _big("New", new, f"{run['metric']} on the newest task", "new", marks[1]),
        _card("Forgetting proper", told, "forgetting_proper", tag("p", _signed("forgetting", dropped), class_="value")),
    ]
    badge = tag("span", "Gate: ", verdict(passes(*beside, least)), class_="badge")
    line = tag("p", badge, " ", reason, _own_pair(run, beside[1]), class_="gate-line")
    return tag("div", tag("div", *cards, class_="pair"), line, tag("p", "The gate: ", formula("gate"), class_="note"))


def _own_pair(run: Results, reached: float | None) -> str | None:
    """Where a stream has two steps, old data and then new data: the old model on old data, full training on new."""
    if len(run["tasks"]) != 2:
        return None
    (then, _), (now, new) = run["accuracy_matrix"]
    full = f", and full training {percent(new / reached)} %" if reached and new else ""
    return (f" Old data: the old model had {percent(then)} %, now it is {percent(now)} %. New data: {percent(new)} %"
            f"{full}.")  # fmt: skip


def _big(name: str, value: float | None, what: str, key: str, threshold: float | None) -> Html:
    width = 100 * min(max(value or 0.0, 0.0), 1.0)
    mark = tag("b", style=f"left:{100 * min(threshold, 1.0):.0f}%") if threshold else None
    number = tag("p", percent(value), tag("small", " %") if value is not None else None, class_="big")
    meter = tag("div", tag("i", style=f"width:{width:.1f}%"), mark, class_="meter", aria_hidden="true")
    return _card(name, what, key, number, meter)


def _card(title: str, what: str, key: str, *value: Html) -> Html:
    return tag("div", tag("h3", title), *value, tag("p", what), formula(key), class_="card")


def _figures(run: Results) -> Html:
    cards = [
        _card(title.format(run["metric"]), what, key, tag("p", _signed(key, run[key]), class_="value"))
        for key, (title, what) in FIGURES.items()
    ]
    return tag("div", *cards, class_="cards")


def _signed(key: str, value: float | None) -> str:
    if value is None:
        return percent(None)
    if key.endswith("transfer"):
        return f"{100 * value:+.1f} points".replace("-", "\N{MINUS SIGN}")
    return f"{percent(value)} points" if key == "forgetting" else f"{percent(value)} %"


def _symbols(run: Results) -> Html:
    subscripts = {"R": "i,j", "n": "j", "K": "j", "A": "i"}
    r, n, k, a = (join(name, tag("sub", sub)) for name, sub in subscripts.items())
    return tag(
        "p", r, f": {run['metric']} on the tests of task j after learning task i (i = 0: before any learning); ",
        n, ": test examples of task j; ", k, ": score on task j after the last task, where the answer is chosen among "
        "the classes known after task j; ", a, ": score over all seen tasks, ", formula("curve"),
        "; T: number of tasks.",
        join(" nDCG@10: ", formula("nDCG@10"), ".") if run["metric"] == "nDCG@10" else None, class_="note",
    )  # fmt: skip


def _title(run: Results) -> str:
    return "Accuracy" if run["metric"] == "accuracy" else run["metric"]


def matrices(run: Results, name: str | None = "matrix") -> Html:
    """The accuracy matrix, and the matrices of all other metrics."""
    names = [task["name"] for task in run["tasks"]]
    title: object = f"{_title(run)} in % after learning the task of the row, on the tests of the task of the column"
    shown = [figure(name, title, heatmap(run["metric"], run["accuracy_matrix"], run["curve"], names))]
    for metric, matrix in run.get("other_matrices", {}).items():
        title = join(f"{metric} in %", *([": ", formula(metric)] if metric in FORMULAS else []))
        place = f"matrix-{metric.partition('@')[0]}" if name else None
        shown.append(figure(place, title, heatmap(metric, matrix, None, names)))
    return join(*shown)


def _curves(run: Results) -> Html:
    matrix, count = run["accuracy_matrix"], len(run["tasks"])
    unit = f"{run['metric']}, %"
    columns = zip(run["tasks"], zip(*matrix, strict=True), strict=True)
    per_task = [Line(task["name"], hundred(column), GREY, None, 1.2) for task, column in columns]
    seen = Line("all seen tasks", hundred(run["curve"]), ACCENT)
    chart = figures.line_chart(f"{run['metric']} over all seen tasks, after each task", [*per_task, seen], unit)
    keys = figures.legend([("circle", ACCENT, "all seen tasks"), ("line", GREY, "each single task")])
    curve = figure("curve", "Score over all seen tasks, after each task", chart, keys)
    old = Line("old tasks", hundred(mean(row[:i]) for i, row in enumerate(matrix)), COLOURS[1], "square")
    new = Line("new task", [None, *hundred(matrix[i][i] for i in range(1, count))], ACCENT)
    chart = figures.line_chart(f"{run['metric']} on old tasks and on the new task", [old, new], unit)
    keys = figures.legend([("square", COLOURS[1], "old tasks, mean"), ("circle", ACCENT, "the new task")])
    pair = figure("old-new", "Scores on old tasks and on the new task, after each task", chart, keys)
    pairs = list(zip(hundred(matrix[j][j] for j in range(count)), hundred(matrix[-1]), strict=True))
    chart = figures.then_and_now(f"{run['metric']} on each task when learned and at the end", pairs, unit)
    ends = [("circle", ACCENT, "at the end, not lower"), ("circle", COLOURS[1], "at the end, lower")]
    keys = figures.legend([("hollow", INK, "when learned"), *ends])
    then = figure("then-now", "Score of each task when it was learned and at the end", chart, keys)
    return tag("div", curve, pair, then, class_="charts")


def _zero_shot(run: Results) -> Html:
    found = run["zero_shot"]
    told = ("An image gets the class, among those that are not learned yet, whose name is nearest. The encoders keep "
            f"{percent(found['retention'])} % of what they knew of such classes before any learning.")  # fmt: skip
    title = "Zero-shot accuracy on the classes that come later, after each task"
    series = [("untouched", "the untouched encoders", found["untouched"]), ("now", "the encoders now", found["now"])]
    return join(tag("p", told), _before_and_now("unseen", title, "accuracy, %", series))


def _general(run: Results) -> Html:
    found = run["general"]
    told = ("How many examples of a task that was not trained on are nearest to the mean of their own class. The "
            f"encoder keeps {percent(found['kept'])} % of what it could do before any learning.")  # fmt: skip
    title = "Quality of the embeddings on the last task, before it is learned, after each other task"
    untouched = [found["untouched"] if score is not None else None for score in found["now"]]
    series = [("pre-trained", "the pre-trained encoder", untouched), ("now", "the encoder now", found["now"])]
    return join(tag("p", told), _before_and_now("general", title, "nearest class mean, %", series))


def _before_and_now(
    name: str, title: str, unit: str, series: Sequence[tuple[str, str, Sequence[float | None]]]
) -> Html:
    """The chart of two series over the tasks, first that of the pre-trained encoder. Each has a name, what the legend
    calls it, and its scores."""
    (before, once, first), (after, present, last) = series
    lines = [Line(before, hundred(first), GREY, "square"), Line(after, hundred(last), ACCENT)]
    keys = figures.legend([("square", GREY, once), ("circle", ACCENT, present)])
    return figure(name, title, figures.line_chart(title, lines, unit), keys)


def hundred(values: Iterable[float | None]) -> list[float | None]:
    """Scores in percent."""
    return [None if value is None else 100 * value for value in values]


def _tasks(run: Results) -> Html:
    matrix, last = run["accuracy_matrix"], run["accuracy_matrix"][-1]
    columns = {"when learned": [row[i] for i, row in enumerate(matrix)], "at the end": last}
    if run.get("known") and run["known"] != last:
        columns["at the end, among the classes known when learned"] = run["known"]
    for name in ("initial", "before"):
        if any(value is not None for value in run.get(name) or []):
            columns = {name: run[name], **columns}

    def classes(names: Sequence[str]) -> str:
        listed = tag("ul", *(tag("li", tag("bdi", name)) for name in names), class_="classes")
        return tag("details", tag("summary", f"{len(names)} classes"), listed) if names else percent(None)

    rows = [
        [i + 1, tag("bdi", task["name"]), classes(task["classes"]), f"{task['train']:,}", f"{task['test']:,}",
         *(percent(values[i]) for values in columns.values())]
        for i, task in enumerate(run["tasks"])
    ]  # fmt: skip
    head = ["#", "task", "classes", "train", "test", *columns]
    return join(table("Tasks", head, rows, text=3), tag("p", f"Scores: {run['metric']} in %.", class_="note"))


def _made(run: Results) -> Html:
    import yaml

    text = yaml.safe_dump(dict(run["config"]), sort_keys=False, allow_unicode=True)
    shown = {name: "none" if value is None else str(value) for name, value in run["environment"].items()}
    return join(
        tag("h3", "Configuration (config.yaml)"),
        scroll("Configuration", tag("pre", tag("code", text))),
        tag("h3", "Environment"),
        facts([("everlearn", run.get("everlearn", percent(None))), *shown.items()]),
        tag("h3", "Fingerprint of the data"),
        tag("p", tag("code", run.get("fingerprint", percent(None))), class_="breakable"),
    )
