"""Give everlearn damaged and absurd input of every kind, and count what must never happen.

    python bench/fuzz.py [--inputs 20000] [--seed 0] [--targets runs,tables] [--jobs 2]
    python bench/fuzz.py --seed 0 --only runs:123        # one input again; its folder is kept

An input is a file, a folder, a configuration, a command line or an environment variable: a valid one, damaged in its
bytes or in its structure (bench/fuzzing/damage.py), or an odd one (bench/fuzzing/targets.py). A message of one line is
the right answer. These are failures:

    tracebacks    an error that is no EverlearnError, a message of several lines, with control characters or too long
    crashes       the process died
    hangs         more than 20 seconds, apart from trainings, which are interrupted; or a question on the terminal
    over_2_gib    more than 2 GiB of memory
    code_run      code of the input ran, a program was started, or a pickle was read
    outside       a file outside of the input's own folder was written or removed, or the network was used

The inputs run in forked processes of some 50, without privileges (root becomes the user nobody), in a temporary folder.
The same seed gives the same inputs. The last line is JSON; the exit code is 1 after any failure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SLICE = 50
KINDS = ("tracebacks", "crashes", "hangs", "over_2_gib", "code_run", "outside")
NOBODY = 65534


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", help="a comma-separated list; all by default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", metavar="TARGET:NUMBER", help="one input")
    args = parser.parse_args()
    without_privileges()
    letters = "".join(random.SystemRandom().choices(string.ascii_lowercase, k=12))  # digits would be damaged as numbers
    base = Path(tempfile.gettempdir()).resolve() / f"everlearn-fuzz-{letters}"
    base.mkdir(mode=0o700)
    prepare_environment(base)

    started = time.perf_counter()
    fuzzer = Fuzzer(base, args.seed)
    print(f"prepared in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if args.only:
        target, _, number = args.only.partition(":")
        inputs = [(target, int(number))]
    else:
        inputs = fuzzer.plan(args.inputs, args.targets)
    fuzzer.run(inputs, args.jobs)
    for line in fuzzer.lines():
        print(line)
    counts = {kind: fuzzer.counts[kind] for kind in KINDS}
    by_target = Counter(target for target, _ in inputs)
    print(
        json.dumps(
            {
                "inputs": len(inputs),
                **counts,
                "seed": args.seed,
                "seconds": round(time.perf_counter() - started),
                "by_target": by_target,
                "accepted": fuzzer.accepted,
            }
        )
    )
    if args.only:
        print(f"its folder: {base / 'own'}", file=sys.stderr)
    else:
        shutil.rmtree(base, ignore_errors=True)
    return int(any(counts.values()))


def without_privileges() -> None:
    """If root started this process, start it anew as the user nobody.

    The interpreter, its packages and this file may lie where only root can look (a virtual environment below a folder
    made by `mktemp -d`, for example). An open descriptor of a folder leads there all the same.
    """
    if os.geteuid() != 0:
        return
    home = _opened(sys.base_prefix)
    root = Path(__file__).absolute().parents[1]
    # The repository's own folder may be closed to others, unlike those in it.
    public = Path(tempfile.mkdtemp())
    for name in ("bench", "everlearn", "tests"):
        (public / name).symlink_to(_opened(str(root / name)))
    for path in (public, *public.iterdir()):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    paths = [str(public)]
    for path in sys.path:
        if path.startswith(sys.base_prefix):
            paths.append(path.replace(sys.base_prefix, home, 1))
        elif os.path.isdir(path) and Path(path).resolve() != root:
            paths.append(_opened(path))
    environment = {
        **os.environ,
        "PYTHONHOME": home,
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": f"{home}/lib",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    python = f"{home}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        done = subprocess.run(
            [sys.executable, f"{public}/bench/fuzz.py", *sys.argv[1:]],
            executable=python,
            env=environment,
            close_fds=False,
        )
    finally:
        shutil.rmtree(public)
    sys.exit(done.returncode)


def _opened(folder: str) -> str:
    """A path of the folder that any user can follow in this process and in what it executes."""
    path = Path(folder).resolve()
    if all(place.stat().st_mode & 0o001 for place in (path, *path.parents)):
        return folder  # libraries that resolve the other kind of path end in the closed folder again
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(descriptor, True)
    return f"/proc/self/fd/{descriptor}"


def prepare_environment(base: Path) -> None:
    """Let everything that a library may write go to the fuzzer's own folder; nothing uses a network."""
    for name in ("own", "own/home", "own/tmp", "outside", "bin"):
        (base / name).mkdir()
    own = base / "own"
    (base / "outside" / "canary.txt").write_text("alive\n")
    (base / "bin" / "gs").write_text("#!/bin/sh\nexit 0\n")  # what Pillow starts for PostScript
    (base / "bin" / "gs").chmod(0o755)
    for name in list(os.environ):
        if name.startswith("EVERLEARN_"):
            del os.environ[name]
    os.environ.update(
        HOME=str(own / "home"),
        TMPDIR=str(own / "tmp"),
        HF_HOME=str(own / "home"),
        MPLCONFIGDIR=str(own / "home"),
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",
        PATH=f"{base / 'bin'}:{os.environ['PATH']}",
    )
    tempfile.tempdir = None
    sys.stdin = open(os.devnull)  # noqa: SIM115


