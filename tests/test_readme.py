"""What the README says to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from everlearn import methods
from everlearn.command_line import parse

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_every_command_of_the_readme_parses() -> None:
    lines = re.findall(r"^everlearn (.+)$", README, flags=re.M)
    assert len(lines) == 7
    for line in lines:
        parse(shlex.split(line, comments=True))


def test_the_readme_lists_every_method() -> None:
    section = README.split("## Methods")[1].split("## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) == set(methods.names())


def test_the_python_example_names_what_exists() -> None:
    import everlearn

    for name in re.findall(r"everlearn\.(\w+)\(", README.split("```python")[1].split("```")[0]):
        assert callable(getattr(everlearn, name))
        assert callable(getattr(everlearn, name)), "the second access gives the function too"
