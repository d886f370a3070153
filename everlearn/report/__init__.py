"""report.html: one self-contained file that shows one run or compares several; it loads nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everlearn.errors import EverlearnError
from everlearn.files import read_bytes, write_whole
from everlearn.metrics.gate import NEW, OLD, Least
from everlearn.schemas.results import read_results
from everlearn.schemas.several import read_comparison

TITLE_END = b" \xc2\xb7 everlearn</title>"
"""What every report has in its head."""

__all__ = ["render", "write_page", "write_report"]


def write_report(directories: Sequence[Path], out: Path, recommendation: str | None = None) -> Path:
    """Write the report of one run folder, or the comparison of several.

    Args:
        directories: run folders, or folders of comparisons. The recommendation of a single comparison is shown.
        out: the file to write. An earlier report is replaced atomically; any other file is left alone.
        recommendation: a text that is shown at the top of a comparison.

    Returns:
        `out`.

    Raises:
        EverlearnError: if a folder has no results.json, if the file cannot be read, or if `out` is not a report.

    >>> import tempfile
    >>> from everlearn import run
    >>> folder = Path(tempfile.mkdtemp())
    >>> small = {"name": "clinc150", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 1}
    >>> _ = run("simplecil", small, backbone="tiny", out=folder / "run")
    >>> write_report([folder / "run"], folder / "report.html").name
    'report.html'
    """
    if out.exists() and (not out.is_file() or TITLE_END not in read_bytes(out)[:100_000]):
        raise EverlearnError(f"{out} exists already and is not a report of everlearn: give another file with --out")
    results: list[dict[str, Any]] = []
    least: Least = (OLD, NEW)
    for directory in directories:
        if (directory / "compare.json").is_file():
            comparison = read_comparison(directory / "compare.json")
            results += comparison.get("results", [])
            if len(directories) == 1:
                recommendation = comparison.get("recommendation")
                old, new = comparison.get("gate", least)
                least = old, new
        elif (directory / "results.json").is_file():
            results.append(read_results(directory / "results.json"))
        else:
            remedy = f"give the folder of a finished run, or finish this run with `everlearn resume {directory}`"
            raise EverlearnError(f"{directory} has no results.json: {remedy}")
    if not results:
        raise EverlearnError(f"{directories[0]}: no method of this comparison has finished yet")
    return write_page(render(results, recommendation, least), out)


def render(results: Sequence[Mapping[str, Any]], recommendation: str | None = None, least: Least = (OLD, NEW)) -> str:
    """Return the page as text: the report of one run, or a comparison of several.

    Args:
        results: the contents of each results.json. A method without a result is given as
            {"method", "error"} or {"method", "skipped"}.
        recommendation: a text that is shown at the top of a comparison.
        least: what the gate of a comparison asks for of joint's score on old tasks, and on the newest one.

    Raises:
        ValueError: if there is nothing to show.

    >>> "no memory" in render([{"method": "l2p", "error": "no memory"}])
    True
    """
    from everlearn.report.page import page

    if not results:
        raise ValueError("a report needs the results of at least one run")
    return page(results, recommendation, least)


def write_page(text: str, out: Path) -> Path:
    """Write a page; `out` never holds half of one.

    Raises:
        OSError: the file cannot be written.

    >>> import tempfile
    >>> write_page("<p>a report</p>", Path(tempfile.mkdtemp()) / "report.html").read_text()
    '<p>a report</p>'
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # A class name may contain half a surrogate pair, which UTF-8 cannot encode; it becomes a character reference.
    write_whole(out, text.encode("utf-8", "xmlcharrefreplace"))
    return out
