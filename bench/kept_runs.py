"""What is kept of the finished runs of a page, so that the page can be continued on another machine.

docs/results/single_runs/PAGE.jsonl has a line for each run: its results, without what no page shows. A page shows sets
of runs, such as those with one size of the memory, and in each set the seeds of every method.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

from everlearn.files import write_whole

Run = dict[str, Any]
Rows = dict[str, list[Run]]
"""The seeds of each method."""

LEFT_OUT = ("per_class", "confusion", "calibration", "diagnostics", "seconds_per_task", "answer_per_task",
            "stored_bytes_per_task")  # fmt: skip
"""The longest parts of the results, which no page shows."""


def finished(page: str, sets: Sequence[str], folder: Path) -> dict[str, Rows]:
    """All runs of these sets that are kept, or finished in the folder; of two with the same seed the latter."""
    found = _kept(page)
    for name in sets:
        for file in sorted(folder.glob(f"{name}-seed*/*/results.json")):
            run = shortened(json.loads(file.read_text(encoding="utf-8")))
            found[name, file.parent.name, run["seed"]] = run
    rows: dict[str, Rows] = {name: {} for name in sets}
    for (name, method, _), run in sorted(found.items()):
        if name in rows:
            rows[name].setdefault(method, []).append(run)
    return rows


def keep(page: str, sets: dict[str, Rows]) -> None:
    """Keep the runs of these sets, beside those of other sets."""
    found = _kept(page)
    for name, rows in sets.items():
        found |= {(name, method, run["seed"]): run for method, runs in rows.items() for run in runs}
    lines = [json.dumps({"set": of_set, "method": method, "run": run})
             for (of_set, method, _), run in sorted(found.items())]  # fmt: skip
    _file(page).parent.mkdir(parents=True, exist_ok=True)
    write_whole(_file(page), "".join(f"{line}\n" for line in lines))


def missing(page: str, of_set: str, seed: int, methods: Iterable[str]) -> list[str]:
    """Those of the methods whose run with this seed is not kept."""
    kept = _kept(page)
    return [method for method in methods if (of_set, method, seed) not in kept]


def shortened(value: Any) -> Any:
    """Results without the parts that are left out, the names of classes and folders, and the last digits.

    >>> shortened({"final_accuracy": 0.123456789, "confusion": [1], "config": {"stream": {"test": "data/x.parquet"}}})
    {'final_accuracy': 0.1234568, 'config': {'stream': {'test': 'x.parquet'}}}
    """
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items() if key not in (*LEFT_OUT, "classes")}
    if isinstance(value, list):
        return [shortened(part) for part in value]
    if isinstance(value, str) and "/" in value and " " not in value:
        return Path(value).name
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _kept(page: str) -> dict[tuple[str, str, int], Run]:
    if not _file(page).exists():
        return {}
    lines = map(json.loads, _file(page).read_text(encoding="utf-8").splitlines())
    return {(line["set"], line["method"], line["run"]["seed"]): line["run"] for line in lines}


def _file(page: str) -> Path:
    return RESULTS / "single_runs" / f"{page}.jsonl"
