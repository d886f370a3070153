"""The fuzzer notices each kind of failure, and a small sample of its inputs has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"

WATCHED = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {bench!r})
from fuzzing import watch
from everlearn.errors import EverlearnError

class TwoLines(EverlearnError):
    def __str__(self): return "a\\nb"

def say(error): raise error

watch.SECONDS = {seconds}
own, outside = Path("own").resolve(), Path("outside").resolve()
guard = watch.Guard(own)
watch.limit_memory()
calls = {{{calls}}}
found = {{name: watch.attempt(watch.Case(call, "a case", own), guard, sys.stderr) for name, call in calls.items()}}
print(json.dumps({{name: [failure.kind for failure in failures] for name, (_, failures) in found.items()}}))
"""

CALLS = {
    "tracebacks: an error that is no EverlearnError": "{}['x']",
    "tracebacks: a message of two lines": "say(TwoLines())",
    "code_run: a program": "os.system('true')",
    "code_run: a module of the folder": "(sys.path.append(os.getcwd()), __import__('evil'))",
    "code_run: a pickle": "__import__('pickle').loads(b'cos\\nsystem\\n.')",
    "outside: a new file": "(outside / 'x').write_text('x')",
    "outside: a new file through a link": "(Path('y').symlink_to(outside / 'y'), Path('y').touch())",
    "outside: a file that is moved there": "os.replace('evil.py', outside / 'z')",
    "over_2_gib: memory that is used": "bytearray(b'x') * (5 * 2**29)",
    "over_2_gib: memory that is refused": "bytes(2**40)",
    ": a message and a file of the folder": "(Path('x').touch(), say(EverlearnError('a')))",
}


def watched(tmp_path: Path, calls: dict[str, str], seconds: int = 20) -> subprocess.CompletedProcess[str]:
    """Try the calls in a process of its own."""
    for name in ("own", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "evil.py").write_text("")
    told = ", ".join(f"{name!r}: lambda: {call}" for name, call in calls.items())
    script = WATCHED.format(bench=str(BENCH), calls=told, seconds=seconds)
    return subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100)


def test_the_fuzzer_notices_every_kind_of_failure(tmp_path):
    done = watched(tmp_path, CALLS)
    assert done.returncode == 0, done.stderr
    found = {name: set(kinds) for name, kinds in json.loads(done.stdout).items()}
    assert found == {name: {kind} - {""} for name in CALLS for kind in [name.partition(":")[0]]}


def test_the_fuzzer_ends_a_hang(tmp_path):
    done = watched(tmp_path, {"a hang": "__import__('time').sleep(90)"}, seconds=1)
    assert (done.stdout, done.returncode) == ("", 1) and "Timeout" in done.stderr


def test_a_sample_of_inputs_has_no_failure():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCH / "fuzz.py"), "--inputs", "80", "--seed", "1", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["inputs"] == 80 and sum(counts["accepted"].values()) > 10
    assert done.returncode == 0, done.stdout
