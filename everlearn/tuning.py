"""Chooses the settings of a method for a stream: one grid, one number of trials, one budget of steps for every method.

Only validation examples of the first tasks decide (`everlearn.streams.validation`), because whoever learns a stream has
not seen the later ones. Each trial is an ordinary run. (A module called tune would hide the function of that name.)
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everlearn import methods
from everlearn.budgets import epochs_within, steps_of_an_epoch
from everlearn.config import Config, build_config, check_out, usual_recipe
from everlearn.engine import replay
from everlearn.entries import Entry, learn_each, refuse_links
from everlearn.errors import EverlearnError, not_named
from everlearn.files import write_whole
from everlearn.grids import TRIALS, Line, Value, grid_of, lines_of
from everlearn.interrupts import Interrupted
from everlearn.locks import alone
from everlearn.method import Method
from everlearn.progress import Progress
from everlearn.protocol import absolute, build_method, load_stream
from everlearn.schemas.several import read_tuning
from everlearn.search import Point, best_point, check_validation, import_optuna, search
from everlearn.settings import Count, Seed, as_options, checked, told
from everlearn.streams.stream import Stream
from everlearn.streams.validation import on_validation

Results = dict[str, Any]

STATEMENT = ("method", "stream", "fingerprint", "backbone", "seed", "grid")
"""What must be the same where a search goes on."""


@dataclass(frozen=True)
class Tuning:
    """What a search has found.

    Args:
        record: the content of tune.json.
        directory: the folder with a run for each trial, None where nothing was kept.

    >>> record = {"trials": [], "chosen": {"name": "klda", "gamma": 1.0}, "score": 0.9, "default_score": 0.8}
    >>> Tuning(record, None).chosen
    {'name': 'klda', 'gamma': 1.0}
    """

    record: dict[str, Any]
    directory: Path | None

    @property
    def trials(self) -> list[dict[str, Any]]:
        """For each trial its `settings`, its `score`, in [0, 1], and `error`: None, or why it has no score."""
        return list(self.record["trials"])

    @property
    def chosen(self) -> Config:
        """The section of the method with the chosen settings, as `everlearn.run` takes it."""
        return dict(self.record["chosen"])

    @property
    def score(self) -> float:
        """The final score of the chosen settings on the validation examples."""
        return float(self.record["score"])

    @property
    def default_score(self) -> float | None:
        """That of the method's own values; None where that trial failed."""
        score = self.record["default_score"]
        return None if score is None else float(score)


