"""Does a retriever gain from documents alone? Sentences of the documents are its queries, and nothing else is learned.

    python bench/pseudo_queries.py [--stream NAME] [--methods "a;b"] [--seeds 0,1,2] [--out FOLDER]

Each method learns the stream one domain after another from pseudo-queries (`--stream.pseudo_queries true`), and is
asked the real test queries. Nothing is chosen: the rows have the settings of `bench/retrieval.py`, and LoRA also a
tenth of its learning rate. A folder that is given is gone on with: what is finished there is not learned again.

Written to docs/results/pseudo_queries.md: nDCG@10 of the real test queries on each domain before anything is learned
(which is doing nothing), just after the domain was learned, and at the end, in the index that is served: the kept one
where a method keeps it.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import common
from common import learned, spread
from retrieval import METHODS

from everlearn import streams

ROWS = {
    "lora query side": METHODS["lora query side"],
    "lora query side, lr 0.0001": {**METHODS["lora query side"], "lr": 1e-4},
    "task_adapters": {"train": "lora", "epochs": 3},
    "prompt_retriever": METHODS["prompt_retriever"],
    "qdc": METHODS["qdc"],
}
"""The settings of each row; its first word names the method."""


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--stream", default="domains4")
    parser.add_argument("--methods", default=";".join(ROWS), help="rows, separated by semicolons")
    args, folder = common.parsed(parser)
    stream = streams.load(args.stream, pseudo_queries=True)
    rows = {}
    for name in args.methods.split(";"):
        section = {"name": name.replace(",", "").split()[0], **ROWS[name]}
        place = folder / name.replace(",", "").replace(" ", "-")
        rows[name] = [learned(section, stream, args.backbone, seed, place.with_name(f"{place.name}-{seed}"))
                      for seed in map(int, args.seeds.split(","))]  # fmt: skip
        print("\n".join(table(rows)), flush=True)
    lines = ["# Learning from documents alone", "", f"From `{common.command(parser, args, ('out', 'threads'))}`.", "",
             f"Measured: {stream.name}, {len(stream)} domains, {args.backbone}, seeds {args.seeds}, ± standard "
             f"deviation; {common.machines(run for runs in rows.values() for run in runs)}.", "",
             *table(rows)]  # fmt: skip
    common.write_page("pseudo_queries", lines)


def table(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    first = next(iter(rows.values()))[0]
    domains = [domain["name"] for domain in first["retrieval"]["domains"]]
    nothing = first["initial"]
    lines = [f"| learned from documents by | all domains | when learned | {' | '.join(domains)} | seconds |",
             "|---" * (4 + len(domains)) + "|",
             f"| nothing | {100 * mean(nothing):.1f} | {100 * mean(nothing):.1f} "
             f"| {' | '.join(f'{100 * score:.1f}' for score in nothing)} | 0 |"]  # fmt: skip
    for name, runs in rows.items():
        last = [result["accuracy_matrix"][-1] for result in runs]
        diagonal = [mean(row[index] for index, row in enumerate(result["accuracy_matrix"])) for result in runs]
        cells = [spread(map(mean, last)), spread(diagonal), *map(spread, zip(*last, strict=True))]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(result['seconds']['total'] for result in runs):.0f} |")
    return lines


if __name__ == "__main__":
    main()
