"""The command `everlearn tune`: the settings of a method for a stream, chosen on validation examples."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import options
from everlearn.config import check_file, collections, default_out, read_config
from everlearn.errors import EverlearnError, as_word, printable
from everlearn.files import write_whole
from everlearn.interrupts import Interrupted
from everlearn.settings import as_options

if TYPE_CHECKING:
    from everlearn.tuning import Tuning

ABOUT = (
    "choose the learning rates and the most important setting of a method, on validation examples of the first tasks "
    "and never on test examples; the protocol is the same for every method: a published grid, a number of trials and a "
    "budget of steps"
)


def add_parser(verb: Callable[[str, str], Any]) -> None:
    """Add `tune` to the command line."""
    p = verb("tune", ABOUT)
    p.add_argument("method", metavar="METHOD", help="the method")
    p.add_argument("--stream", metavar="NAME|FILE", help="the data to learn (default: clinc150)")
    p.add_argument("--stream.KEY", metavar="VALUE", help="a setting of the stream, e.g. --stream.tasks 20")
    p.add_argument("--method.KEY", metavar="VALUE", help="a setting of the method, which then is not searched")
    p.add_argument("--recipe", default="auto", metavar="auto|papers|none|FILE",
                   help="where settings that are not searched come from, as for run")  # fmt: skip
    p.add_argument("--backbone", metavar="NAME|DIR", help="the pre-trained encoder (default: that of the "
                   "recipe, else minilm, or vit-tiny for images); A+B joins the features of two")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, metavar="N", help="the random seed (default: 0)")
    p.add_argument("--tasks", type=int, default=5, metavar="N", help="learn the first N tasks only (default: 5); "
                   "--stream.tasks says how many tasks the data are divided into")  # fmt: skip
    p.add_argument("--budget", type=int, metavar="STEPS", help="optimizer steps in a task, rounded to whole "
                   "epochs (default: the epochs of the recipe)")  # fmt: skip
    p.add_argument(
        "--jobs", type=int, metavar="N", help="trials in parallel; they share the cores (default: as compare)"
    )
    p.add_argument("--out", metavar="DIR", help="the folder of the trials; give the same folder again to continue")
    p.add_argument("--write", type=Path, metavar="RECIPE.yaml", help="write the chosen settings as a recipe; its first "
                   "lines are the commands that run it and that chose it")  # fmt: skip
    options.as_json(p)


def _tune(args: argparse.Namespace) -> int:
    stream = {"name": args.stream or "clinc150", **args.settings["stream"]}
    if args.write is not None:
        check_recipe(args.write, args.method)
    named = {"stream": stream, "method": {"name": f"{args.method}-tuning"}, "seed": args.seed}
    out = Path(args.out) if args.out else default_out(named)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print
        from everlearn.processes import default_jobs
        from everlearn.tuning import tune

        try:
            found = tune({"name": args.method, **args.settings["method"]}, stream, backbone=args.backbone,
                         seed=args.seed, tasks=args.tasks, budget=args.budget,
                         jobs=default_jobs() if args.jobs is None else args.jobs, out=out, recipe=args.recipe,
                         progress=True)  # fmt: skip
        except Interrupted as stopped:
            if args.write is None:
                raise
            raise Interrupted(f"{stopped} --write {as_word(args.write)}") from None  # it ends with the command
    if args.write is not None:
        write_whole(args.write, recipe(found, args.write))
    if args.json:
        print(json.dumps(found.record, indent=1))
        return 0
    from everlearn.console import trials_table

    trials_table(found.record)
    print(f"trials   {printable(out)}")
    if args.write is not None:
        print(f"recipe   {printable(args.write)}: {first_line(found, args.write)[2:]}")
    return 0


def check_recipe(file: Path, method: str) -> None:
    """See that a recipe of the method can be written there, before hours of trials.

    Raises:
        EverlearnError: it cannot, or the file is something else.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise EverlearnError(f"--write {file}: give a file that ends in .yaml")
    check_file("--write", file, overwrite=True)
    if file.exists():
        section = read_config(file).get("method")
        name = section.get("name") if isinstance(section, dict) else section
        if name != method:
            raise EverlearnError(f"--write {file}: the file holds no recipe of {method}: give another one")


def first_line(found: Tuning, file: Path) -> str:
    """The comment with the command that runs a recipe; in a collection of recipes it is found by its name."""
    name, stream, folder = found.record["method"]["name"], found.record["stream"], file.parent.resolve()
    command = shlex.join(["everlearn", "run", "--stream", stream, "--method", name])
    if file.stem != name or folder not in [place.resolve() for place in collections(folder.name)]:
        of_stream = as_options("stream", found.record["stream_settings"])
        own = None if found.record["backbone_of_recipe"] else found.record["backbone"]  # the recipe does not name it
        backbone = ["--backbone", own] if own is not None else []
        return f"# {command} {shlex.join([*of_stream, *backbone, '--recipe', str(file)])}"
    if folder.name == stream:
        return f"# {command}"
    return f"# everlearn run --stream STREAM --method {name} --recipe {folder.name}"


def recipe(found: Tuning, file: Path) -> str:
    """The text of a recipe: how it is run, how its settings were chosen, the settings, and the trials, whose scores
    nothing reads but people and the pages of results."""
    import yaml

    record, score, own = found.record, found.score, found.default_score
    tasks = f"the first {record['tasks']} tasks" if record["tasks"] > 1 else "the first task"
    steps = f", about {record['steps']:,} steps a task" if record["steps"] else ""
    before = "which failed with the method's own values" if own is None else f"{own:.3f} with the method's own values"
    said = (f"Final {record['metric']} on validation examples of {tasks}: {score:.3f}, {before} "
            f"({len(found.trials)} trials{steps}, seed {record['seed']}).")  # fmt: skip
    chosen_by = record["command"] or f"everlearn.tune, on the stream {record['stream']} in memory"
    config: dict[str, Any] = {"method": found.chosen}
    if record["backbone_of_recipe"]:
        config["backbone"] = record["backbone"]
    kept = {
        "score": _rounded(score), "default_score": _rounded(own), "steps": record["steps"],
        "trials": [{**trial["settings"], "score": _rounded(trial["score"])} for trial in found.trials],
    }  # fmt: skip
    head = [first_line(found, file), f"# Chosen by: {chosen_by}", *(f"# {line}" for line in textwrap.wrap(said, 118))]
    parts = (yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
             yaml.safe_dump({"tuning": kept}, sort_keys=False, default_flow_style=None, width=118))  # fmt: skip
    return "\n".join([*head, "".join(parts)])


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {"tune": _tune}
