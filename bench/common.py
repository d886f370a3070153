"""Functions shared by the benchmarks that write a page under docs/results."""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from everlearn import backbones, methods, resume, run
from everlearn.config import build_config, find_recipe
from everlearn.files import write_whole
from everlearn.schemas.results import read_results
from everlearn.search import best
from everlearn.streams.stream import PARTS, Stream
from everlearn.testing import tiny_pair

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SHARED = Path("../shared/data")
"""Where data sets and weights are that do not come with the package."""


def options(told: str | None, *, seeds: str = "0,1,2", backbone: str | None = "minilm") -> argparse.ArgumentParser:
    """A parser with the options of most measurements. A script adds its own."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=seeds)
    if backbone:
        parser.add_argument("--backbone", default=backbone)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path, help="a folder, with which a command goes on; a temporary one by default")
    return parser


def parsed(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Path]:
    """The options, and the folder for what is measured."""
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = args.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    return args, folder


def recipe_settings(stream: str, name: str, **changes: Any) -> dict[str, Any]:
    """The section of a method: the settings of its recipe in the collection `stream`, with `changes` applied."""
    recipe = find_recipe(stream, name)
    return build_config({"method": {"name": name, **changes}}, recipe=str(recipe or "none"))[0]["method"]


def default(section: dict[str, Any], setting: str) -> Any:
    """What the method of a section takes where a setting is not given."""
    method = methods.get(section["name"])
    given = {key: value for key, value in section.items() if key != "name"}
    backbone = tiny_pair() if "two towers" in method.tags.needs else backbones.load("tiny")
    return getattr(method(backbone, **given), setting)


def learned(section: dict[str, Any], stream: Stream, backbone: str | None, seed: int, out: Path) -> dict[str, Any]:
    """The results of a run, which goes on where it was stopped; those in the folder where it is finished already.

    Raises:
        SystemExit: the run in the folder has other settings or other data.
    """
    if (out / "results.json").exists():
        found = read_results(out / "results.json")
    elif (out / "config.yaml").exists():
        found = resume(out, stream=stream).results
    else:
        return run(section, stream, backbone=backbone, seed=seed, out=out).results
    config = found["config"]
    had = {**config["method"], "backbone": config["backbone"], "seed": config["seed"], "data": found["fingerprint"]}
    asked = {**section, "backbone": backbone and backbones.absolute(backbone), "seed": seed,
             "data": stream.fingerprint()}  # fmt: skip
    if changed := [key for key in {**had, **asked} if had.get(key) != asked.get(key)]:
        raise SystemExit(f"{out} holds a run with other values of {', '.join(changed)}: give another folder with --out")
    return found


def kept(file: Path, compute: Callable[[], Any]) -> Any:
    """What was computed and kept in the file, or computed now."""
    if not file.exists():
        found = compute()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(found, indent=1))
    return json.loads(file.read_text(encoding="utf-8"))


def store_features(stream: Stream, backbone: str | None) -> None:
    """Encode all examples of a stream with the frozen encoder, so that the seconds of no run hold this: the first one
    would encode for all others."""
    encoder = backbones.load_when_needed(backbone or backbones.default_for(stream.input))
    for task in stream:
        for part in PARTS:
            encoder.encode(getattr(task, part).inputs)


def tuning_gain(file: Path | None) -> float | None:
    """By how much `everlearn tune` moved the validation score of a method, in points, as its recipe says; None where
    its settings were not searched, or its own values failed."""
    kept = (yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}).get("tuning")
    if not kept or kept["default_score"] is None:
        return None
    return 100 * float(kept["score"] - kept["default_score"])


def around(judge: Callable[[int], dict[str, Any]], count: int) -> dict[int, dict[str, Any]]:
    """The results of `judge` for `count` whole numbers around 0, by number; where the best is the smallest or the
    largest, for up to two more beyond it."""
    found = {step: judge(step) for step in range(-(count // 2), count - count // 2)}
    for _ in range(2):
        middle = best(found)
        beyond = [step for step in (middle - 1, middle + 1) if step not in found]
        if not beyond:
            break
        found[beyond[0]] = judge(beyond[0])
    return found


def rate(middle: float, step: int) -> float:
    """A learning rate so many steps of a factor of three from the middle one.

    >>> rate(0.01, -1), rate(0.01, 2)
    (0.00333, 0.09)
    """
    return float(f"{middle * 3.0**step:.3g}")


def spread(values: Iterable[float], form: str = ".1f") -> str:
    """The mean in %, with the standard deviation where there are several values.

    >>> spread([0.9, 0.92]), spread([0.015], "+.1f")
    ('91.0 ± 1.4', '+1.5')
    """
    found = [100 * value for value in values]
    return f"{mean(found):{form}}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


def milliseconds(run: dict[str, Any], task: int = -1) -> float | None:
    """The time of one first answer after a task: that of the answer, and that of the features which the feature store
    keeps, at the mean time that this run took for one. None where the run encoded nothing, so that this is not known,
    or measured no answers."""
    answer, encoded = (run.get("answer_per_task") or [None])[task], run["examples_encoded"]
    if answer is None:
        return None
    if answer["stored_features"] and not encoded:
        return None
    each = 1000 * run["seconds"]["encode"] / encoded if encoded else 0.0
    return float(answer["milliseconds"] + answer["stored_features"] * each)


def machine(environment: dict[str, Any]) -> str:
    """The hardware, the torch version and the date of a run, from the environment in its results."""
    threads, accelerator = environment["threads"], environment.get("accelerator")
    parts = [environment["cpu"], f"{threads} thread{'s' * (threads != 1)}", *([accelerator] if accelerator else []),
             f"torch {environment['torch']}", environment["date"]]  # fmt: skip
    return ", ".join(parts)


def machines(runs: Iterable[dict[str, Any]]) -> str:
    """All machines on which some of the runs were measured, each with its first and its last day.

    >>> day = {"cpu": "AMD", "threads": 1, "torch": "2.6", "date": "2026-11-26"}
    >>> machines([{"environment": day}, {"environment": {**day, "date": "2026-11-27"}}])
    'AMD, 1 thread, torch 2.6, 2026-11-26 to 2026-11-27'
    """
    days: dict[str, list[str]] = {}
    for one in runs:
        hardware, _, day = machine(one["environment"]).rpartition(", ")
        days.setdefault(hardware, []).append(day)
    return " and ".join(f"{hardware}, {' to '.join(sorted({min(found), max(found)}))}"
                        for hardware, found in days.items())  # fmt: skip


def computed_on(runs: Iterable[dict[str, Any]]) -> str:
    """What computed the runs of a row: the CPU, or accelerators by name."""
    return ", ".join(sorted({run["environment"]["accelerator"] or "CPU" for run in runs}))


def command(parser: argparse.ArgumentParser, args: argparse.Namespace, but: tuple[str, ...] = ("out",)) -> str:
    """The command line without default values and the options in `but`; folders are shown as FOLDER."""
    told = [f"python bench/{Path(parser.prog).name}"]
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if action.dest in but or value == action.default:
            continue
        told += [action.option_strings[0]] if action.option_strings else []
        if value is not True:  # a switch
            told.append("FOLDER" if isinstance(value, Path) else shlex.quote(str(value)))
    return " ".join(told)


def write_page(name: str, lines: list[str]) -> None:
    """Write docs/results/NAME.md, followed by the handwritten text of NAME.notes.md."""
    notes = RESULTS / f"{name}.notes.md"
    by_hand = ["", *notes.read_text(encoding="utf-8").splitlines()] if notes.exists() else []
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join([*lines, *by_hand]).rstrip() + "\n", encoding="utf-8")
    print(f"written: docs/results/{name}.md")
