"""Compare methods of all families, with several seeds for random methods: tables and charts under docs/results.

    python bench/families.py clinc150 [--seeds 0,1,2] [--methods all] [--out runs/families]
    python bench/families.py clinc150 --seeds 1,2 --methods ranpac,klda      # more seeds for some methods
    python bench/families.py banking77
    python bench/families.py tinyimagenet100 --data FOLDER --backbone vit-tiny@112 \\
        --train-per-class 20 --test-per-class 10
    python bench/families.py pacs --data FOLDER --backbone vit-tiny@112 \\
        --train-per-class 20 --test-per-class 40
    python bench/families.py tinyimagenet100 --page tinyimagenet100_224 --backbone vit-tiny@224 …

FOLDER holds NAME_train.parquet and NAME_test.parquet. For vit-tiny, EVERLEARN_WEIGHTS names the folder of its
weights. Each seed has its own class order (1993 for seed 0, 1994 for seed 1, …), its own drawn examples and its
own seed of the methods. The features of the frozen encoder are stored before anything is learned, so the seconds of no
method hold them. Finished runs are not repeated, so the same command continues a stopped one; nor are those that
docs/results/single_runs/PAGE.jsonl keeps, except with --again. Writes docs/results/PAGE.md and PAGE.svg, and for
CLINC150 the table of README: means with 95 % intervals over seeds, the gate, seconds, stored bytes and trained
parameters, and below the table whether the published ordering holds, by the paired differences of the seeds.
"""

from __future__ import annotations

import argparse
import re
import statistics
from inspect import signature
from pathlib import Path
from typing import Any

from common import RESULTS, command, machines, store_features, tuning_gain, write_page
from kept_runs import Rows, finished, keep, missing

from everlearn import compare, methods, streams
from everlearn.comparison import select
from everlearn.config import build_config, find_recipe, usual_recipe
from everlearn.formats import ranged
from everlearn.judgement import Judged, above_joint, differences, judge
from everlearn.metrics.intervals import Interval, conclusion, interval
from everlearn.processes import default_jobs
from everlearn.repeats import varied
from everlearn.streams.peek import input_of

README = Path(__file__).parents[1] / "README.md"

ORDERING = [
    ("joint", "ranpac"), ("ranpac", "aper"), ("aper", "simplecil"), ("l2p", "vpt"), ("dual_prompt", "vpt"),
    ("coda_prompt", "vpt"), ("l2p", "finetune"), ("dual_prompt", "finetune"), ("coda_prompt", "finetune"),
    ("slca", "finetune"),
]  # fmt: skip
"""Published ordering: the first method is at least as good as the second."""


IN_README = ("joint", "ranpac", "slca", "lda", "simplecil", "coda_prompt", "er", "ewc", "frozen", "finetune")
"""The ten methods of README's table, from the page of CLINC150: references, and the best known of each family."""

BESIDE = ("methods", "again", "out")
"""Options that select which runs a call makes, but do not change the runs themselves."""

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("stream")
PARSER.add_argument("--data", type=Path, help="folder of the Parquet files, for a stream that is not in the package")
PARSER.add_argument("--backbone")
PARSER.add_argument("--page", help="name of the page, when it is not that of the stream: another encoder of a stream")
PARSER.add_argument("--methods", default="all")
PARSER.add_argument("--recipes", default="auto", help="the collection of recipes; by default that of the stream")
PARSER.add_argument("--epochs", type=int, help="replaces the epochs of the recipes, for every method that trains")
PARSER.add_argument("--tasks", type=int, default=10)
PARSER.add_argument("--train-per-class", type=int, default=30)
PARSER.add_argument("--test-per-class", type=int)
PARSER.add_argument("--seeds", default="0")
PARSER.add_argument("--again", action="store_true", help="also learn what is kept, with the present settings")
PARSER.add_argument("--out", type=Path, default=Path("runs/families"))


