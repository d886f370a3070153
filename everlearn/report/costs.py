"""The costs of a run: parameters, bytes, seconds and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from everlearn.formats import duration, human_bytes
from everlearn.report import figures
from everlearn.report.figures import ACCENT, COLOURS, Line
from everlearn.report.markup import Html, facts, figure, join, tag

ANSWER = "Time of one answer after each task, without the encoding of features that the feature store keeps"
PASSES = "Passes of an encoder that one answer takes after each task, features from the store included"
# Encoding happens during these phases, so it has no part of its own in the bar.
PHASES = {"begin": COLOURS[5], "train": ACCENT, "end": COLOURS[2], "evaluate": COLOURS[4]}


def costs(run: Mapping[str, Any]) -> Html:
    """The costs as numbers, then charts of the time and of the stored bytes."""
    seconds = run["seconds"]
    phases = [(name, seconds[name], colour) for name, colour in PHASES.items() if seconds.get(name)]
    stored = [(part, size) for part, size in run["stored"].items() if size]
    coloured = [(part, size, COLOURS[i % len(COLOURS)]) for i, (part, size) in enumerate(stored)]
    numbers = {
        "Trainable parameters": f"{run['trainable_parameters']:,}",
        "Stored": human_bytes(run["stored_bytes"]),
        "Time": duration(seconds["total"]),
        "Time for encoding (included above)": duration(seconds.get("encode", 0.0)),
        "Peak memory": human_bytes(run["peak_rss_bytes"]),
        "Examples encoded": f"{run['examples_encoded']:,}",
        "Examples read from the feature store": f"{run['examples_served']:,}",
    }
    if "encoder_passes" in run:
        numbers["Examples through an encoder, every pass counted"] = f"{run['encoder_passes']:,}"
    legend = figures.legend([("box", colour, name) for name, _, colour in phases])
    time_bar = _shares("seconds", "Time by phase", phases, duration)
    stored_bar = _shares("stored", "Stored bytes by part", coloured, human_bytes)
    per_task = _per_task(run.get("seconds_per_task") or [], legend)
    return join(facts(numbers.items()), tag("div", time_bar, stored_bar, per_task, *_growth(run), class_="charts"))


def stored_per_task(run: Mapping[str, Any]) -> list[float | None]:
    """The MiB that are stored after each task; empty in results of an older version."""
    return [None if size is None else size / 2**20 for size in run.get("stored_bytes_per_task") or []]


def answer_per_task(run: Mapping[str, Any], what: str) -> list[float | None]:
    """The milliseconds or encoder_passes of one answer after each task; empty where they were not measured."""
    answers = run.get("answer_per_task") or []
    return [answer and answer[what] for answer in answers] if any(answers) else []


def _growth(run: Mapping[str, Any]) -> list[Html]:
    """What is stored after each task, and what an answer costs then."""
    shown = (("stored-per-task", "Stored after each task", "MiB", stored_per_task(run)),
             ("milliseconds", ANSWER, "milliseconds", answer_per_task(run, "milliseconds")),
             ("passes", PASSES, "passes", answer_per_task(run, "encoder_passes")))  # fmt: skip
    return [figure(name, title, figures.line_chart(title, [Line(unit, values)], unit, from_zero=True))
            for name, title, unit, values in shown if len(values) > 1]  # fmt: skip


def _per_task(seconds: Sequence[Mapping[str, float]], legend: Html) -> Html | None:
    if len(seconds) < 2:
        return None
    stacks = [[task.get(name) or 0.0 for name in PHASES] for task in seconds]
    names, colours = figures.numbers(len(seconds)), list(PHASES.values())
    chart = figures.columns("seconds per task, by phase", stacks, names, colours, "seconds", "task")
    return figure("seconds-per-task", "Time per task", chart, legend)


def _shares(
    name: str, title: str, parts: Sequence[tuple[str, float, str]], show: Callable[[float], str]
) -> Html | None:
    if not parts:
        return None
    total = sum(size for _, size, _ in parts)
    items = [("box", colour, f"{part} {show(size)}, {100 * size / total:.0f} %") for part, size, colour in parts]
    bar = figures.share_bar(f"{title}: " + "; ".join(text for _, _, text in items), parts)
    return figure(name, title, bar, figures.legend(items))
