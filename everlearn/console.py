"""Output to the terminal: progress bars and tables of results, at most 100 columns wide."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.padding import PaddingDimensions
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from everlearn.errors import as_word, near, printable
from everlearn.judgement import REFERENCE, beside_joint_command, scores_on_old_and_new
from everlearn.metrics import FORMULAS
from everlearn.metrics.gate import NEW, OLD
from everlearn.metrics.intervals import Interval
from everlearn.metrics.per_class import worst
from everlearn.settings import told

Results = dict[str, Any]
"""The content of results.json."""

WIDTH = 100
SHOWN_TASKS = 12  # a larger matrix shows this many rows and columns, evenly spaced
SHOWN_CLASSES = 5


def safe(text: object, style: str = "") -> Text:
    """A text for the terminal. A class name or a file name may hold anything, but must not move the cursor."""
    return Text(printable(text, 2000), style=style)


class Progress:
    """A progress bar on stderr with the remaining time; nested bars share one display.

    A finished bar leaves one line of text, except a nested bar that took less than a second. If stderr is not a
    terminal, there are plain lines instead: one for each step of the outermost bar, unless the steps are quick, and
    one every half minute. If not `enabled`, nothing is printed.

    Args:
        total: number of steps.
        label: what is in progress, for example "task 3 of 10".
        done: how many steps were done before.

    >>> with Progress(2, "task 1 of 1", enabled=False) as bar:
    ...     bar.advance(2, "loss 0.3")
    """

    EVERY: ClassVar[float] = 30.0  # seconds
    display: ClassVar[Bars | None] = None
    active: ClassVar[list[Progress]] = []
    ended: ClassVar[threading.Event]
    said: ClassVar[float]

    def __init__(self, total: int, label: str, enabled: bool = True, done: int = 0) -> None:
        self.total, self.label, self.enabled = total, printable(label), enabled
        self.done, self.before, self.text = done, done, ""

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        if not self.enabled:
            return self
        if not Progress.active:
            Progress.said = self.started
            if sys.stderr.isatty():
                Progress.display = Bars(
                    TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
                    TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False),
                    console=Console(stderr=True), transient=True,
                )  # fmt: skip
                Progress.display.start()
            else:
                Progress.ended = threading.Event()
                threading.Thread(target=_say_regularly, args=[Progress.ended], daemon=True).start()
        Progress.active.append(self)
        if Progress.display:
            self.bar = Progress.display.add_task(self.label, total=self.total, completed=self.done, text="")
        return self

    def advance(self, n: int = 1, text: str | None = None) -> None:
        """Count n more steps; `text`, if given, replaces the text after the bar."""
        self.text = self.text if text is None else text
        self.show(self.done + n)

    def show(self, done: int) -> None:
        """Show that `done` of all steps are done."""
        self.done = done
        if not self.enabled:
            return
        if Progress.display:
            Progress.display.update(self.bar, completed=done, text=self.text)
        elif self is Progress.active[0] and done < self.total and time.monotonic() - Progress.said >= 1:
            _say()

    def position(self) -> str:
        """How far it is, in words: "task 3 of 10: 120 of 400, loss 0.3"."""
        return f"{self.label}: {self.done:,} of {self.total:,}" + (f", {self.text}" if self.text else "")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.enabled:
            return
        Progress.active.remove(self)
        if Progress.display:
            Progress.display.remove_task(self.bar)
            if not Progress.active:
                Progress.display.stop()
        elif not Progress.active:
            Progress.ended.set()
        seconds = time.monotonic() - self.started
        if kind is None and (not Progress.active or seconds >= 1):
            _to_stderr(f"{self.label}: {duration(seconds)}" + (f", {self.text}" if self.text else ""))
        if not Progress.active:
            Progress.display = None


def _say_regularly(ended: threading.Event) -> None:
    while not ended.wait(max(Progress.said + Progress.EVERY - time.monotonic(), 0)):
        if time.monotonic() - Progress.said >= Progress.EVERY:  # nothing was said meanwhile
            _say()


def _say() -> None:
    """Print where all active bars are, and how long the outermost of them takes."""
    bars = list(Progress.active)
    if not bars:
        return
    Progress.said = time.monotonic()
    first, elapsed = bars[0], Progress.said - bars[0].started
    news = first.done - first.before
    left = f", about {duration(elapsed / news * (first.total - first.done))} left" if news else ""
    _to_stderr("; ".join(bar.position() for bar in bars) + f" ({duration(elapsed)}{left})")


def _to_stderr(line: str) -> None:
    console = Progress.display.console if Progress.display else Console(stderr=True, width=WIDTH)
    console.print(safe(line), soft_wrap=True, highlight=False)


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
                is_command = isinstance(line, Text) and line.plain.startswith("  everlearn ")
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


def trials_table(record: dict[str, Any]) -> None:
    """Print the trials of a search, best first, what was chosen, and by how much it moved the score.

    Args:
        record: the content of tune.json.
    """
    out, chosen, default = terminal(), record["chosen"], record["default"]
    steps = f", about {record['steps']:,} steps a task" if record["steps"] else ""
    count = f"{record['tasks']} task{'s' * (record['tasks'] > 1)}"
    head = f"{record['method']['name']} on {record['stream']}, the first {count}{steps}"
    out.print(safe(head, style="bold"))
    out.print(safe(f"{record['metric']} on validation examples in %, best first"))
    table = plain_table(*record["grid"], "score", "seconds", Column("", overflow="fold"), padding=(0, 2, 0, 0))
    for trial in sorted(record["trials"], key=lambda trial: -(trial["score"] or 0.0)):
        settings = trial["settings"]
        words = ["chosen"] * (settings.items() <= chosen.items()) + ["the method's own"] * (settings == default)
        said = f"failed: {printable(trial['error'], 60)}" if trial["score"] is None else ", ".join(words)
        seconds = "-" if trial["seconds"] is None else f"{trial['seconds']:.0f}"
        table.add_row(*(told(value) for value in settings.values()), percent(trial["score"]), seconds, safe(said))
    out.print(table)
    settings = ", ".join(f"{name} {told(chosen[name])}" for name in record["grid"])
    own, moved = record["default_score"], "the method's own values failed"
    if own is not None:
        by = 100 * (record["score"] - own)
        moved = f"the method's own values have {percent(own)} %, so tuning gave {by:+.1f} points"
    out.print(safe(f"chosen   {settings}: {percent(record['score'])} %; {moved}", style="bold"))


def cache_table(entries: Sequence[dict[str, Any]]) -> None:
    """Print the content of the feature store, one line per backbone."""
    out = terminal()
    texts = (Column("identity", overflow="ellipsis", max_width=24), Column("description", overflow="fold"))
    table = plain_table(*texts, "examples", "size", "last used", padding=(0, 1))
    for e in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e["last_used"]))
        about = safe(e["identity"]), safe(e["description"])
        table.add_row(*about, f"{e['examples']:,}", human_bytes(e["bytes"]), used)
    out.print(table if entries else "the feature store is empty")


def percent(value: float | None) -> str:
    """A score in percent with one decimal; "-" if it is not defined.

    >>> percent(0.9734)
    '97.3'
    """
    return "-" if value is None else f"{100 * value:.1f}"


def ranged(value: Interval | None) -> str:
    """A mean in percent, with half the width of its interval where several seeds give one.

    >>> ranged(Interval(0.9512, 0.0049)), ranged(Interval(0.9512, None)), ranged(None)
    ('95.1 ± 0.5', '95.1', '-')
    """
    if value is None or value.half is None:
        return percent(value.mean if value else None)
    return f"{percent(value.mean)} ± {percent(value.half)}"


def short_count(n: int) -> str:
    """A count in a short form.

    >>> short_count(1_234_567)
    '1.2M'
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return str(n)


