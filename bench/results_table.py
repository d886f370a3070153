"""Write the results table of a comparison into docs/results/index.md: python bench/results_table.py DIR"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table(folder: Path) -> str:
    """A Markdown table of all methods in the folder of a comparison, best final score first."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*/results.json"))]
    runs.sort(key=lambda run: -run["final_accuracy"])
    first = runs[0]
    where = first["environment"]
    threads = " or ".join(sorted({str(run["environment"]["threads"]) for run in runs}))
    limit = first["config"]["stream"].get("max_train_per_class")
    lines = [
        f"Measured: {first['stream']}, {len(first['tasks'])} tasks, {first['backbone']}, seed {first['seed']}"
        + (f", {limit} training examples per class" if limit else "")
        + f"; {where['cpu']}, {threads} threads per method, torch {where['torch']}, {where['date']}.",
        "",
        "| method | final | average | forgetting | retention | gain | trained | stored, MB | seconds | encoded |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        retention = f"{100 * run['retention']:.1f}" if run["retention"] is not None else ""
        lines.append(
            f"| {run['method']} | {100 * run['final_accuracy']:.1f} | {100 * run['average_accuracy']:.1f} "
            f"| {100 * run['forgetting']:.1f} | {retention} | {100 * run['gain']:.1f} "
            f"| {run['trainable_parameters']:,} | {run['stored_bytes'] / 1e6:.1f} | {run['seconds']['total']:.0f} "
            f"| {run['examples_encoded']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    folder = Path(sys.argv[1])
    text = table(folder)
    command = "everlearn compare --methods all --stream clinc150 --stream.max_train_per_class 30 --out DIR"
    source = f"From `{command}`, then `python bench/results_table.py DIR`."
    block = f"<!-- results:begin -->\n{source}\n\n{text}\n<!-- results:end -->"
    page = ROOT / "docs" / "results" / "index.md"
    markers = r"<!-- results:begin -->.*<!-- results:end -->"
    written, count = re.subn(markers, lambda _: block, page.read_text(encoding="utf-8"), flags=re.S)
    if count != 1:
        raise SystemExit(f"{page} has {count} places for the table: there must be one, between the two markers")
    page.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
