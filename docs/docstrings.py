"""Prepares docstrings for mkdocstrings, which knows Google's sections only."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Examples without a heading get one, and several arguments on one line get a line each."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        names = [parameter.name for parameter in getattr(obj, "parameters", [])]
        lines: list[str] = []
        in_example = False
        for line in obj.docstring.value.split("\n"):
            if line.startswith(">>> ") and not in_example:
                lines.append("Examples:")
            in_example = line.startswith(">>> ") or (in_example and line != "")
            if names and line.startswith("    "):
                line = re.sub(rf"(?<=[.;]) ({'|'.join(map(re.escape, names))}): ", r"\n    \1: ", line)
            lines.append("    " + line if in_example else line)
        obj.docstring.value = "\n".join(lines)