def main() -> None:
    args = PARSER.parse_args()
    page = args.page or args.stream
    for seed in map(int, args.seeds.split(",")):
        folder, section = args.out / f"{page}-seed{seed}", varied(stream(args), seed)
        names = [str(name) for name in select(args.methods)]
        if not args.again:
            names = missing(page, page, seed, names)
        if not names:
            continue
        store_features(streams.load(**section), args.backbone)
        for run in compare(chosen(args, names), section, backbone=args.backbone, out=folder, seed=seed,
                           recipe=args.recipes, progress=True, jobs=default_jobs()):  # fmt: skip
            if "error" in run:
                print(f"{run['method']} failed: {run['error']}")
    sets = finished(page, [page], args.out)
    write(args, page, sets[page])
    keep(page, sets)


def chosen(args: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    """The method sections; with --epochs, every method that trains gets this number of epochs."""
    sections: list[dict[str, Any]] = []
    for name in names:
        trains = args.epochs and "epochs" in signature(methods.get(name)).parameters
        sections.append({"name": name, "epochs": args.epochs} if trains else {"name": name})
    return sections


def judged_by_name(rows: Rows) -> dict[str, Judged]:
    """What is judged of each method.

    Raises:
        SystemExit: the seeds of a method have different settings, so that they are no seeds of one row.
    """
    judged = judge([run for runs in rows.values() for run in runs])
    for one in judged:
        if len(one.runs) < len(rows[one.method]):
            raise SystemExit(f"the runs of {one.method} have different settings: learn some of them again")
    return {one.method: one for one in judged}


def stream(args: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {"name": args.stream, "max_train_per_class": args.train_per_class, "class_seed": 1993}
    if args.test_per_class:
        settings["max_test_per_class"] = args.test_per_class
    if args.data:
        files = {part: str(args.data / f"{args.stream}_{part}.parquet") for part in ("train", "test")}
        settings |= {"name": files["train"], "test": files["test"]}
    if args.stream == "pacs":
        return settings | {"kind": "domain-incremental", "domain_column": "domain"}
    return settings | {"tasks": args.tasks}


def write(args: argparse.Namespace, page: str, rows: Rows) -> None:
    """Write docs/results/PAGE.md and PAGE.svg."""
    order = sorted(rows, key=lambda method: -mean(rows[method], "final_accuracy"))
    judged = judged_by_name(rows)
    first = rows[order[0]][0]
    limits = first["config"]["stream"]
    seeds = ",".join(map(str, sorted({run["seed"] for runs in rows.values() for run in runs})))
    all_seeds = argparse.Namespace(**{**vars(args), "seeds": seeds})
    head = ["| method | seeds | final | old | new | gate | forgetting proper | tuning | average "
            "| trained | stored, MB | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lines = [
        f"# {page}", "",
        f"Measured with `{command(PARSER, all_seeds, BESIDE)}`: {len(first['tasks'])} tasks, {first['backbone']}, at "
        f"most {limits['max_train_per_class']} training {tested(limits)}examples per class, "
        f"{settings_of(args, rows)}; each method on "
        f"{machines(run for method in order for run in rows[method])}. "
        "Mean ± 95 % interval for methods with several seeds, which vary class order, examples and method together. "
        "Old, new: in % of joint's score on the same tests, by which the gate decides. Tuning: the points of "
        "validation accuracy that `everlearn tune` gained over the method's own settings, in the first tasks.", "",
    ]  # fmt: skip
    table: dict[str, str] = {}
    for method in order:
        runs = rows[method]
        one = judged[method]
        gain = tuning_gain(recipe(args, method))
        figures = [ranged(one.final), ranged(one.old), ranged(one.new), one.at_the_gate,
                   spread(runs, "forgetting_proper"), "" if gain is None else f"{gain:+.1f}",
                   spread(runs, "average_accuracy")]  # fmt: skip
        seconds = statistics.mean(run["seconds"]["total"] for run in runs)
        table[method] = (f"| {method} | {len(runs)} | {' | '.join(figures)} | {runs[0]['trainable_parameters']:,} "
                         f"| {runs[0]['stored_bytes'] / 1e6:.1f} | {seconds:.0f} |")  # fmt: skip
    lines += [*head, *table.values(), "", "Published ordering:", ""]
    for better, worse in ORDERING:
        if better in rows and worse in rows:
            gap = differences([judged[better]], judged[worse]).get(0)
            shown = conclusion(gap).replace("does not hold", "**does not hold**")
            lines.append(f"- {better} ≥ {worse}: {shown} ({points(gap)})")
    lines += ["", *above_joint([run for runs in rows.values() for run in runs])]
    write_page(page, lines)
    if page == "clinc150":
        write_readme([*head, *(line for method, line in table.items() if method in IN_README)])
    draw(RESULTS / f"{page}.svg", rows, order)


def write_readme(table: list[str]) -> None:
    """Put some columns of some lines of the table between the two markers of README."""
    keep = ("method", "final", "old", "new", "gate", "stored, MB", "seconds")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    columns = [cells[0].index(name) for name in keep]
    shown = "\n".join(f"| {' | '.join(row[column] for column in columns)} |" for row in cells)
    marked = re.compile(r"(<!-- families -->\n).*?(\n<!-- /families -->)", flags=re.S)
    text, count = marked.subn(lambda found: f"{found[1]}{shown}{found[2]}", README.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"README has {count} places for the table: there must be one, between the two markers")
    README.write_text(text, encoding="utf-8")


def recipe(args: argparse.Namespace, name: str) -> Path | None:
    """The recipe that `compare` takes for a method."""
    if args.recipes != "auto":
        return find_recipe(args.recipes, name)
    settings = stream(args)
    return usual_recipe(settings["name"], input_of(settings), name)


def tested(limits: dict[str, Any]) -> str:
    most = limits.get("max_test_per_class")
    return f"and {most} test " if most else ""


def settings_of(args: argparse.Namespace, rows: Rows) -> str:
    """The source of the settings of the runs, and their epochs where these differ from the recipes."""
    told, collections = set(), set()
    for name, runs in rows.items():
        file = recipe(args, name)
        usual = build_config({"method": {"name": name}}, recipe=str(file or "none"))[0]["method"].get("epochs")
        told |= {run["config"]["method"].get("epochs") for run in runs} - {usual, None}
        collections |= {file.parent.name} if file else set()
    source = f"settings of the recipes {' and '.join(sorted(collections))}"
    return source + (f", but {' or '.join(map(str, sorted(told)))} epochs" if told else "")


def mean(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(run[key] for run in runs if run[key] is not None)


def spread(runs: list[dict[str, Any]], key: str) -> str:
    found = interval(run.get(key) for run in runs)
    return ranged(found) if found else ""


def points(gap: Interval | None) -> str:
    """A paired difference in points.

    >>> points(Interval(0.012, 0.004)), points(Interval(0.012, None)), points(None)
    ('+1.2 ± 0.4 points', '+1.2 points, one seed', 'no seed in common')
    """
    if gap is None:
        return "no seed in common"
    half = ", one seed" if gap.half is None else ""
    return f"{100 * gap.mean:+.1f}{f' ± {100 * gap.half:.1f}' if gap.half is not None else ''} points{half}"


def draw(file: Path, rows: Rows, order: list[str]) -> None:
    """Draw final accuracy against seconds, one point per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for method in order:
        seconds = statistics.mean(run["seconds"]["total"] for run in rows[method])
        final = interval(run["final_accuracy"] for run in rows[method])
        assert final is not None
        middle = final.mean
        axes.errorbar(seconds, 100 * middle, yerr=100 * (final.half or 0.0), fmt="o", color="#2563a8", capsize=2)
        axes.annotate(method, (seconds, 100 * middle), textcoords="offset points", xytext=(5, 3), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("final accuracy, %")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
