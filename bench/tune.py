"""Judge settings of your choice on validation examples; test examples are never used. (`everlearn tune` searches.)

    python bench/tune.py clinc150 finetune lr=5e-5,1e-4,3e-4 epochs=3 [--train-per-class 30] [--tasks 10] [--first 3]

Every combination learns the stream, or only its first tasks, and is evaluated on the validation split (a fifth of
the training examples if the stream has no such split). The output is one line per combination, then the one with
the best final accuracy.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import yaml

from everlearn import methods, run, streams
from everlearn.search import best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream")
    parser.add_argument("method", choices=methods.names())
    parser.add_argument("settings", nargs="*", help="name=value,value,…")
    parser.add_argument("--backbone")
    for name, default in (("train-per-class", 30), ("tasks", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--first", type=int, help="number of tasks to learn (default: all)")
    args = parser.parse_intermixed_args()
    stream = streams.load(args.stream, tasks=args.tasks, max_train_per_class=args.train_per_class,
                          tuning=args.first or args.tasks)  # fmt: skip
    grid = {
        name: [yaml.safe_load(v) for v in values.split(",")] for name, values in (s.split("=") for s in args.settings)
    }
    results = {}
    for values in itertools.product(*grid.values()):
        settings: dict[str, Any] = dict(zip(grid, values, strict=True))
        started = time.perf_counter()
        result = run({"name": args.method, **settings}, stream, backbone=args.backbone, seed=args.seed)
        told = " ".join(f"{name}={value}" for name, value in settings.items())
        results[told] = result.results
        print(f"{args.method} {told}: validation accuracy {result.final_accuracy:.4f}, average "
              f"{result.average_accuracy:.4f}, {time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    print(f"best: {best(results)}")


if __name__ == "__main__":
    main()