def tune(
    method: str | dict[str, Any],
    stream: str | dict[str, Any] | Stream = "clinc150",
    *,
    backbone: str | None = None,
    seed: int = 0,
    tasks: int = 5,
    budget: int | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    recipe: str = "auto",
    progress: bool = False,
) -> Tuning:
    """Choose the learning rates of a method, and the setting that its paper adds, on validation examples.

    Up to twelve runs learn the first tasks with values of the published grid (`everlearn.grids`), and are compared by
    their final score on validation examples. Of equal scores the one nearest to the method's own values is chosen. A
    trial whose loss is not finite has no score. The same seed chooses the same.

    Args:
        method: a name, or a section. Settings that are given here are not searched.
        stream: a name, a file, a stream section, or a Stream.
        backbone: as for `everlearn.run`.
        seed: of the trials, and of their order.
        tasks: the first so many tasks are learned; all, if there are fewer.
        budget: optimizer steps in a task, for every trial and every method. It is met as nearly as whole epochs can:
            they stay in the chosen settings. By default the epochs are those of the method's recipe. A method that
            learns old examples again (joint) has as many epochs, and so more steps, in later tasks.
        jobs: the number of trials that run in parallel; more than one needs `out`, and a stream that is given by name.
        out: the folder for tune.json and one run for each trial; a second call goes on there. None keeps nothing.
        recipe: where settings that are not searched come from, as `everlearn run --recipe`.
        progress: print progress to stderr.

    Returns:
        The trials and the chosen settings.

    Raises:
        EverlearnError: an unknown name or key, a method without a grid, no trial finished, `out` holds another search,
            or Optuna is not installed.
        everlearn.interrupts.Interrupted: the user stopped it; finished trials are kept, and the same call goes on.

    >>> small = {"name": "digits", "tasks": 5, "max_train_per_class": 10}
    >>> tuning = tune("klda", small, backbone="tiny", tasks=2)
    >>> sorted(trial["settings"]["gamma"] for trial in tuning.trials)[:3]
    [0.001, 0.01, 0.1]
    >>> tuning.score >= tuning.default_score
    True
    """
    checked("tasks", tasks, Count)
    checked("budget", budget, Count | None)
    checked("jobs", jobs, Count)
    checked("seed", seed, Seed)
    given = {"name": method} if isinstance(method, str) else method
    if not isinstance(given, dict) or "name" not in given:
        raise not_named("method", method)
    config, used = _configured(given, stream, backbone, seed, recipe)
    if budget is not None and "epochs" in given:
        raise EverlearnError("budget: it decides the epochs, and method.epochs is given too: leave one of them out")
    if "tuning" in config["stream"]:
        raise EverlearnError("stream.tuning: give the number of first tasks with tasks (--tasks)")
    if jobs > 1 and (out is None or isinstance(stream, Stream)):
        raise EverlearnError("jobs: more than one job needs a folder, out, and a stream given by name")
    by_itself = {key for key, value in config["method"].items() if value == "auto"}  # the method chooses these
    grid = grid_of(config["method"]["name"], {*given, *by_itself})
    import_optuna()
    name = config["stream"]["name"]
    if isinstance(stream, Stream):
        name, built = stream.name, on_validation(stream, tasks)
    else:
        built = load_stream(absolute({**config["stream"], "tuning": tasks}))
    section = {key: value for key, value in config["method"].items() if key not in grid}
    lines, steps = planned(section, grid, built, config["backbone"], seed, budget)
    of_stream = {} if isinstance(stream, Stream) else {"name": stream} if isinstance(stream, str) else stream
    command = None
    if not isinstance(stream, Stream):
        command = _command(given, of_stream, backbone, seed, tasks, budget, recipe)
    record: dict[str, Any] = {
        "command": command, "method": section, "stream": name, "fingerprint": built.fingerprint(),
        "stream_settings": {key: value for key, value in of_stream.items() if key != "name"},
        "backbone": config["backbone"], "backbone_of_recipe": backbone is None and config["backbone"] is not None,
        "seed": seed, "tasks": len(built), "budget": budget, "steps": steps,
        "grid": {line.setting: list(line.values) for line in lines},
        "recipe": f"{used.parent.name}/{used.stem}" if used else None,
    }  # fmt: skip
    folder = Path(out) if out is not None else None
    if folder is not None:
        if not (folder / "tune.json").is_file():
            check_out(folder)
        folder.mkdir(parents=True, exist_ok=True)
    work = _Work(record, lines, built, config, folder, jobs, progress)
    with alone(folder, "tuning") if folder else nullcontext():
        if folder:
            work.claim()
        try:
            with Progress(TRIALS, f"tuning {section['name']} on {name}", progress, work.finished()) as work.bar:
                scores = search(lines, work.judge, seed)
        except (Interrupted, KeyboardInterrupt):
            done = f"stopped, {len(work.trials)} of at most {TRIALS} trials are finished"
            raise Interrupted(f"{done}; {_how_to_go_on(command, folder)}") from None
        return work.finish(scores)


