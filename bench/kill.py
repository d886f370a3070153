"""Kill runs, resumed runs and comparisons at random moments, and fill the disk; what results must be equal to the bit.

    python bench/kill.py [--kills 100] [--comparisons 10] [--sizes 20] [--seed 0]

Three parts follow each other, with the tiny backbone on three tasks of digits:

* runs of ten methods are killed with SIGKILL at a moment drawn uniformly over the duration of the uninterrupted run.
  Each is resumed and killed up to twice more, then resumed to its end, until there were enough kills of each method.
* `compare --jobs 2` is killed as a whole twice, its processes beside it are not, and it is repeated at once. Those
  processes must be gone within some seconds.
* `bench/full_disk.py` runs and resumes on disks that are too small, then on the same disk with enough room.

A run is equal to its reference, a run that nothing interrupted, if its results.json (without the fields that measure
the execution, `everlearn.results.TIMINGS`), its metrics.jsonl (without seconds) and every tensor of its last checkpoint
are. Every second run uses a feature store that others have filled. The processes are forked from one that has already
imported everything, so that a kill hits the run and not its start. The last line is JSON; the exit code is 1 if
anything differs, is left running, or is not told in one line when the disk is full.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from everlearn import checkpoint, cli
from everlearn.protocol import run
from everlearn.results import TIMINGS

# Replay, penalties, distillation, slow weights, retraining, insertions, prompts and statistics.
METHODS = ("er", "ewc", "lwf", "slca", "joint", "lora", "task_adapters", "l2p", "coda_prompt", "ranpac")
STREAM = ["--stream", "digits", "--tasks", "3", "--stream.max_train_per_class", "40",
          "--stream.max_test_per_class", "20", "--backbone", "tiny", "--recipe", "none"]  # fmt: skip
COMPARED = ["compare", "--methods", "simplecil,er,lora,ewc,l2p", "--jobs", "2", *STREAM]
SETTINGS = {"ranpac": {"width": 500}}
GONE = 20.0  # seconds within which the processes of a killed comparison must be gone

Facts = dict[str, Any]


def learned(method: str) -> list[str]:
    """The command that learns a method, without its folder."""
    settings = [f"--method.{key}={value}" for key, value in SETTINGS.get(method, {}).items()]
    return ["run", "--method", method, *settings, *STREAM, "--save-steps", "7"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 100), ("comparisons", 10), ("sizes", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    root, draw, begun = Path(tempfile.mkdtemp(prefix="everlearn-kill-")), random.Random(args.seed), time.perf_counter()
    warm_up(root)
    tally = {"kills": 0, "runs": 0, "comparisons": 0, "left_running": 0, "unequal": 0}
    for number, method in enumerate(METHODS):
        kills = args.kills * (number + 1) // len(METHODS) - args.kills * number // len(METHODS)
        kill_runs(root / method, learned(method), kills, draw, tally)
    kill_comparisons(root / "compare", args.comparisons, draw, tally)
    on_full_disk = [sys.executable, str(Path(__file__).with_name("full_disk.py")), "--sizes", str(args.sizes)]
    apart = ["unshare", "--map-root-user", "--mount"]  # a mount that nobody else sees, and that ends with the process
    may_mount = shutil.which(apart[0]) and not subprocess.run([*apart, "true"], stderr=subprocess.DEVNULL).returncode
    said = subprocess.run([*(apart if may_mount else []), *on_full_disk], stdout=subprocess.PIPE, text=True).stdout
    print(said, end="")
    full = json.loads(said.splitlines()[-1])
    tally["unequal"] += full.pop("unequal")
    print(json.dumps({**tally, **full, "minutes": round((time.perf_counter() - begun) / 60, 1)}))
    if wrong := tally["unequal"] + tally["left_running"] + full["unclear"]:
        print(f"{wrong} wrong: folders and output are kept in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


def kill_runs(root: Path, command: Sequence[str], kills: int, draw: random.Random, tally: dict[str, int]) -> None:
    """Kill runs of the command, and their resumed runs, until there were so many kills."""
    durations, references = [], []
    for name in ("reference", "repeated"):  # the first run is slower, and both must be equal
        started = time.perf_counter()
        assert wait(start([*command, "--out", root / name], root / f"{name}.txt", root / f"cache-{name}")) == 0, root
        durations.append(time.perf_counter() - started)
        references.append(facts(root / name))
    outcome = differences(*references)
    done, number = 0, 0
    while done < kills:
        folder, said = root / f"run-{number:03d}", root / f"run-{number:03d}.txt"
        cache = root / ("cache-shared" if number % 2 else f"cache-{number:03d}")
        number += 1
        for _ in range(min(3, kills - done)):
            pid = start(continued(command, folder), said, cache)
            time.sleep(draw.uniform(0, min(durations)))
            os.kill(pid, signal.SIGKILL)
            if wait(pid) != -signal.SIGKILL:
                break  # it had ended
            done += 1
        code = wait(start(continued(command, folder), said, cache))
        outcome += [f"code {code}"] if code else differences(references[0], facts(folder))
    tally["kills"] += done
    tally["runs"] += number
    tally["unequal"] += len(outcome)
    print(f"{root.name:<14} {min(durations):.1f} s uninterrupted: {done} kills of {number} runs; "
          f"{'; '.join(outcome) or 'all equal'}", flush=True)  # fmt: skip


def kill_comparisons(root: Path, number: int, draw: random.Random, tally: dict[str, int]) -> None:
    """Kill comparisons, but not the processes beside them, and repeat them at once."""
    started = time.perf_counter()
    assert wait(start([*COMPARED, "--out", root / "reference"], root / "reference.txt", root / "cache")) == 0, root
    duration = time.perf_counter() - started
    reference, kills = compared(root / "reference"), 0
    for i in range(number):
        folder, said, cache = root / f"out-{i:03d}", root / f"out-{i:03d}.txt", root / f"cache-{i:03d}"
        orphans: set[int] = set()
        for _ in range(2):
            pid = start([*COMPARED, "--out", folder], said, cache)
            time.sleep(draw.uniform(0, duration))
            os.kill(pid, signal.SIGKILL)
            kills += wait(pid) == -signal.SIGKILL
            orphans |= processes(folder)
        pid, killed = start([*COMPARED, "--out", folder], said, cache), time.perf_counter()
        while orphans & processes(folder) and time.perf_counter() < killed + GONE:
            time.sleep(0.1)
        left, gone = orphans & processes(folder), time.perf_counter() - killed
        for orphan in left:
            os.kill(orphan, signal.SIGKILL)
        code = wait(pid)
        outcome = [f"code {code}"] if code else differences(reference, compared(folder))
        tally["left_running"] += len(left)
        tally["unequal"] += len(outcome)
        print(f"comparison {i:<3} {len(orphans)} orphans, gone after {gone:.1f} s; {'; '.join(outcome) or 'equal'}",
              flush=True)  # fmt: skip
    tally["comparisons"] = number
    tally["kills"] += kills


# -- processes ---------------------------------------------------------------------------------
def warm_up(root: Path) -> None:
    """Import all that a run needs, before anything is forked or measured."""
    torch.set_num_threads(1)
    os.environ["EVERLEARN_CACHE"] = str(root / "cache-warm")
    small = {"name": "digits", "tasks": 2, "max_train_per_class": 3, "max_test_per_class": 2}
    for method in METHODS:
        run({"name": method, **SETTINGS.get(method, {})}, small, backbone="tiny", out=root / "warm" / method)


def start(command: Sequence[str | Path], said: Path, cache: Path, prepare: Callable[[], Any] = lambda: None) -> int:
    """Execute a command of everlearn in a process of its own; its output goes to the end of the file `said`."""
    said.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with open(said, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["EVERLEARN_CACHE"] = str(cache)
        prepare()
        code = cli.main([str(word) for word in command])
    except BaseException:  # the child must never return to the loop of the parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of the process, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def processes(folder: Path) -> set[int]:
    """The processes that were started for a run in the folder."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in file.read_bytes():
                found.add(int(file.parent.name))
        except OSError:  # it has ended
            continue
    return found


