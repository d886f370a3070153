"""Every measuring script can be imported, its examples hold, and its first lines name options that it has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from everlearn import streams
from everlearn.testing import toy_stream

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = sorted([*BENCH.glob("*.py"), *BENCH.glob("beside/*.py")])

LOOK = """
import contextlib, doctest, importlib, io, json, sys
from pathlib import Path

found = {}
for script in map(Path, sys.argv[1:]):
    sys.path.insert(0, str(script.parent))
    module = importlib.import_module(script.stem)
    code, said = None, io.StringIO()
    if hasattr(module, "main"):
        sys.argv = [str(script), "--help"]
        try:
            with contextlib.redirect_stdout(said):
                code = module.main()
        except SystemExit as end:
            code = end.code
    with contextlib.redirect_stdout(sys.stderr):
        wrong = doctest.testmod(module).failed
    found[script.stem] = {"told": module.__doc__, "code": code, "help": said.getvalue(), "wrong": wrong}
print(json.dumps(found))
"""
"""Imports all scripts in one process, which takes a second where a process for each would take a minute."""


def test_scripts_can_be_imported_and_have_the_options_that_they_name() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK, *map(str, SCRIPTS)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {script.stem for script in SCRIPTS}
    for name, script in found.items():
        assert script["wrong"] == 0, f"{name}: {done.stderr}"
        if name not in ("common", "kept_runs", "shared"):  # parts of the others
            assert script["code"] == 0, name
            usage, options = usage_of(script["told"], name), script["help"].rpartition("\noptions:")[2]
            assert usage, f"the docstring of {name} has no line with its command"
            assert named_in(usage) <= named_in(options), name


def usage_of(told: str, name: str) -> str:
    """The commands at the head of a script, which may go on in further lines."""
    return "\n".join(re.findall(rf"^ {{4}}python (?:-P )?bench/(?:beside/)?{name}\.py.*(?:\n {{5,}}.*)*", told, re.M))


def named_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def test_a_finished_run_is_taken_only_for_the_same_settings_data_and_seed(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import common

    section, stream = {"name": "lda"}, toy_stream(tasks=2)
    first = common.learned(section, stream, "tiny", 0, tmp_path / "run")
    assert common.learned(section, stream, "tiny", 0, tmp_path / "run") == first
    others = [({"name": "simplecil"}, stream, "tiny", 0), ({**section, "shrinkage": 0.5}, stream, "tiny", 0),
              (section, streams.load("digits", tasks=2, max_train_per_class=3), "tiny", 0),
              (section, stream, "minilm", 0), (section, stream, "tiny", 1)]  # fmt: skip
    for other in others:
        with pytest.raises(SystemExit, match="holds a run with other values of"):
            common.learned(*other, tmp_path / "run")