@dataclass
class _Work:
    """The trials of one search."""

    record: dict[str, Any]
    lines: list[Line]
    stream: Stream
    config: Config
    folder: Path | None
    jobs: int
    progress: bool

    def __post_init__(self) -> None:
        self.trials: dict[Point, Results] = {}
        self.bar = Progress(1, "", enabled=False)

    def claim(self) -> None:
        """Write what this folder searches, or see that it is the same.

        Raises:
            EverlearnError: it searches something else.
        """
        assert self.folder is not None
        file = self.folder / "tune.json"
        if file.is_file():
            old = read_tuning(file)
            for key in STATEMENT:
                if old[key] != self.record[key]:
                    other = "on other data" if key == "fingerprint" else f"with another {key}"
                    raise EverlearnError(f"{self.folder} holds a search {other}: give another folder with --out")
        else:
            self.write()

    def finished(self) -> int:
        """How many trials an earlier call has finished."""
        return len(list(self.folder.glob("*/results.json"))) if self.folder else 0

    def judge(self, points: Sequence[Point]) -> list[float | None]:
        """Learn with the settings of each point, and return the scores; None for a trial that failed."""
        named = {self._label(point): point for point in points}
        if self.folder is not None:
            refuse_links(self.folder, named)
        made = self.record["method"]["name"]
        entries = [
            Entry(label, methods.get(made), {**self.record["method"], **self._settings(point)}, None)
            for label, point in named.items()
        ]

        def keep(found: list[Results]) -> None:
            self.trials |= {named[result["method"]]: result for result in found}
            scores = {point: _score(result) for point, result in self.trials.items()}
            best = best_point(self.lines, scores)
            self.bar.text = f"best {scores[best]:.3f} with {self._label(best)}" if scores.get(best) is not None else ""
            self.bar.show(max(self.bar.done, len(self.trials)))
            self.write()

        config = {**self.config, "stream": {"name": self.stream.name, **self.stream.config}}
        learn_each(entries, self.stream, config, self.folder, self.jobs, self.progress, keep, lambda *_: None)
        return [_score(self.trials[point]) for point in points]

    def finish(self, scores: Mapping[Point, float | None]) -> Tuning:
        """The choice, which is written too."""
        if all(score is None for score in scores.values()):
            first = next(iter(self.trials.values()))
            raise EverlearnError(f"no trial finished, so that there is nothing to choose from: {first.get('error')}")
        point, default = best_point(self.lines, scores), tuple(line.default for line in self.lines)
        done = {each: result for each, result in self.trials.items() if scores[each] is not None}
        check_validation(done)
        self.record |= {
            "metric": done[point]["metric"], "chosen": {**self.record["method"], **self._settings(point)},
            "score": scores[point], "default": self._settings(default), "default_score": scores.get(default),
        }  # fmt: skip
        self.write()
        return Tuning(self.record, self.folder)

    def write(self) -> None:
        self.record["trials"] = [
            {"settings": self._settings(point), "score": _score(result), "error": result.get("error"),
             "seconds": result.get("seconds", {}).get("total")}
            for point, result in sorted(self.trials.items())
        ]  # fmt: skip
        if self.folder is not None:
            write_whole(self.folder / "tune.json", json.dumps(self.record, indent=1))

    def _settings(self, point: Point) -> dict[str, Any]:
        return {line.setting: value for line, value in zip(self.lines, point, strict=True)}

    def _label(self, point: Point) -> str:
        """The name of the trial's folder."""
        return ",".join(f"{setting}={told(value)}" for setting, value in self._settings(point).items())


def _configured(
    given: Config, stream: str | Config | Stream, backbone: str | None, seed: int, recipe: str
) -> tuple[Config, Path | None]:
    """The configuration as a run with this recipe has it."""
    options: Config = {"method": given, "seed": seed}
    if backbone is not None:
        options["backbone"] = backbone
    if isinstance(stream, Stream):
        if recipe == "auto":
            recipe = str(usual_recipe(stream.name, stream.input, given["name"]) or "none")
    elif isinstance(stream, str | dict):
        options["stream"] = stream
    else:
        raise not_named("stream", stream)
    return build_config(options, recipe=recipe)


def planned(
    section: Config, grid: Mapping[str, tuple[Value, ...]], stream: Stream, backbone: str | None, seed: int,
    budget: int | None,
) -> tuple[list[Line], int | None]:  # fmt: skip
    """The lines of the search and the steps of a task; the budget sets the epochs of the section."""
    learner, _ = build_method(section, stream, backbone, seed)
    replay(learner, [stream[0]])
    return lines_of(learner, grid), _budgeted(learner, stream, section, budget)


def _budgeted(learner: Method, stream: Stream, section: Config, budget: int | None) -> int | None:
    """Set the epochs in the section by the budget, and return the mean steps of a task; None where nothing is trained.

    Raises:
        EverlearnError: the stream is online, and decides the steps itself.
    """
    if (of_epoch := steps_of_an_epoch(learner, stream)) is None:
        return None
    epochs = 1 if stream[0].batch_size else learner.epochs
    if budget is not None:
        section["epochs"] = epochs = epochs_within(budget, of_epoch, stream)
    return max(1, math.ceil(epochs * of_epoch))


def _score(result: Results) -> float | None:
    return result.get("final_accuracy")


def _command(
    given: Config, stream: Config, backbone: str | None, seed: int, tasks: int, budget: int | None, recipe: str
) -> str:
    """The command that searches the same."""
    own = {key: value for key, value in given.items() if key != "name"}
    words = ["everlearn", "tune", str(given["name"]), *as_options("stream", {"name": "clinc150", **stream}),
             *as_options("method", own)]  # fmt: skip
    options = {"backbone": (backbone, None), "recipe": (recipe, "auto"), "seed": (seed, 0), "tasks": (tasks, 5),
               "budget": (budget, None)}  # fmt: skip
    for name, (value, usual) in options.items():
        if value != usual:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _how_to_go_on(command: str | None, folder: Path | None) -> str:
    if folder is None:
        return "nothing was kept: no folder given"
    if command is None:
        return f"repeat the same call with out={str(folder)!r} to go on"
    return f"go on with: {command} --out {shlex.quote(str(folder))}"
