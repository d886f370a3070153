"""The time of a run whose features are stored, and of a prediction, as a user waits for them: whole commands.

    python bench/warm_run.py [--stream clinc150] [--train-per-class 100] [--repetitions 5] [--checkout DIR …]

First `everlearn run --method simplecil` fills an empty feature store (cold). Then, turn by turn, in a fresh process
each: `everlearn run` again (warm), `everlearn predict` of one text that is in the store, of one that is not, and
`everlearn --version` after an import of torch, which is the least that a command takes (base). The part of a warm run
that is no learning is its start-up. `--checkout` measures other versions of everlearn in the same turns, each with a
store of its own. Printed: the median CPU seconds of each (less noisy than the clock beside other work), and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

COMMAND = "import sys; from everlearn.cli import main; sys.exit(main(sys.argv[1:]))"
BASE = "import torch; from everlearn.cli import main; main(['--version'])"


def seconds(checkout: Path, folder: Path, code: str, *arguments: str) -> float:
    """The CPU seconds of a fresh process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "EVERLEARN_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def turn(checkout: Path, folder: Path, number: int, run: list[str]) -> dict[str, float]:
    """Each command once."""
    out, new = folder / f"warm-{number}", folder / f"new-{number}.csv"
    new.write_text(f"text\nwhat is the balance of account {number}\n")
    found = {
        "warm run": seconds(checkout, folder, COMMAND, *run, "--out", str(out)),
        "predict, stored": seconds(
            checkout, folder, COMMAND, "predict", str(out), "--input", str(folder / "known.csv")
        ),
        "predict, new": seconds(checkout, folder, COMMAND, "predict", str(out), "--input", str(new)),
        "base": seconds(checkout, folder, BASE),
    }
    results = json.loads((out / "results.json").read_text())
    assert results["examples_encoded"] == 0
    return found | {"learning in it": results["seconds"]["total"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", default="clinc150")
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--checkout", type=Path, nargs="+", default=[])
    args = parser.parse_args()
    run = ["run", "--method", "simplecil", "--stream", args.stream, "--stream.max_train_per_class",
           str(args.train_per_class)]  # fmt: skip
    checkouts = [*(path.resolve() for path in args.checkout), Path(__file__).resolve().parents[1]]
    found: dict[Path, dict[str, list[float]]] = {checkout: defaultdict(list) for checkout in checkouts}
    with tempfile.TemporaryDirectory() as root:
        folders = {checkout: Path(root, str(number)) for number, checkout in enumerate(checkouts)}
        for checkout, folder in folders.items():
            folder.mkdir()
            (folder / "known.csv").write_text("text\nwhat is my balance\n")
            found[checkout]["cold run"].append(seconds(checkout, folder, COMMAND, *run, "--out", str(folder / "cold")))
            seconds(checkout, folder, COMMAND, "predict", str(folder / "cold"), "--input", str(folder / "known.csv"))
        for number in range(args.repetitions):
            for checkout in checkouts if number % 2 else checkouts[::-1]:
                for name, value in turn(checkout, folders[checkout], number, run).items():
                    found[checkout][name].append(value)
    medians = {checkout: {name: statistics.median(values) for name, values in each.items()} for checkout, each in
               found.items()}  # fmt: skip
    for checkout, each in medians.items():
        print(f"{checkout}: " + ", ".join(f"{name} {value:.2f} s" for name, value in each.items()))
        print(f"  start-up is {1 - each['learning in it'] / each['warm run']:.0%} of the warm run")
    for checkout in checkouts[:-1]:
        pairs = zip(medians[checkout].items(), medians[checkouts[-1]].values(), strict=True)
        print(f"against {checkout}: " + ", ".join(f"{name} {now / before:.2f}" for (name, before), now in pairs))


if __name__ == "__main__":
    main()
