"""Runs the code blocks of a Markdown page in order, as a reader would who types them into one folder.

| block | what is done |
|---|---|
| ```` ```NAME title="FILE" ```` | the file is written |
| ```` ```python ```` | it runs; names live on in later blocks |
| ```` ```pycon ```` | it runs, and its results must be those of the page |
| ```` ```console ```` | lines after `$` run; the lines below occur in their output, in order; digits may differ |

In a console a line of `...` stands for any lines. Commands that install something are not run.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from everlearn.cli import main

BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^```$", flags=re.M | re.S)
INSTALLS = ("pip", "python -m venv", "source", "git")


def blocks(page: Path) -> Iterator[tuple[str, str | None, str]]:
    """The language, the title and the text of each block."""
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield found[1], found[2] or None, found[3]


def run_page(page: Path, replace: Mapping[str, str] | None = None) -> int:
    """Run the blocks of the page in the current folder and return how many ran.

    Args:
        replace: what stands for what, where a machine lacks something, such as the weights of an encoder.
    """
    names: dict[str, Any] = {"__name__": page.stem}
    count = 0
    for language, title, text in blocks(page):
        for old, new in (replace or {}).items():
            text = text.replace(old, new)
        if title:
            Path(title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, page.name, "exec"), names)
        elif language == "pycon":
            _doctest(text, names, page.name)
        elif language == "console":
            _console(text)
        else:
            continue
        count += 1
    return count


def _doctest(text: str, names: dict[str, Any], page: str) -> None:
    example = doctest.DocTestParser().get_doctest(text, names, page, None, None)
    example.globs = names
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    runner.run(example, out=told.append, clear_globs=False)
    assert not runner.failures, "".join(told)


def _console(text: str) -> None:
    for command, expected in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, flags=re.M):
        if not command.startswith(INSTALLS):
            output = run_command(command)
            missing = absent(expected.splitlines(), output)
            assert missing is None, f"`{command}` does not print {missing!r}:\n{output[-3000:]}"


def run_command(command: str) -> str:
    """What a command prints, on standard output and error together."""
    words = shlex.split(command, comments=True)
    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"`{command}` failed: {done.stderr[-3000:]}"
        return done.stdout + done.stderr
    assert words[0] == "everlearn", f"a page may run everlearn and python, not {words[0]}"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(words[1:])
    assert code == 0, f"`{command}` ends with {code}: {output.getvalue()[-3000:]}"
    return output.getvalue()


def absent(expected: list[str], output: str) -> str | None:
    """The first expected line that the output lacks; None where all are there, in order. Digits may differ.

    >>> absent(["final  91.5", "..."], "a\\nfinal 88.25\\n"), absent(["other"], "a")
    (None, 'other')
    """
    lines = iter([_plain(line) for line in output.splitlines()])
    for line in expected:
        if line.strip() not in ("", "...") and not any(_plain(line) in found for found in lines):
            return line
    return None


def _plain(line: str) -> str:
    return " ".join(re.sub(r"\d[\d,.]*", "#", line).split())