def continued(command: Sequence[str], folder: Path) -> list[str | Path]:
    """The command that goes on in the folder."""
    return ["resume", folder] if (folder / "config.yaml").exists() else [*command, "--out", folder]


# -- what must be equal ------------------------------------------------------------------------
def facts(folder: Path) -> Facts:
    """All that a finished run says; JSON stores floats without loss."""
    results = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = checkpoint.newest(folder / "checkpoints")
    assert name is not None
    saved = checkpoint.load(folder / "checkpoints", name)
    tensors = {key: (value.dtype, value.shape, value.flatten().view(torch.uint8).numpy().tobytes())
               for part in (saved.method, saved.training) for key, value in part.items()}  # fmt: skip
    return {
        "results": {key: value for key, value in results.items() if key not in TIMINGS},
        "log": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "checkpoint": name, "tensors": tensors, "report": (folder / "report.html").exists(),
    }  # fmt: skip


def compared(folder: Path) -> Facts:
    """All that a finished comparison says: the facts of every run, and who has finished."""
    results = json.loads((folder / "compare.json").read_text())["results"]
    methods = [result["method"] for result in results if "curve" in result]
    every = {method: facts(folder / method) for method in methods}
    return {"methods": methods, **{f"{key} of {m}": value for m in methods for key, value in every[m].items()}}


def differences(expected: Facts, found: Facts) -> list[str]:
    """One entry, which names what differs, or none."""
    different = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    return ["differs: " + ", ".join(different)] if different else []


if __name__ == "__main__":
    raise SystemExit(main())