class Fuzzer:
    """Gives inputs to everlearn and counts the failures.

    Args:
        base: a new folder; `base/own` is the folder of the inputs.
        seed: of all that is drawn.
    """

    def __init__(self, base: Path, seed: int) -> None:
        # Imported here, in the process without privileges; what is imported before the fork costs no input any time.
        import importlib
        import pkgutil

        import torch
        from fuzzing import damage, seeds

        import everlearn
        from everlearn import config, methods

        torch.set_num_threads(1)
        for module in pkgutil.walk_packages(everlearn.__path__, "everlearn."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        self.own, self.outside, self.seeds, self.seed = base / "own", base / "outside", base / "seeds", seed
        # What an input leaves out must not cost more than what it names.
        config.DEFAULTS.update(stream={"name": str(self.seeds / "data" / "table.csv")}, method={"name": "simplecil"})
        methods.RanPAC.__init__.__kwdefaults__["width"] = 30
        said, sys.stderr = sys.stderr, open(base / "seeds.log", "w")  # noqa: SIM115  loggers keep it
        try:
            seeds.build(self.seeds)
        finally:
            sys.stderr = said
        os.environ["EVERLEARN_CACHE"] = str(self.own / "cache")
        self.values, self.texts = damage.odd_values(600, seed), damage.odd_texts(600, seed)
        self.counts, self.accepted = Counter[str](), Counter[str]()
        self.failures: dict[tuple[str, str], list[Any]] = {}
        self.alive = self._canaries()

    def plan(self, count: int, chosen: str | None) -> list[tuple[str, int]]:
        """Which inputs are tried: the name of a target, and a number."""
        from fuzzing.targets import TARGETS

        names = chosen.split(",") if chosen else list(TARGETS)
        drawn = random.Random(self.seed).choices(names, [TARGETS[name][1] for name in names], k=count)
        numbers: Counter[str] = Counter()
        inputs = []
        for name in drawn:
            inputs.append((name, numbers[name]))
            numbers[name] += 1
        return inputs

    def run(self, inputs: list[tuple[str, int]], jobs: int) -> None:
        """Try all inputs, `jobs` processes at a time."""
        waiting = [inputs[start : start + SLICE] for start in range(0, len(inputs), SLICE)]
        running: dict[int, tuple[list[tuple[str, int]], Path]] = {}
        done, number = 0, 0
        while waiting or running:
            while waiting and len(running) < jobs:
                part, number = waiting.pop(0), number + 1
                log = self.own.parent / f"part-{number}"
                running[self._start(part, log)] = (part, log)
            pid, status = os.wait()
            part, log = running.pop(pid)
            finished = self._read(part, log, os.waitstatus_to_exitcode(status))
            done += finished
            if finished < len(part):
                waiting.insert(0, part[finished:])
            if self._canaries() != self.alive:
                self._fail("outside", "canary", part[0], "a file outside was changed", f"one of {part[0]} … {part[-1]}")
                self.alive = self._canaries()
            if sys.stderr.isatty():
                print(f"\r{done:,} of {len(inputs):,}, {sum(self.counts.values())} failures", end="", file=sys.stderr)

    def _start(self, part: list[tuple[str, int]], log: Path) -> int:
        """Fork a process that tries these inputs and writes what it finds to a file, line by line."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        try:
            self._try_all(part, log)
            os._exit(0)
        except BaseException:
            import traceback

            Path(f"{log}.dump").write_text(traceback.format_exc())
            os._exit(3)

    def _try_all(self, part: list[tuple[str, int]], log: Path) -> None:
        import faulthandler

        from fuzzing.damage import Draw
        from fuzzing.targets import TARGETS
        from fuzzing.watch import Guard, attempt, limit_memory

        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # what libraries in C print
            os.dup2(quiet, descriptor)
        dump = open(f"{log}.dump", "w")  # noqa: SIM115  faulthandler keeps it
        faulthandler.enable(dump)
        limit_memory()
        guard = Guard(self.own)
        with open(log, "w", buffering=1, encoding="utf-8") as lines:
            for target, number in part:
                place = self.own / f"{target}-{number}"
                place.mkdir()
                draw = Draw(f"{self.seed} {target} {number}", self.values, self.texts, self.outside)
                case = TARGETS[target][0](draw, self.seeds, place)
                lines.write(json.dumps({"told": case.told}) + "\n")
                dump.seek(0)
                dump.truncate()
                said, found = attempt(case, guard, dump)
                failures = [(failure.kind, failure.key, failure.detail) for failure in found]
                lines.write(json.dumps({"said": said, "failures": failures}) + "\n")
                if len(part) > 1:
                    _remove(place)

    def _read(self, part: list[tuple[str, int]], log: Path, code: int) -> int:
        """Note what a process has found; returns how many inputs it has tried."""
        from fuzzing.watch import place_of_dump

        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        finished, told = 0, ""
        for line in lines:
            told = line.get("told", told)
            for kind, key, detail in line.get("failures", ()):
                self._fail(kind, key, part[finished], detail, told)
            if "failures" in line:
                self.accepted[part[finished][0]] += not line["said"]
                finished += 1
                if len(part) == 1:
                    print(f"{told}\n{line['said']}")
        if finished < len(part):
            dump = Path(f"{log}.dump").read_text(errors="replace")
            if code == 3 or "told" not in (lines or [{}])[-1]:
                raise SystemExit(f"the fuzzer itself failed at {part[finished]} with code {code}:\n{dump}")
            kind, what = ("hangs", "hang") if code == 1 else ("crashes", f"signal {-code}")
            self._fail(kind, f"{what} at {place_of_dump(dump)}", part[finished], dump.replace("\n", " ")[:300], told)
            if len(part) > 1:
                _remove(self.own / "{}-{}".format(*part[finished]))
            finished += 1
        log.unlink(missing_ok=True)
        Path(f"{log}.dump").unlink(missing_ok=True)
        return finished

    def _fail(self, kind: str, key: str, which: tuple[str, int], detail: str, told: str) -> None:
        self.counts[kind] += 1
        first = {"only": "{}:{}".format(*which), "detail": detail, "told": told, "times": 0}
        known = self.failures.setdefault((kind, key), first)  # type: ignore[arg-type]
        known["times"] += 1  # type: ignore[call-overload]

    def lines(self) -> list[str]:
        """One line for each different failure, with its first input."""
        lines = []
        for (kind, key), found in sorted(self.failures.items()):
            again = f"--seed {self.seed} --only {found['only']}"
            lines.append(f"{kind}: {key} x{found['times']}: {found['detail']} | {again} | {found['told']}")
        return lines

    def _canaries(self) -> str:
        hasher = hashlib.sha256()
        for path in sorted(self.outside.rglob("*")):
            hasher.update(f"{path} {path.stat().st_mode}".encode() + (path.read_bytes() if path.is_file() else b""))
        return hasher.hexdigest()


def _remove(place: Path) -> None:
    for folder, names, _ in os.walk(place):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o700)
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
