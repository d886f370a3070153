"""Kill runs at random times, resume them, and compare the results bit for bit.

    python bench/kill.py [--kills 20] [--seed 0] [--method er] [--epochs 20] [--save-steps 10]

Two runs are not interrupted; their results.json must be equal and is the reference. All further runs are the
same run, killed with SIGKILL at a time drawn uniformly over the duration of the reference, then resumed by
another process. Every second run uses a common feature store, the others have one each. Only the fields that
measure the execution (`everlearn.results.TIMINGS`) may differ. The processes are forked from one that has
already imported everything, so that the kill hits the run itself and not its start-up. The exit code is 1
after any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from everlearn import checkpoint
from everlearn.protocol import resume, run
from everlearn.results import TIMINGS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 20), ("seed", 0), ("epochs", 20), ("save-steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--method", default="er", help="any method that trains; l2p also uses the feature store")
    args = parser.parse_args()
    torch.set_num_threads(1)
    arguments = {
        "method": {"name": args.method, "epochs": args.epochs, "lr": 1e-3}, "backbone": "tiny",
        "save_steps": args.save_steps,
        "stream": {"name": "digits", "max_train_per_class": 40, "max_test_per_class": 20},
    }  # fmt: skip
    root = Path(tempfile.mkdtemp(prefix="everlearn-kill-"))

    def start(folder: Path, cache: Path, call: Callable[..., Any], **more: Any) -> int:
        return fork(folder, cache, lambda: call(**more))

    def learn(name: str, cache: Path) -> int:
        return start(root / name, cache, run, **arguments, out=root / name / "run")

    warm_up(root)
    duration = float("inf")
    for name in ("reference", "repeated"):  # two runs: the first is slower, and both must be equal
        started = time.perf_counter()
        if code := wait(learn(name, root / f"cache-{name}")):
            print(f"the {name} run failed with code {code}: see {root / name}")
            return 1
        duration = min(duration, time.perf_counter() - started)
    reference = facts(root / "reference" / "run")
    if facts(root / "repeated" / "run") != reference:
        print(f"two uninterrupted runs differ: see {root}")
        return 1
    print(f"{args.method} on digits, tiny, {args.epochs} epochs: {duration:.1f} s uninterrupted, "
          f"final accuracy {reference['final_accuracy']:.3f}")  # fmt: skip
    print(f"{'run':>4} {'cache':>7} {'killed after':>13}  {'newest checkpoint':<24} {'result':<10}")

    draw, outcomes = random.Random(args.seed), []
    for number in range(args.kills):
        name, shared = f"run-{number:03d}", bool(number % 2)
        cache = root / ("cache-shared" if shared else f"cache-{number:03d}")
        moment = draw.uniform(0, duration)
        pid = learn(name, cache)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        killed = wait(pid) == -signal.SIGKILL
        folder = root / name / "run"
        found = checkpoint.newest(folder / "checkpoints") or "none"
        begun = (folder / "config.yaml").exists()
        code = wait(start(root / name, cache, resume, directory=folder) if begun else learn(name, cache))
        outcome = judge(code, folder, reference)
        outcomes.append((killed, outcome))
        when = f"{moment:.2f} s" if killed else "had finished"
        print(f"{number:>4} {'shared' if shared else 'own':>7} {when:>13}  {found:<24} {outcome}", flush=True)
    killed = sum(was for was, _ in outcomes)
    wrong = sum(outcome != "identical" for _, outcome in outcomes)
    print(f"{killed} of {args.kills} runs killed before they finished; {args.kills - wrong} identical, {wrong} not")
    if wrong:
        print(f"folders and errors are kept in {root}")
        return 1
    shutil.rmtree(root)
    return 0


def warm_up(root: Path) -> None:
    """Execute a run of two seconds before anything is forked or measured, so that all late imports are done."""
    os.environ["EVERLEARN_CACHE"] = str(root / "cache-warm")
    small = {"name": "digits", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 2}
    run({"name": "er", "epochs": 1}, small, backbone="tiny", out=root / "warm")


def fork(folder: Path, cache: Path, work: Callable[[], Any]) -> int:
    """Execute `work` in a child process with the feature store `cache`; errors go to a file in `folder`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["EVERLEARN_CACHE"] = str(cache)
        work()
        code = 0
    except BaseException:  # the child must never return to the loop of the parent
        (folder / "error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of the child, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def facts(folder: Path) -> dict[str, Any]:
    """The fields that must be bit-identical; JSON stores floats without loss."""
    results = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if key not in TIMINGS}


def judge(code: int, folder: Path, reference: dict[str, Any]) -> str:
    if code:
        return f"resume failed with code {code}"
    found = facts(folder)
    different = [key for key in {**reference, **found} if found.get(key) != reference.get(key)]
    if different:
        return "differs: " + ", ".join(different)
    missing = [name for name in ("report.html", "metrics.jsonl", "config.yaml") if not (folder / name).exists()]
    return f"lacks {', '.join(missing)}" if missing else "identical"


if __name__ == "__main__":
    raise SystemExit(main())
