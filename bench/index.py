"""Search in an index of many generated vectors, which stay on the disk: recall, time, memory and bytes of each kind.

    python bench/index.py [--vectors 1000000] [--dimension 384] [--queries 1000] [--kinds exact hnsw ivf] [--effort 200]

The vectors are drawn around 1,000 centres, as embeddings of texts in topics are, and queries around the vectors. Each
index is filled in parts of 10,000 and saved. Then a process of its own opens it and searches all queries at once, and
once more. `recall@10` is the share of the ten nearest documents that it finds, against the kind exact. `memory` is the
most that the searching process holds at once of its own, without pages of files that it reads through the page cache
and that the system may take back at any time; `with files` counts these too. Writes docs/results/index_search.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import command, machine, write_page

from everlearn import backbones
from everlearn.formats import duration, human_bytes
from everlearn.results import environment
from everlearn.retrieval.index import Index
from everlearn.retrieval.stamp import Stamp

PART = 10_000
CENTRES = 1000
SPREAD = 0.6  # of a vector around its centre, in lengths of the centre
NEAR = 0.5  # of a query around its vector

SEARCH = """
import json, resource, sys, threading, time
import numpy as np
from everlearn.retrieval.index import Index
from everlearn.retrieval.stamp import Stamp

def held(what):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(what + ":")))

peak = {"own": 0}
def watch():
    while True:
        peak["own"] = max(peak["own"], held("RssAnon"))
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
queries = np.load(sys.argv[2])
started = time.perf_counter()
index = Index.load(sys.argv[1])
opened = time.perf_counter() - started
seconds = []
for _ in range(2):
    started = time.perf_counter()
    ids, _ = index.search(queries, index.stamp, 10)
    seconds.append(time.perf_counter() - started)
whole = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"open": opened, "seconds": seconds, "own": peak["own"], "whole": whole, "ids": ids}))
"""


def generated(start: int, count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Vectors number `start` to `start + count` (count, dimension) of a collection that has no end."""
    centres = np.random.default_rng(seed).standard_normal((CENTRES, dimension), np.float32)
    draw = np.random.default_rng([seed, start])
    around = centres[draw.integers(0, CENTRES, count)]
    return around + SPREAD * draw.standard_normal((count, dimension), np.float32)


def asked(args: argparse.Namespace) -> np.ndarray:
    """Queries (n, dimension), each near one of the vectors of the first part."""
    near = generated(0, PART, args.dimension)[: args.queries]
    return near + NEAR * np.random.default_rng(1).standard_normal(near.shape, np.float32)


def fill(folder: Path, kind: Any, args: argparse.Namespace) -> tuple[float, float]:
    """Make an index; the seconds that adding and saving took."""
    stamp = Stamp("generated", "generated", args.dimension)
    started = time.perf_counter()
    with Index.create(folder, stamp, kind, **({"effort": args.effort} if kind == "hnsw" else {})) as index:
        for start in range(0, args.vectors, PART):
            part = generated(start, min(PART, args.vectors - start), args.dimension)
            index.add([f"document-{start + i}" for i in range(len(part))], part, stamp)
        added = time.perf_counter() - started
        index.save()
    return added, time.perf_counter() - started - added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("vectors", 1_000_000), ("dimension", 384), ("queries", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--effort", type=int, default=200, help="of hnsw while it is built")
    parser.add_argument("--kinds", nargs="+", choices=("exact", "hnsw", "ivf"), default=["exact", "hnsw", "ivf"])
    args = parser.parse_args()
    rows: list[str] = []
    truth: Any = None
    with tempfile.TemporaryDirectory(prefix="everlearn-index-") as root:
        queries = Path(root, "queries.npy")
        np.save(queries, asked(args))
        for kind in ["exact", *(kind for kind in args.kinds if kind != "exact")]:
            folder = Path(root, kind)
            added, saved = fill(folder, kind, args)
            found = json.loads(subprocess.run([sys.executable, "-c", SEARCH, str(folder), str(queries)], check=True,
                                              stdout=subprocess.PIPE).stdout)  # fmt: skip
            truth = truth or found["ids"]
            recall = np.mean([len({*row} & {*best}) / 10 for row, best in zip(found["ids"], truth, strict=True)])
            stored = Index.load(folder).stored_bytes()
            rows.append(f"| {kind} | {100 * recall:.1f} | {found['seconds'][0]:.1f} s | {found['seconds'][1]:.1f} s | "
                        f"{found['open']:.1f} s | {human_bytes(found['own'])} | {human_bytes(found['whole'])} | "
                        f"{human_bytes(stored)} | {duration(added)} | {duration(saved)} |")  # fmt: skip
            print(rows[-1], flush=True)
            shutil.rmtree(folder)  # the next kind needs the room
    here = machine(environment(backbones.load("tiny")))
    write_page("index_search", [
        "# Search in many vectors", "",
        f"{args.vectors:,} generated vectors of {args.dimension} numbers "
        f"({human_bytes(4 * args.vectors * args.dimension)}), {args.queries:,} queries at once, ten documents each.",
        "",
        "| kind | recall@10 in % | first search | second search | opening | memory | with files | on disk | adding | "
        "saving |",
        "|---|---|---|---|---|---|---|---|---|---|", *rows, "",
        "Memory is the most that the searching process held of its own; with files, the pages of the memory-mapped "
        "files that it had read are counted as well, which the system takes back where it needs them. The first search "
        "includes the imports and the check of the structure's SHA-256.", "",
        f"Measured with `{command(parser, args)}` on {here}.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
