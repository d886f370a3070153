"""report.html: one file that shows a run, or compares several; it opens anywhere and fetches nothing."""

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
        out: the file to write, replaced at once or not at all.
        recommendation: a sentence to open a comparison with.

    Returns:
        `out`.

    Raises:
        EverlearnError: if a folder holds no results.json, or it cannot be read.
    """
    return write_page(render([_read(Path(directory)) for directory in directories], recommendation), Path(out))


def render(results: Sequence[Mapping[str, Any]], recommendation: str | None = None) -> str:
    """The page as text: of one run, or a comparison of several.

    Args:
        results: contents of results.json; {"method", "error"} or {"method", "skipped"} for a method
            without a result.
        recommendation: a sentence to open a comparison with.

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
    # A class name may hold half a surrogate pair, which UTF-8 cannot; it is written as a number.
    data = text.encode("utf-8", "xmlcharrefreplace")
    write_whole(out, data)
    return out


def _read(directory: Path) -> dict[str, Any]:
    file = directory / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EverlearnError(
            f"{directory} holds no results.json: give the folder of a finished run, or finish it with "
            f"`everlearn resume {directory}`"
        ) from None
    except ValueError as error:
        raise EverlearnError(f"{file} is not JSON ({error}): run again into a new folder") from None
    if not isinstance(results, dict) or "method" not in results:
        raise EverlearnError(f"{file} names no method: it was not written by everlearn")
    return results
