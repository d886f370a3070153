"""report.html: one self-contained file that shows one run or compares several; it loads nothing from the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everlearn.errors import EverlearnError
from everlearn.files import write_whole

__all__ = ["render", "write_page", "write_report"]


def write_report(directories: Sequence[Path], out: Path, recommendation: str | None = None) -> Path:
    """Write the report of one run folder, or the comparison of several.

    Args:
        directories: run folders; the results.json of each is read.
        out: the file to write. It is replaced atomically.
        recommendation: a text that is shown at the top of a comparison.

    Returns:
        `out`.

    Raises:
        EverlearnError: if a folder has no results.json, or if the file cannot be read.
    """
    return write_page(render([_read(Path(directory)) for directory in directories], recommendation), Path(out))


def render(results: Sequence[Mapping[str, Any]], recommendation: str | None = None) -> str:
    """Return the page as text: the report of one run, or a comparison of several.

    Args:
        results: the contents of each results.json. A method without a result is given as
            {"method", "error"} or {"method", "skipped"}.
        recommendation: a text that is shown at the top of a comparison.

    Raises:
        ValueError: if there is nothing to show.

    >>> "no memory" in render([{"method": "l2p", "error": "no memory"}])
    True
    """
    from everlearn.report.page import page

    if not results:
        raise ValueError("a report needs the results of at least one run")
    return page(results, recommendation)


def write_page(text: str, out: Path) -> Path:
    """Write a page; `out` never holds half of one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # A class name may contain half a surrogate pair, which UTF-8 cannot encode; it becomes a character reference.
    data = text.encode("utf-8", "xmlcharrefreplace")
    write_whole(out, data)
    return out


def _read(directory: Path) -> dict[str, Any]:
    file = directory / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EverlearnError(
            f"{directory} has no results.json: give the folder of a finished run, or finish this run with "
            f"`everlearn resume {directory}`"
        ) from None
    except ValueError as error:
        raise EverlearnError(f"{file} is not valid JSON ({error}): repeat the run in a new folder") from None
    if not isinstance(results, dict) or "method" not in results:
        raise EverlearnError(f"{file} has no entry 'method': everlearn did not write this file")
    return results
