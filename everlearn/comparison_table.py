"""The table of a comparison on the terminal: one line a method, with intervals where there are several seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Column
from rich.text import Text

from everlearn.console import plain_table, safe, terminal
from everlearn.errors import near
from everlearn.formats import duration, human_bytes, percent, ranged, short_count
from everlearn.judgement import Judged, above_joint, differences, judge, without_result
from everlearn.metrics.gate import NEW, OLD, Least
from everlearn.metrics.intervals import conclusion, interval

Results = dict[str, Any]


def compare_table(results: Sequence[Results], least: Least = (OLD, NEW)) -> None:
    """Print one line per method, best final score first; failed and skipped methods last, with the reason.

    Args:
        results: the contents of each results.json, of one seed or of several.
        least: what the gate asks for of joint's score on old tasks, and on the newest one.
    """
    out = terminal()
    judged = sorted(judge(results, least), key=lambda one: -(one.final.mean if one.final else 0.0))
    has_seeds = any(len(one.runs) > 1 for one in judged)
    names = ("final", "old", "new", "gate", "forgot", "general", "trained", "stored", "time", "memory")
    rows = []
    for one in judged:
        first = one.runs[0]
        kept, seconds = one.over("forgetting_proper"), sum(r["seconds"]["total"] for r in one.runs) / len(one.runs)
        word = one.at_the_gate.replace("unknown", "?")
        rows.append((
            safe(one.method), ranged(one.final), ranged(one.old), ranged(one.new), word,
            percent(kept.mean if kept else None), percent(one.general.mean if one.general else None),
            short_count(first["trainable_parameters"]),
            human_bytes(first["stored_bytes"]), duration(seconds), human_bytes(first["peak_rss_bytes"]),
        ))  # fmt: skip
    for shown in range(len(names), names.index("forgot"), -1):  # the last columns only where there is room
        table = plain_table(Column("method", overflow="fold", min_width=8), *names[:shown])
        for row in rows:
            table.add_row(*row[: 1 + shown])
        if out.measure(table, options=out.options.update(max_width=10 * out.width)).maximum <= out.width:
            break
    if judged:
        first = judged[0].runs[0]
        seeds = f", mean of {max(len(one.runs) for one in judged)} seeds ± 95 % interval" if has_seeds else ""
        out.print(
            safe(f"{first['metric']} in % on {near(first['stream'])}, best final score first{seeds}", style="bold")
        )
        out.print(table)
        gate = f"{100 * least[0]:g} and {100 * least[1]:g}"
        since = "over the classes known when" if first["goal"] == "classes" else "since"
        out.print(safe(f"old, new: in % of joint's score on the same tests (gate: {gate}); forgot: points, {since} "
                        "each task was learned; general: in %, what embeddings keep of their quality on a task that is "
                        "not learned yet"))  # fmt: skip
        older = [one.method for one in judged if any("forgetting_proper" not in run for run in one.runs)]
        if older:
            out.print(safe(f"{', '.join(older)}: learned by an earlier version of everlearn, which did not measure "
                            "what was forgotten among known classes"))  # fmt: skip
        for part in (_pairs(judged), _differences(judged)):
            if part is not None:
                out.print(part)
        out.print(_encodings([r for r in results if "final_accuracy" in r]))
    for warning in above_joint(results):
        out.print(safe(f"warning: {warning}", style="yellow"))
    for name, word, why in without_result(results):
        out.print(safe(f"{name} {word}: {why}", style="red" if word == "failed" else ""))


def _pairs(judged: Sequence[Judged]) -> Group | None:
    """Where a stream has two steps, old data and then new data: the old model on old data, and full training on new."""
    if any(len(run["tasks"]) != 2 for one in judged for run in one.runs):
        return None
    full = [interval(run["accuracy_matrix"][1][1] for run in one.runs) for one in judged if one.is_reference]
    table = plain_table(Column("", overflow="fold", min_width=8), "old: old model", "now", "kept",
                   "new: full training", "now", "reached")  # fmt: skip
    for one in judged:
        then, now, new = (
            interval(run["accuracy_matrix"][i][j] for run in one.runs) for i, j in ((0, 0), (1, 0), (1, 1))
        )
        table.add_row(safe(one.method), ranged(then), ranged(now), ranged(one.over("retention")),
                      ranged(full[0] if full else None), ranged(new), ranged(one.new))  # fmt: skip
    return Group(table, safe("old data: the score of the model before the new data and now, and how much of it is "
                              "kept; new data: the score of joint and of this method, and how much of it is "
                              "reached"))  # fmt: skip


def _differences(judged: Sequence[Judged]) -> Text | None:
    """The others beside the best one, in pairs of runs on the same data, where there are several seeds."""
    best = judged[0]
    told = [
        f"{judged[i].method} {100 * gap.mean:+.1f} ± {percent(gap.half)}"
        + (" (cannot tell)" if conclusion(gap) == "cannot tell" else "")
        for i, gap in differences(judged, best).items()
        if gap.half is not None
    ]
    head = f"points beside {best.method}, seed by seed (95 % intervals): "
    return safe(head + ", ".join(told)) if told else None


def _encodings(results: Sequence[Results]) -> Text:
    """How many examples each method encoded with a frozen backbone, and who read all from the feature store."""
    encoded, served = Counter[str](), Counter[str]()  # the seeds of a method count together
    for r in results:
        encoded[r["method"]] += r["examples_encoded"]
        served[r["method"]] += r["examples_served"]
    some = [f"{method} {count:,}" for method, count in encoded.items() if count]
    found = [method for method, count in served.items() if count and not encoded[method]]
    none = f"0 by {', '.join(found)} (all read from the feature store)" if found else ""
    told = "; ".join(part for part in (", ".join(some), none) if part)
    return safe(f"examples encoded with a frozen backbone, pre-trained or adapted: {told or 'none'}")
