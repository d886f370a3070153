"""Kill a process that changes an index, at random moments; what it had acknowledged must be there and nothing half.

    python bench/kill_index.py [--kills 50] [--documents 2000] [--kind hnsw] [--seed 0]
    python bench/kill_index.py --every-call [--documents 2000]

A child process adds, removes, saves (which also compacts), builds a second index beside the served one, and has the
served one take it over, again and again in random order. Before each change it writes to a file what it is going to do,
and after it that it is done. It dies by SIGKILL within a change of a kind that is drawn. Half of the kills come from
outside at a moment drawn uniformly over a typical duration of that change; the others come at one of its calls of the
operating system, also drawn uniformly, and a write is cut in its middle: so short moments between two calls are met as
often as long ones. Then both indexes are opened: each must hold what it held before the change that was interrupted or
after it, in order, with the right vectors, its checksums must fit, and each of some documents must be the nearest one
to its own embedding. The next child goes on with the folders as they were left.

`--every-call` makes each change once, in a process that is killed at its first call, then in one that is killed at its
second, and so on until it ends; afterwards the change must still be possible. The last line is JSON; the exit code is 1
if anything was lost or half.
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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import EverlearnError
from everlearn.retrieval.index import Index
from everlearn.retrieval.stamp import Stamp

DIMENSION = 32
CHANGES = ("add", "remove", "save", "create", "build", "take over")
CALLS = ("open", "pwrite", "fsync", "truncate", "replace", "link", "unlink", "rmdir", "mkdir")
KNOWN = 100  # documents that are looked for after each kill

State = tuple[int, list[str]] | None
"""The number of the space and the ids of an index; None where there is none."""


def stamp(space: int) -> Stamp:
    return Stamp(str(space), "generated", DIMENSION)


def embedded(ids: list[str], space: int) -> np.ndarray:
    """The embeddings of documents in a space; each depends on the number in its id alone."""
    numbers = np.array([int(id[1:]) for id in ids], np.float64)
    waves = np.cos(np.outer(numbers + 1, np.sqrt(np.arange(2, DIMENSION + 2))) + space)
    return (waves / np.linalg.norm(waves, axis=1, keepdims=True)).astype(np.float32)


# -- the process that is killed --------------------------------------------------------------------
class Calls:
    """Counts the calls of the operating system within a change, and kills this process at one of them.

    Args:
        target: the kind of change within which it is killed.
        at: the number of the call, from 1; 0 kills at none.
    """

    def __init__(self, target: str, at: int) -> None:
        self.target, self.at, self.made, self.change = target, at, 0, ""
        for name in CALLS:
            setattr(os, name, partial(self._call, name, getattr(os, name)))

    def begin(self, change: str) -> None:
        self.change, self.made = change, 0

    def _call(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.made += bool(self.change)
        if self.change == self.target and self.made == self.at:
            if name == "pwrite":
                function(args[0], args[1][: len(args[1]) // 2], args[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)


def work(root: Path, said: Path, first: int, documents: int, seed: int, target: str, at: int) -> None:
    """Change the index for ever; new documents are numbered from `first` on."""
    draw, number = random.Random(seed), first
    tell = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    index, beside, calls = Index.load(root / "served"), root / "beside", Calls(target, at)
    kind: Any = index.kind

    def change(what: str, do: Callable[[], Any], **facts: Any) -> None:
        os.write(tell, (json.dumps({"do": what, **facts}) + "\n").encode())
        calls.begin(what)
        do()
        made = calls.made
        calls.begin("")
        os.write(tell, (json.dumps({"done": what, "calls": made}) + "\n").encode())

    def add(to: Index, ids: list[str]) -> None:
        to.add(ids, embedded(ids, int(to.stamp.space)), to.stamp)

    def take_over() -> None:
        other = open_or_none(beside)
        if other is None:
            space = int(index.stamp.space) + 1
            change("create", partial(Index.create, beside, stamp(space), kind), space=space)
            other = Index.load(beside)
        there = set(index.ids)
        if gone := [id for id in other.ids if id not in there]:
            change("build", partial(other.remove, gone), remove=gone)
        missing = [id for id in index.ids if id not in other]
        for start in range(0, len(missing), 300):
            part = missing[start : start + 300]
            change("build", partial(add, other, part), add=part)
        change("take over", partial(index.take_over, other))

    while True:
        there = index.ids
        what = draw.choices(("add", "remove", "save", "take over"), (6, 3, 3, 2))[0]
        if what == "add" and len(there) < documents:
            ids = [f"d{number + i}" for i in range(draw.randint(1, 300))]
            number += len(ids)
            change("add", partial(add, index, ids), add=ids)
        elif what == "remove" and len(there) > documents / 4:
            ids = draw.sample(there, draw.randint(1, len(there) // 2))
            change("remove", partial(index.remove, ids), remove=ids)
        elif what == "save":
            change("save", index.save)
        elif what == "take over":
            take_over()


def open_or_none(folder: Path) -> Index | None:
    """An index that was being built, if it was begun."""
    try:
        return Index.load(folder)
    except EverlearnError:
        return None


# -- what must be there ----------------------------------------------------------------------------
def after(change: dict[str, Any], served: State, beside: State) -> tuple[State, State]:
    """Both indexes after a change."""
    what = change["do"]
    if what == "create":
        return served, (change["space"], [])
    if what == "take over":
        return beside, None
    target = beside if what == "build" else served
    assert target is not None
    gone = set(change.get("remove", ()))
    changed = target[0], [id for id in target[1] if id not in gone] + change.get("add", [])
    return (served, changed) if what == "build" else (changed, beside)


def held(folder: Path, draw: random.Random | None) -> State:
    """What an index holds, after a look at all of it.

    Raises:
        AssertionError, EverlearnError: something is half.
    """
    with Index.load(folder) as index:
        index.check()
        ids, space = index.ids, int(index.stamp.space)
        known = draw.sample(ids, min(KNOWN, len(ids))) if draw else []
        vectors = embedded(ids, space)
        assert not ids or np.allclose(index.vectors(ids), vectors, atol=1e-6), "a vector is another document's"
        if known:
            found = index.search(embedded(known, space), stamp(space), 1)[0]
            assert found == [[id] for id in known], "a document is not the nearest to its own embedding"
    return space, ids


def verify(
    root: Path, before: tuple[State, State], change: dict[str, Any] | None, draw: random.Random | None
) -> tuple[State, State]:
    """What both indexes hold now, which is what they held before the interrupted change or after it."""
    later = after(change, *before) if change else before
    served = held(root / "served", draw)
    assert served in (before[0], later[0]), f"the served index lost or gained documents: {change and change['do']}"
    beside_there = open_or_none(root / "beside") is not None
    if change and change["do"] == "take over" and served == later[0]:
        shutil.rmtree(root / "beside", ignore_errors=True)  # as whoever goes on does with an index that was taken over
        return served, None
    if not beside_there:
        assert before[1] is None, "the index beside is gone"
        return served, None
    beside = held(root / "beside", draw)
    assert beside in (before[1], later[1]), f"the index beside lost or gained documents: {change and change['do']}"
    return served, beside


# -- at every call ---------------------------------------------------------------------------------
def every_call(root: Path, documents: int) -> Counter[str]:
    """Kill each change at each of its calls, and return how many kills there were within each.

    Raises:
        AssertionError, EverlearnError: something was lost or half.
    """
    setattr(os, "fsync", lambda fd: None)  # noqa: B010  # a kill loses nothing that the system knows
    ids = [f"d{i}" for i in range(documents)]
    half, more = ids[: documents // 2], [f"d{documents + i}" for i in range(30)]
    begun = root / "begun"
    begun.mkdir()
    with Index.create(begun / "served", stamp(0)) as index:
        index.add(ids, embedded(ids, 0), index.stamp)
    changes: list[dict[str, Any]] = [
        {"do": "add", "add": more}, {"do": "remove", "remove": half}, {"do": "save"},
        {"do": "create", "space": 1}, {"do": "build", "add": ids[documents // 2 :] + more}, {"do": "take over"},
    ]  # fmt: skip
    state: tuple[State, State] = (0, ids), None
    within: Counter[str] = Counter()
    for change in changes:
        for at in range(1, 1000):
            folder = root / f"{change['do']}-{at:03d}"
            shutil.copytree(begun, folder)
            if not _dies(folder, change, at):
                break  # it makes no call of this number
            within[change["do"]] += 1
            now = verify(folder, state, change, None)
            if now == state:
                perform(folder, change)  # what the kill has left is no obstacle
                assert verify(folder, after(change, *state), None, None) == after(change, *state), "it does not go on"
            shutil.rmtree(folder)
        shutil.rmtree(begun)
        begun, state = folder, verify(folder, after(change, *state), None, None)
    return within


def _dies(folder: Path, change: dict[str, Any], at: int) -> bool:
    """Whether the change was killed at the call of this number, or ended."""
    pid = os.fork()
    if not pid:
        try:
            Calls(change["do"], at).begin(change["do"])
            perform(folder, change)
            os._exit(0)
        finally:
            os._exit(70)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), f"{change['do']} failed with code {code}"
    return code != 0


def perform(folder: Path, change: dict[str, Any]) -> None:
    """Make one change."""
    served, beside = folder / "served", folder / "beside"
    what = change["do"]
    if what == "create":
        Index.create(beside, stamp(change["space"]))
        return
    with Index.load(beside if what == "build" else served) as index:
        if what in ("add", "build"):
            index.add(change["add"], embedded(change["add"], int(index.stamp.space)), index.stamp)
        elif what == "remove":
            index.remove(change["remove"])
        elif what == "save":
            index.save()
        else:
            index.take_over(Index.load(beside))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 50), ("documents", 2000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kind", choices=("exact", "hnsw", "ivf"), default="hnsw")
    parser.add_argument("--every-call", action="store_true", help="kill each change once at each of its calls")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # in the process that is killed: the arguments of `work`
    args = parser.parse_args()
    if args.work:
        root, said, *numbers = json.loads(args.work)
        work(Path(root), Path(said), *numbers)
    root, draw = Path(tempfile.mkdtemp(prefix="everlearn-kill-index-")), random.Random(args.seed)
    started = time.perf_counter()
    if args.every_call:
        kills, wrong = Counter[str](), ""
        try:
            kills = every_call(root, args.documents)
        except (AssertionError, EverlearnError) as error:
            wrong = str(error)
        return tell(root, wrong, kills=sum(kills.values()), within=dict(kills), seconds=time.perf_counter() - started)
    Index.create(root / "served", stamp(0), args.kind)
    state: tuple[State, State] = (0, []), None
    typical = {change: Typical() for change in CHANGES}
    within: Counter[str] = Counter()
    acknowledged, first, wrong = 0, 0, ""
    for number in range(args.kills):
        said, target = root / f"said-{number:03d}", CHANGES[number % len(CHANGES)]
        at = draw.randint(1, typical[target].calls) if number % 2 else 0
        given = json.dumps([str(root), str(said), first, args.documents, args.seed * 1000 + number, target, at])
        child = subprocess.Popen([sys.executable, __file__, "--work", given])
        kill_within(child, said, target, bool(at), typical[target], draw)
        lines = said_in(said)
        open_change = lines[-1] if lines and "do" in lines[-1] else None
        for line in lines:
            if "done" in line:
                acknowledged += 1
                typical[line["done"]].calls = max(line["calls"], 1)
            elif line is not open_change:
                state = after(line, *state)
            first += len(line.get("add", ())) * (line.get("do") == "add")
        within[open_change["do"] if open_change else "none"] += 1
        try:
            state = verify(root, state, open_change, draw)
        except (AssertionError, EverlearnError) as error:
            wrong = f"kill {number} at {open_change and open_change['do']}: {error}"
            break
    return tell(root, wrong, kind=args.kind, kills=sum(within.values()), acknowledged=acknowledged, within=dict(within),
                documents=len(state[0][1]) if state[0] else 0, seconds=time.perf_counter() - started)  # fmt: skip


def tell(root: Path, wrong: str, **found: Any) -> int:
    """Print what was found as JSON, and return the exit code."""
    print(json.dumps({**found, "wrong": wrong, "seconds": round(found["seconds"], 1)}))
    if wrong:
        print(f"{wrong}; the folder is kept: {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


@dataclass
class Typical:
    """How long a kind of change takes, and how many calls it makes."""

    seconds: float = 0.01
    calls: int = 10


def said_in(file: Path) -> list[dict[str, Any]]:
    """What the process has said in whole lines."""
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def kill_within(
    child: subprocess.Popen[bytes], said: Path, target: str, by_itself: bool, typical: Typical, draw: random.Random
) -> None:
    """Kill the process within its next change of a kind, or after ten seconds within any; wait for its end."""
    seen, deadline = 0, time.perf_counter() + 10
    while child.poll() is None and time.perf_counter() < deadline:
        lines = said.read_bytes().splitlines() if said.exists() and not by_itself else []
        if len(lines) > seen and lines[-1].startswith(f'{{"do": "{target}"'.encode()):
            begun = time.perf_counter()
            if draw.random() < 0.7:
                time.sleep(draw.uniform(0, typical.seconds))
                break
            # The others are let through, and say how long such a change takes.
            while len(said.read_bytes().splitlines()) == len(lines) and time.perf_counter() < deadline:
                time.sleep(0.0001)
            typical.seconds = 0.5 * typical.seconds + 0.5 * (time.perf_counter() - begun)
        seen = len(lines)
        time.sleep(0.0001 if seen else 0.01)
    child.kill()
    if child.wait() != -signal.SIGKILL:
        raise SystemExit(f"the process ended by itself; what it did is in {said}")


if __name__ == "__main__":
    raise SystemExit(main())
