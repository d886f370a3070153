"""Compares several methods on one stream, cheapest first. A failed method does not stop the others."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import backbones, streams
from everlearn import methods as registry
from everlearn.config import Config, build_config, check_collection, check_out, find_recipe, usual_recipe
from everlearn.errors import LONGEST, EverlearnError, not_named, printable, shown, unknown
from everlearn.files import write_whole
from everlearn.locks import Busy, alone
from everlearn.metrics.gate import NEW, OLD, Least
from everlearn.recommendation import recommendation
from everlearn.repeats import repeated
from everlearn.schemas.results import read_results
from everlearn.schemas.several import read_comparison
from everlearn.settings import Count, Share, checked
from everlearn.streams.peek import input_of

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone
    from everlearn.method import Method
    from everlearn.streams.stream import Stream

Results = dict[str, Any]

Say = Callable[["Entry", str], None]

COST = ("nothing", "head", "peft", "backbone")  # what a method trains, cheapest first

PATIENCE = 60.0  # seconds for a run whose comparison was killed to finish its step, save and stop


@dataclass(frozen=True)
class Entry:
    """One method of a comparison: the name of its sub-folder, its class, its settings and its recipe."""

    label: str
    cls: type[Method]
    settings: Config
    recipe: Path | None
    backbone: str | None = None
    """The one that its recipe names, which `run` takes; in a comparison all methods have the same."""

    @property
    def origin(self) -> str:
        """The source of its settings."""
        if self.recipe is None:
            return "the method's own"
        other = f", without its backbone {self.backbone}: all methods have the same" if self.backbone else ""
        return f"recipe {self.recipe.parent.name}/{self.recipe.stem}{other}"

    @property
    def cost(self) -> tuple[int, bool, str]:
        """A sort key: cheapest methods first; of those that train as much, the ones that retrain on all data last."""
        return COST.index(self.cls.tags.trained_by(self.settings)), self.cls.tags.retrains, self.label


def compare(
    methods: str | Sequence[str | Config] = "all",
    stream: str | Config | Stream = "clinc150",
    *,
    backbone: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    seeds: int = 1,
    gate: Least = (OLD, NEW),
    budget_bytes: int | None = None,
    budget_steps: int | None = None,
    progress: bool = False,
    recipe: str = "auto",
    jobs: int = 1,
) -> list[Results]:
    """Learn one stream with each method and recommend one of them.

    The features of the frozen backbone are computed once and shared by all methods. If a method fails, the
    error is recorded and the others continue; a method that cannot learn the stream with the backbone is
    skipped with a reason. A second call with the same `out` does not repeat finished runs.

    Args:
        methods: "all", "family:NAME", names separated by commas, or a list of names and method sections.
        stream: a name, a file, a stream section, or a Stream.
        out: the folder for one run per method, compare.json and report.html; None writes no files.
        seed: of everything random in the methods; the first one, where there are several.
        seeds: how many comparisons are made: with each seed the classes come in another order (`class_seed` of the
            stream), other examples are drawn (`split_seed`) and the methods have another seed. All of them count
            together, with 95 % intervals. It needs a stream that is given by name.
        gate: what a method must reach of joint's score on old tasks, and on the newest one, as shares.
        budget_bytes: bytes of old examples that each method keeps, if it keeps any (see `everlearn.budgets`).
        budget_steps: optimizer steps in a task, for each method that trains, as nearly as whole epochs can meet them.
        progress: print progress to stderr.
        recipe: "auto" uses the recipes for this stream, if they exist; "none" uses no recipes; the name of
            a collection ("papers" or another stream) uses the recipes of this collection.
        jobs: the number of parallel processes for methods that train a backbone or deltas; they share the
            cores. More than one needs `out`, and a stream that is given by name.

    Returns:
        One dict per method, cheapest first: the content of its results.json, or {"method", "error"},
        or {"method", "skipped"}; with several seeds, those of the first seed come first.

    Raises:
        EverlearnError: an unknown name or key, `out` already holds something else, or `jobs` without `out`
            or without a named stream, or another process is comparing or learning there, or a file of an earlier
            comparison there is damaged.
        everlearn.interrupts.Interrupted: the user stopped it; all is saved, and the same call continues.

    >>> small = {"name": "digits", "tasks": 2, "max_train_per_class": 5, "max_test_per_class": 5}
    >>> [results["method"] for results in compare("joint,simplecil", small, backbone="tiny")]
    ['simplecil', 'joint']
    """
    checked("jobs", jobs, Count)
    checked("seeds", seeds, Count)
    if isinstance(methods, dict) or not isinstance(methods, Iterable):
        raise EverlearnError(f"methods: {shown(methods)} is no list of methods: give their names, separated by commas, "
                             "or a list of names and method sections")  # fmt: skip
    methods = methods if isinstance(methods, str) else list(methods)
    for method in methods:
        if not isinstance(method, (str, dict)):
            raise not_named("method", method)
    options: Config = {"backbone": backbone, "seed": seed}
    if isinstance(stream, (str, dict)):
        options["stream"] = stream
    elif not hasattr(stream, "fingerprint"):
        raise not_named("stream", stream)
    elif jobs > 1:
        raise EverlearnError("jobs: more than one job needs a stream given by name, not a Stream object")
    try:
        checked("gate", gate, tuple[Share, Share])
    except EverlearnError:
        raise EverlearnError(f"gate={shown(gate)}: give two shares between 0 and 1, of joint's score on old tasks and "
                             "on the newest one, such as (0.8, 0.9)") from None  # fmt: skip
    from everlearn.protocol import absolute

    config = build_config(options, recipe="none")[0]
    name = config["stream"]["name"] if isinstance(stream, (str, dict)) else stream.name
    config["stream"] = absolute(config["stream"])
    if seeds > 1:
        if not isinstance(stream, (str, dict)):
            raise EverlearnError("seeds: several seeds need a stream given by name, not a Stream object: each orders "
                                 "and draws it in another way")  # fmt: skip

        def once(section: Config, number: int, folder: Path | None) -> list[Results]:
            return compare(methods, section, backbone=backbone, out=folder, seed=number, gate=gate,
                           budget_bytes=budget_bytes, budget_steps=budget_steps, progress=progress, recipe=recipe,
                           jobs=jobs)  # fmt: skip

        return repeated(once, config["stream"], config["seed"], seeds, Path(out) if out is not None else None, gate)
    if jobs > 1 and out is None:
        raise EverlearnError("jobs: more than one job needs a folder, out")
    input = input_of(config["stream"]) if isinstance(stream, (str, dict)) else stream.input
    chosen = select(methods)
    entries = _entries(chosen, name, input, recipe)
    if isinstance(stream, (str, dict)):
        stream = streams.load(**config["stream"])
    if budget_bytes is not None or budget_steps is not None:
        from everlearn.budgets import check_budgets

        check_budgets(chosen, budget_bytes, budget_steps)
        entries = _within(entries, stream, config, budget_bytes, budget_steps)

    folder = Path(out) if out is not None else None
    if folder is None:
        return learn_each(entries, stream, config, None, jobs, progress, lambda results: None)
    if not (folder / "compare.json").is_file():
        check_out(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, "comparing"):
        statement = {"stream": name, "fingerprint": stream.fingerprint(), "backbone": backbone, "seed": seed}
        record = {**_claim(folder, statement, entries), "gate": list(gate), "seeds": 1}

        def write(**values: Any) -> None:
            record.update(values)
            write_whole(folder / "compare.json", json.dumps(record, indent=1))

        write()
        results = learn_each(entries, stream, config, folder, jobs, progress, lambda results: write(results=results))
        from everlearn.report import render, write_page

        text = recommendation(results, gate)
        write(recommendation=text)
        write_page(render(results, text, gate), folder / "report.html")
    return results


def learn_each(
    entries: Sequence[Entry], stream: Stream, config: Config, folder: Path | None, jobs: int, progress: bool,
    write: Callable[[list[Results]], None], say: Say | None = None,
) -> list[Results]:  # fmt: skip
    """Learn with each method that has not finished; `write` is given the results so far after each of them, and `say`
    what happens: by default it is printed."""
    found: dict[str, Results] = {}

    def keep(label: str, result: Results) -> None:
        found[label] = {**result, "method": label}
        write([found[entry.label] for entry in entries if entry.label in found])

    def printed(entry: Entry, text: str) -> None:
        if progress:
            print(f"{entry.label}: {text}", file=sys.stderr)

    say = say or printed
    encoder = cache(lambda: _encoder(stream, config))  # not needed where all have finished
    todo = []
    for entry in entries:
        if folder is not None:
            _wait_for_orphan(entry, folder / entry.label, say)
        if (known := _known(entry, stream, encoder, folder, say)) is not None:
            keep(entry.label, known)
        else:
            todo.append(entry)
    # Methods that train at most a head run in this process: the first of them encodes for all.
    beside = [entry for entry in todo if jobs > 1 and entry.cost[0] > COST.index("head")]
    for entry in todo:
        if entry not in beside:
            keep(entry.label, _learn(entry, stream, config, folder, progress, say))
    if beside:
        assert folder is not None
        _learn_beside(beside, len(stream), config, folder, jobs, progress, say, keep)
    return [found[entry.label] for entry in entries]


def select(methods: str | Sequence[str | Config]) -> list[str | Config]:
    """The methods of a selection, without duplicates.

    Raises:
        EverlearnError: an unknown family, or an empty selection.

    >>> select("ranpac,joint,ranpac")
    ['ranpac', 'joint']
    """
    chosen: list[str | Config] = []
    for word in methods.split(",") if isinstance(methods, str) else methods:
        word = word.strip() if isinstance(word, str) else word
        if word == "all":
            chosen += registry.names()
        elif isinstance(word, str) and word.startswith("family:"):
            chosen += _family(word.removeprefix("family:"))
        elif word:
            chosen.append(word)
    if not chosen:
        raise EverlearnError("no method to compare: give names separated by commas, family:NAME or all")
    return [method for i, method in enumerate(chosen) if method not in chosen[:i]]


def _family(family: str) -> list[str]:
    families = {name: registry.get(name).tags.family for name in registry.names()}
    if family not in families.values():
        raise unknown("family", family, set(families.values()))
    return [name for name in families if families[name] == family]


def _entries(chosen: Sequence[str | Config], stream: str, input: str, recipe: str) -> list[Entry]:
    """Check the methods and sort them by cost, cheapest first."""
    entries: dict[str, Entry] = {}
    check_collection(recipe)
    for method in chosen:
        name = method if isinstance(method, str) else str(method.get("name"))
        path = usual_recipe(stream, input, name) if recipe == "auto" else find_recipe(recipe, name)
        config = build_config({"method": method}, recipe=str(path or "none"))[0]
        plain = label = name.rpartition(":")[2]
        while label in entries:
            label = f"{plain}-{len(entries) + 1}"
        entries[label] = Entry(label, registry.get(name), config["method"], path, config["backbone"])
    return sorted(entries.values(), key=lambda entry: entry.cost)


def _within(
    entries: Sequence[Entry], stream: Stream, config: Config, bytes: int | None, steps: int | None
) -> list[Entry]:
    """The entries, with the epochs and the memory that the budgets allow."""
    from everlearn.budgets import budgeted

    within, encoder = [], _encoder(stream, config)
    for entry in entries:
        if _reason_against(entry, stream, encoder) is None:  # the others are skipped later
            settings = budgeted(entry.settings, stream, config["backbone"], config["seed"], bytes=bytes, steps=steps)
            entry = replace(entry, settings=settings)
        within.append(entry)
    return within


def _wait_for_orphan(entry: Entry, directory: Path, say: Say) -> None:
    """Wait until no process learns in the method's folder: one whose comparison was killed saves and stops.

    Raises:
        Busy: it did not stop.
    """
    if not directory.is_dir():
        return
    try:
        with alone(directory):
            return
    except Busy:
        say(entry, f"waiting until another process that learns in {directory} has saved, at most {PATIENCE:.0f} s")
    with alone(directory, patience=PATIENCE):
        pass


def _encoder(stream: Stream, config: Config) -> Backbone:
    """The encoder that all methods learn with; it is asked what it is, and not yet loaded where that is known."""
    return backbones.load_when_needed(config["backbone"] or backbones.default_for(stream.input))


def _known(
    entry: Entry, stream: Stream, encoder: Callable[[], Backbone], folder: Path | None, say: Say
) -> Results | None:  # fmt: skip
    """The result of a method that has already finished or cannot learn this stream; None if it must run."""
    if folder is not None and (folder / entry.label / "results.json").is_file():
        say(entry, "already finished, not repeated")
        return read_results(folder / entry.label / "results.json")
    if reason := _reason_against(entry, stream, encoder()):
        say(entry, f"skipped: {reason}")
        return {"skipped": reason}
    return None


def _reason_against(entry: Entry, stream: Stream, encoder: Backbone) -> str | None:
    """Why a method cannot learn this stream with this backbone; None if it can."""
    from everlearn.evaluation import supports

    return supports(entry.cls.tags, stream, encoder, entry.settings)


def _learn(entry: Entry, stream: Stream, config: Config, folder: Path | None, progress: bool, say: Say) -> Results:
    """Start or resume one method in this process; return its results, or the error."""
    from everlearn.interrupts import Interrupted
    from everlearn.processes import record_failure
    from everlearn.protocol import resume, run

    directory = folder / entry.label if folder is not None else None
    say(entry, f"settings: {entry.origin}")
    try:
        if directory is not None and (directory / "config.yaml").is_file():
            result = resume(directory, method=entry.settings["name"], stream=stream, progress=progress)
        else:
            result = run(entry.settings, stream, backbone=config["backbone"], seed=config["seed"],
                         out=directory, validate=True, progress=progress)  # fmt: skip
    except Interrupted:
        say(entry, "stopped and saved; repeat the command with the same --out to continue")
        raise
    except Exception as error:  # after any error the other methods still run
        reason = str(error) if isinstance(error, EverlearnError) else f"{type(error).__name__}: {error}"
        reason = printable(reason, LONGEST)
        if directory is not None:
            record_failure(directory, traceback.format_exc())
        say(entry, f"failed: {reason}")
        return {"error": reason}
    if directory is not None:
        (directory / "error.txt").unlink(missing_ok=True)  # left by an earlier attempt
    return result.results


def _learn_beside(
    entries: Sequence[Entry], tasks: int, config: Config, folder: Path, jobs: int, progress: bool, say: Say,
    keep: Callable[[str, Results], None],
) -> None:  # fmt: skip
    """Run the methods in parallel; methods that retrain on all data take longest, so they start first."""
    from everlearn.processes import Run, side_by_side

    by_label = {entry.label: entry for entry in sorted(entries, key=lambda e: not e.cls.tags.retrains)}
    runs = [
        Run(label, folder / label, {**config, "method": e.settings}, tasks, validate=True)
        for label, e in by_label.items()
    ]
    for entry in by_label.values():
        say(entry, f"settings: {entry.origin}")

    def finished(label: str, result: Results) -> None:
        if "error" in result:
            say(by_label[label], f"failed: {result['error']}")
        keep(label, result)

    side_by_side(runs, jobs, finished, progress)


def refuse_links(folder: Path, labels: Iterable[str]) -> None:
    """See that no link leads out of the folders of some runs.

    Raises:
        EverlearnError: one does.
    """
    for place in (folder / label for label in labels):
        for found in (place, *(place.iterdir() if place.is_dir() else ())):
            if found.is_symlink():
                raise EverlearnError(f"{found} is a symbolic link, and a comparison writes only into its own folder: "
                                     "replace it by what it points to")  # fmt: skip


def _claim(folder: Path, statement: Config, entries: Sequence[Entry]) -> Config:
    """The content of compare.json: what this folder compares.

    Raises:
        EverlearnError: it was used before and compares something else, or a link leads out of it.
    """
    refuse_links(folder, [entry.label for entry in entries])
    file = folder / "compare.json"
    old = read_comparison(file) if file.is_file() else {}
    settings = {entry.label: entry.settings for entry in entries}
    for key, value in statement.items():
        if key in old and old[key] != value:
            other = "on other data" if key == "fingerprint" else f"with {key} {old[key]}"
            raise EverlearnError(f"{folder} holds a comparison {other}: give another folder with --out")
    for label, earlier in old.get("methods", {}).items():
        if settings.get(label, earlier) != earlier:
            raise EverlearnError(f"{folder} holds {label} with other settings: give another folder with --out")
    for label in settings.keys() - old.get("methods", {}).keys():
        if (folder / label / "config.yaml").is_file():
            raise EverlearnError(f"{folder / label} holds a run that is not of this comparison: give another folder "
                                 "with --out")  # fmt: skip
    return {**old, **statement, "methods": {**old.get("methods", {}), **settings}}
