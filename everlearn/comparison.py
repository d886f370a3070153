"""Compares several methods on one stream, cheapest first. A failed method does not stop the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import methods as registry
from everlearn import streams
from everlearn.config import Config, build_config, check_collection, check_out, find_recipe, usual_recipe
from everlearn.entries import Entry, encoder_of, learn_each, reason_against, refuse_links
from everlearn.errors import EverlearnError, not_named, shown, unknown
from everlearn.files import write_whole
from everlearn.locks import alone
from everlearn.metrics.gate import NEW, OLD, Least
from everlearn.recommendation import recommendation
from everlearn.repeats import repeated
from everlearn.schemas.several import read_comparison
from everlearn.settings import Count, Share, checked
from everlearn.streams.peek import input_of

if TYPE_CHECKING:
    from everlearn.streams.stream import Stream

Results = dict[str, Any]


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
        plain = name.rpartition(":")[2]
        labels = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
        label = next(label for label in labels if label not in entries)
        entries[label] = Entry(label, registry.get(name), config["method"], path, config["backbone"])
    return sorted(entries.values(), key=lambda entry: entry.cost)


def _within(
    entries: Sequence[Entry], stream: Stream, config: Config, bytes: int | None, steps: int | None
) -> list[Entry]:
    """The entries, with the epochs and the memory that the budgets allow."""
    from everlearn.budgets import budgeted

    within, encoder = [], encoder_of(stream, config)
    for entry in entries:
        if reason_against(entry, stream, encoder) is None:  # the others are skipped later
            settings = budgeted(entry.settings, stream, config["backbone"], config["seed"], bytes=bytes, steps=steps)
            entry = replace(entry, settings=settings)
        within.append(entry)
    return within


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