def human_bytes(n: float) -> str:
    """A number of bytes in the largest unit that fits; the units are powers of 1024.

    >>> human_bytes(3 * 1024**2)
    '3.0 MiB'
    """
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f} B"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours.

    >>> duration(75), duration(7300)
    ('1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def terminal() -> Console:
    """Standard output, as wide as the terminal but never wider than 100 columns."""
    return Console(width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns), highlight=False, markup=False)


def plain_table(*columns: Column | str, padding: PaddingDimensions = (0, 1, 0, 0)) -> Table:
    """A table without lines. A column that is given by its name alone holds numbers."""
    made = (Column(c, justify="right", no_wrap=True) if isinstance(c, str) else c for c in columns)
    return Table(*made, box=None, padding=padding, pad_edge=False)


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
    if results["method"] == REFERENCE:
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
    lowest = [score for score in worst(results.get("per_class", [])) if score["recall"] < 1][:SHOWN_CLASSES]
    if not lowest:
        return None
    told = ", ".join(f"{printable(score['name'], 40)} {percent(score['recall'])}" for score in lowest)
    return safe(f"lowest recall in %: {told}; the report shows every class")


def _costs(results: Results) -> Table:
    seconds, environment = results["seconds"], results["environment"]
    phases = ", ".join(f"{name} {duration(s)}" for name, s in seconds.items() if name not in ("total", "encode"))
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
