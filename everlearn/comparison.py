"""Several methods on one stream: cheapest first, one failure stops nothing, and it ends with a pick."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.config import Config, build_config, check_collection, check_out, find_recipe, merge
from everlearn.errors import EverlearnError, unknown
from everlearn.files import write_whole
from everlearn.recommendation import recommendation

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone
    from everlearn.method import Method
    from everlearn.streams.stream import Stream

Results = dict[str, Any]

Say = Callable[["Entry", str], None]

COST = ("nothing", "head", "peft", "backbone")  # what a method trains, cheapest first


@dataclass(frozen=True)
class Entry:
    """One method of a compare: the name of its sub-folder, its class and settings, its recipe."""

    label: str
    cls: type[Method]
    settings: Config
    recipe: Path | None

    @property
    def origin(self) -> str:
        """Where its settings come from."""
        return f"recipe {self.recipe.parent.name}/{self.recipe.stem}" if self.recipe else "the paper's settings"

    @property
    def cost(self) -> tuple[bool, int, str]:
        """Sorts cheapest first; what retrains on everything comes last."""
        return self.cls.tags.retrains, COST.index(self.cls.tags.trained_by(self.settings)), self.label


def compare(
    methods: str | Sequence[str | Config] = "all",
    stream: str | Config | Stream = "clinc150",
    *,
    backbone: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    recipe: str = "auto",
    jobs: int = 1,
) -> list[Results]:
    """Learn one stream with each method, and say which one to take.

    What the frozen backbone says about an example is computed once and shared by all. A method that
    fails is recorded and the others go on; one that does not cover the stream's kind, input or goal is
    left out; both are said. Called again with the same `out`, nothing that is finished is repeated.

    Args:
        methods: "all", "family:NAME", names with commas, or a list of names and method sections.
        stream: a name, a file, a stream section, or a Stream.
        out: a folder for one run per method, compare.json and report.html; None keeps nothing.
        progress: print progress to stderr.
        recipe: "auto" takes a method's recipe for this stream where there is one; "none" takes none; a
            collection's name, as "papers" or another stream's, the recipes of that.
        jobs: how many methods that train an encoder, or what is put into it, learn at once, each in a process
            of its own with its share of the cores. More than one needs `out` and a stream that is named.

    Returns:
        One dict per method, cheapest first: the content of its results.json, or {"method", "error"},
        or {"method", "skipped"}.

    Raises:
        EverlearnError: an unknown name or key, `out` already holds something else, or jobs without what
            they need.
        everlearn.session.Interrupted: the user stopped it; all is saved, and the same call goes on.

    >>> [results["method"] for results in compare("joint,simplecil", "digits", backbone="tiny")]
    ['simplecil', 'joint']
    """
    from everlearn import backbones, streams

    config = build_config({"backbone": backbone, "seed": seed}, recipe="none")[0]
    if isinstance(stream, (str, dict)):
        config = build_config(merge(config, {"stream": stream}), recipe="none")[0]
        name = config["stream"]["name"]
    else:
        name = stream.name
        if jobs > 1:
            raise EverlearnError("jobs: other processes can load a stream by its name, not take over a Stream")
    if jobs > 1 and out is None:
        raise EverlearnError("jobs: other processes need a folder to write to, out")
    entries = _entries(select(methods), name, recipe)
    if isinstance(stream, (str, dict)):
        section = dict(config["stream"])
        stream = streams.load(section.pop("name"), **section)

    folder = Path(out) if out is not None else None
    if folder is not None:
        statement = {"stream": name, "fingerprint": stream.fingerprint(), "backbone": backbone, "seed": seed}
        _claim(folder, statement, entries)
    found: dict[str, Results] = {}

    def keep(label: str, result: Results) -> None:
        found[label] = {**result, "method": label}
        if folder is not None:
            _update(folder / "compare.json", results=[found[e.label] for e in entries if e.label in found])

    def say(entry: Entry, text: str) -> None:
        if progress:
            print(f"{entry.label}: {text}", file=sys.stderr)

    encoder = None
    if any(entry.cls.tags.needs for entry in entries):
        encoder = backbones.load(backbone or backbones.default_for(stream.input))
    todo = []
    for entry in entries:
        if (known := _known(entry, stream, encoder, folder, say)) is not None:
            keep(entry.label, known)
        else:
            todo.append(entry)
    # Whoever trains nothing stays here: the first of them encodes for all.
    beside = [entry for entry in todo if jobs > 1 and entry.cost[1] > COST.index("head")]
    for entry in todo:
        if entry not in beside:
            keep(entry.label, _learn(entry, stream, config, folder, progress, say))
    if beside:
        assert folder is not None
        _learn_beside(beside, len(stream), config, folder, jobs, progress, say, keep)
    results = [found[entry.label] for entry in entries]
    if folder is not None:
        from everlearn.report import render, write_page

        text = recommendation(results)
        _update(folder / "compare.json", recommendation=text)
        write_page(render(results, text), folder / "report.html")
    return results


def select(methods: str | Sequence[str | Config]) -> list[str | Config]:
    """The methods that a selection names, each once.

    Raises:
        EverlearnError: an unknown family, or no method at all.

    >>> select("ranpac,joint,ranpac")
    ['ranpac', 'joint']
    """
    from everlearn import methods as registry

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
        raise EverlearnError("no method to compare: give names with commas, family:NAME or all")
    return [method for i, method in enumerate(chosen) if method not in chosen[:i]]


def _family(family: str) -> list[str]:
    from everlearn import methods as registry

    families: dict[str, list[str]] = {}
    for name in registry.names():
        families.setdefault(registry.get(name).tags.family, []).append(name)
    if family not in families:
        raise unknown("family", family, families)
    return families[family]


def _entries(chosen: Sequence[str | Config], stream: str, recipe: str) -> list[Entry]:
    """The methods, checked, cheapest first."""
    from everlearn import methods as registry

    entries: dict[str, Entry] = {}
    collection = stream if check_collection(recipe) == "auto" else recipe
    for method in chosen:
        name = method if isinstance(method, str) else str(method.get("name"))
        path = find_recipe(collection, name)
        settings = build_config({"method": method}, recipe=str(path or "none"))[0]["method"]
        plain = label = name.rpartition(":")[2]
        while label in entries:
            label = f"{plain}-{len(entries) + 1}"
        entries[label] = Entry(label, registry.get(name), settings, path)
    return sorted(entries.values(), key=lambda entry: entry.cost)


def _known(
    entry: Entry, stream: Stream, encoder: Backbone | None, folder: Path | None, say: Say
) -> Results | None:  # fmt: skip
    """The results of a method that finished earlier or cannot learn this stream; None if it has to run."""
    from everlearn.evaluation import supports

    if reason := supports(entry.cls.tags, stream, encoder):
        say(entry, f"skipped, {reason}")
        return {"skipped": reason}
    if folder is not None and (folder / entry.label / "results.json").is_file():
        say(entry, "finished earlier, not repeated")
        return _read(folder / entry.label / "results.json")
    return None


def _learn(
    entry: Entry, stream: Stream, config: Config, folder: Path | None, progress: bool, say: Say
) -> Results:  # fmt: skip
    """The results of one method, begun or gone on with in this process; or why there are none."""
    from everlearn.protocol import resume, run
    from everlearn.interrupts import Interrupted

    directory = folder / entry.label if folder is not None else None
    say(entry, f"settings: {entry.origin}")
    try:
        if directory is not None and (directory / "config.yaml").is_file():
            result = resume(directory, progress=progress)
        else:
            result = run(entry.settings, stream, backbone=config["backbone"], seed=config["seed"],
                         out=directory, progress=progress)  # fmt: skip
    except Interrupted:
        say(entry, "stopped and saved; the same command with the same --out goes on")
        raise
    except Exception as error:  # whatever it was, the other methods still have their turn
        reason = " ".join(str(error).split())
        reason = reason if isinstance(error, EverlearnError) else f"{type(error).__name__}: {reason}"
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        say(entry, f"failed, {reason}")
        return {"error": reason}
    if directory is not None:
        (directory / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    return result.results


def _learn_beside(
    entries: Sequence[Entry], tasks: int, config: Config, folder: Path, jobs: int, progress: bool, say: Say,
    keep: Callable[[str, Results], None],
) -> None:  # fmt: skip
    """Let the methods learn side by side; what retrains on everything takes longest, and starts first."""
    from everlearn.processes import Planned, side_by_side

    by_label = {entry.label: entry for entry in sorted(entries, key=lambda e: not e.cls.tags.retrains)}
    planned = [
        Planned(label, folder / label, {**config, "method": e.settings}, tasks) for label, e in by_label.items()
    ]  # fmt: skip
    for entry in by_label.values():
        say(entry, f"settings: {entry.origin}")

    def finished(label: str, result: Results) -> None:
        if "error" in result:
            say(by_label[label], f"failed, {result['error']}")
        keep(label, result)

    side_by_side(planned, jobs, finished, progress)


def _claim(folder: Path, statement: Config, entries: Sequence[Entry]) -> None:
    """Write down what this folder compares, or make sure that it compares just that."""
    file = folder / "compare.json"
    old = _read(file) if file.is_file() else {}
    if not old:
        check_out(folder)
        folder.mkdir(parents=True, exist_ok=True)
    settings = {entry.label: entry.settings for entry in entries}
    for key, value in statement.items():
        if key in old and old[key] != value:
            other = "on other data" if key == "fingerprint" else f"with {key} {old[key]}"
            raise EverlearnError(f"{folder} holds a compare {other}: give another folder with --out")
    for label, earlier in old.get("methods", {}).items():
        if settings.get(label, earlier) != earlier:
            raise EverlearnError(f"{folder} holds {label} with other settings: give another folder with --out")
    _update(file, **statement, methods={**old.get("methods", {}), **settings})


def _read(file: Path) -> Config:
    return json.loads(file.read_text(encoding="utf-8"))


def _update(file: Path, **values: Any) -> None:
    """Replace some values of a JSON file, all at once: a killed compare leaves the old file or the new."""
    data = {**(_read(file) if file.is_file() else {}), **values}
    write_whole(file, json.dumps(data, indent=1))
