"""The table of one run: its accuracy matrix, each metric with its formula, the gate and the costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from everlearn.console import plain_table, safe, terminal
from everlearn.errors import as_word, near, printable
from everlearn.formats import duration, human_bytes, percent
from everlearn.judgement import beside_joint_command, is_reference, scores_on_old_and_new
from everlearn.metrics import FORMULAS
from everlearn.metrics.gate import NEW, OLD
from everlearn.metrics.per_class import missed

Results = dict[str, Any]
"""The content of results.json."""

SHOWN_TASKS = 12  # a larger matrix shows this many rows and columns, evenly spaced
SHOWN_CLASSES = 5


def final_table(results: Results, directory: Path | None = None) -> None:
    """Print one run: the accuracy matrix, each metric with its formula, the gate and the costs.

    Args:
        results: the content of results.json.
        directory: the run folder; if given, the paths that the last lines print.
    """
    out = terminal()
    metric = results["metric"]
    head = (
        f"{results['method']} on {near(results['stream'])} ({results['kind']}, {results['input']}, {results['goal']})"
    )
    out.print(safe(f"{head}, backbone {results['backbone']}, seed {results['seed']}", style="bold"))
    n = len(results["tasks"])
    some = f" ({SHOWN_TASKS} of {n} tasks shown; the report shows all)" if n > SHOWN_TASKS else ""
    out.print(safe(f"{metric} in %; row: after learning the task; column: tests of the task{some}"))
    for part in (_matrix, _figures, _gate_line, _index_line, _zero_shot_line, _general_line, _worst_classes, _costs):
        if (shown := part(results)) is not None:
            for line in shown.split() if isinstance(shown, Text) else [shown]:
                is_command = isinstance(line, Text) and line.plain.startswith("  everlearn")
                out.print(line, soft_wrap=is_command)  # a command that is broken into two lines cannot be copied
    for warning in results["warnings"]:
        out.print(safe(f"warning: {warning}", style="yellow"))
    for note in results["notes"]:
        out.print(safe(f"note: {note}"))
    if results["paper_compat"]:
        shortcut = f"paper_compat: this {metric} relies on a published shortcut that leaks test data"
        out.print(safe(shortcut, style="red"))
    if directory is not None:
        out.print(safe(f"report   {directory / 'report.html'}"), soft_wrap=True)
        if results["goal"] == "ranking":
            first = directory / "indexes" / "domain-000"
            told = f'{as_word(first)} "a query" --from {as_word(directory)}'
            out.print(safe(f"search   everlearn index search {told}"), soft_wrap=True)
        if results["goal"] == "classes":
            name = results["config"]["method"]["name"]
            own = f" --method {name}" if ":" in name else ""
            out.print(safe(f"predict  everlearn predict {as_word(directory)} --input FILE{own}"), soft_wrap=True)


def _spread(n: int) -> list[int]:
    """At most `SHOWN_TASKS` of n positions, evenly spaced, including the first and the last."""
    return sorted({round(k * (n - 1) / (SHOWN_TASKS - 1)) for k in range(SHOWN_TASKS)})


def _matrix(results: Results) -> Table:
    tasks, shown = results["tasks"], _spread(len(results["tasks"]))
    numbers = [Column(str(column + 1), justify="right", no_wrap=True, min_width=4) for column in shown]
    total = Column("all", justify="right", no_wrap=True, style="bold")
    table = plain_table(Column("", no_wrap=True, overflow="ellipsis", max_width=20), *numbers, total)
    for row in shown:
        scores = results["accuracy_matrix"][row]
        cells = [percent(scores[c]) if c <= row else "" for c in shown]
        name = tasks[row]["name"]
        label = name if name == f"task {row + 1}" else f"{row + 1} {name}"
        table.add_row(safe(label), *cells, percent(results["curve"][row]))
    return table


def _figures(results: Results) -> Table:
    number, formula = Column(justify="right", no_wrap=True), Column(style="dim", overflow="fold")
    table = Table.grid(Column(no_wrap=True), number, formula, padding=(0, 2, 0, 0))
    names = ("final_accuracy", "average_accuracy", "forgetting", "backward_transfer", "forward_transfer")
    old, new = scores_on_old_and_new(results)
    known = {"forgetting_proper": None, **results, "old": old, "new": new}
    for name in (*names, "retention", "gain", "forgetting_proper", "old", "new"):
        style = "bold" if name in ("forgetting_proper", "old", "new") else ""
        shown = re.sub(r"_\{(\w)\}", r"_\1", FORMULAS[name])  # without the braces of one-character subscripts
        label = name.replace("_accuracy", f" {results['metric']}").replace("_", " ")
        table.add_row(safe(label, style=style), percent(known[name]), safe(shown))
    return table


def _gate_line(results: Results) -> Text:
    """The two halves of the gate and forgetting proper, and what is missing to judge them."""
    old, new = scores_on_old_and_new(results)
    line = safe(f"old {percent(old)} %, new {percent(new)} %: ", style="bold")
    if old is None:
        return line.append("the gate needs at least two tasks", style="not bold")
    if is_reference(results):
        return line.append("joint is what other methods are measured by", style="not bold")
    line.append(f"the gate (old {100 * OLD:.0f} % and new {100 * NEW:.0f} % of joint's) is unknown; for it run\n  "
                f"{printable(beside_joint_command(results))}", style="not bold")  # fmt: skip
    if len(results["tasks"]) == 2:
        then = percent(results["accuracy_matrix"][0][0])
        line.append(f"\nold data: {then} % before the new data, {percent(old)} % now; new data: {percent(new)} %; "
                    "run joint to know the score of full training", style="not bold")  # fmt: skip
    if "forgetting_proper" not in results:
        line.append("\nforgetting proper was not measured: the version of everlearn that made this run did not know it",
                    style="not bold")  # fmt: skip
    return line


def _index_line(results: Results) -> Text | None:
    """Whether the indexes of old domains may be served after the last update, and what a new one costs."""
    found = results.get("retrieval")
    if not found or not found["verdict"]:
        return None
    stale = found["stale_documents"]
    cost = (f"{stale:,} of {found['documents']:,} documents would be embedded in another way now" if stale
            else "no document has to be encoded again")  # fmt: skip
    return safe(f"index: {found['verdict']['answer']}", style="bold").append(f" ({cost})", style="not bold")


def _zero_shot_line(results: Results) -> Text | None:
    """What the encoders still know of classes that are not learned."""
    found = results.get("zero_shot")
    if not found:
        return None
    before, now = ([value for value in found[name] if value is not None] for name in ("untouched", "now"))
    return safe(f"zero-shot on classes not learned yet: {percent(sum(now) / len(now))} % now, "
                 f"{percent(sum(before) / len(before))} % before any learning (means over the tasks)")  # fmt: skip


def _general_line(results: Results) -> Text | None:
    """What the encoder has kept of what it can do on data that it is not trained on; None where it has kept all."""
    found = results.get("general")
    if not found or found["kept"] in (None, 1.0):
        return None
    last = next(score for score in reversed(found["now"]) if score is not None)
    return safe(f"general ability: on the last task, before it was learned, the embeddings tell {percent(last)} % of "
                 f"the examples apart, the pre-trained ones {percent(found['untouched'])} %")  # fmt: skip


def _worst_classes(results: Results) -> Text | None:
    """The classes with the lowest recall, and what the worst of them is most often taken for."""
    lowest = missed(results.get("per_class", []))[:SHOWN_CLASSES]
    if not lowest:
        return None
    told = ", ".join(f"{printable(score['name'], 40)} {percent(score['recall'])}" for score in lowest)
    return safe(f"lowest recall in %: {told}; the report shows every class")


def _costs(results: Results) -> Table:
    seconds, environment = results["seconds"], results["environment"]
    sums = ("total", "encode", "encode_pretrained")  # over phases
    phases = ", ".join(f"{name} {duration(s)}" for name, s in seconds.items() if name not in sums)
    stored = ", ".join(f"{name} {human_bytes(size)}" for name, size in results["stored"].items() if size)
    threads = environment.get("threads", "?")
    cpu = f"{environment.get('cpu', 'CPU')}, {threads} thread{'' if threads == 1 else 's'}"
    rows = {
        "trained": f"{results['trainable_parameters']:,} parameters",
        "stored": human_bytes(results["stored_bytes"]) + (f" ({stored})" if stored else ""),
        "time": f"{duration(seconds['total'])} ({phases}), of which encoding took {duration(seconds['encode'])}",
        "memory": f"{human_bytes(results['peak_rss_bytes'])} at peak",
        "features": f"{results['examples_encoded']:,} examples encoded, "
                    f"{results['examples_served']:,} served from the feature store",
        "machine": environment.get("accelerator") or cpu,
    }  # fmt: skip
    table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    for name, text in rows.items():
        table.add_row(name, safe(text))
    return table
