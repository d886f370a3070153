"""Seconds of one step of training: er (replay), l2p (prompts) and ewc (a penalty on every weight).

    python bench/step.py [--steps 50] [--stream clinc150] [--backbone minilm] [--batch-size 16] [--threads 1]
                         [--methods er,l2p,ewc]

Each method learns the first two tasks of the stream. A step is timed in the second task, where er has examples to
replay and ewc has weights to hold, after ten steps that are not counted; the queries of l2p are in the feature store
by then. The result is the median over `--steps` steps, with their quartiles; listeners and evaluation are not in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch

from everlearn import backbones, methods, run, streams

WARM = 10  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 50), ("batch-size", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("stream", "clinc150"), ("backbone", "minilm"), ("methods", "er,l2p,ewc")):
        parser.add_argument(f"--{name}", default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stream = streams.load(args.stream, max_train_per_class=20, max_test_per_class=1)
    stream = replace(stream, tasks=stream.tasks[:2])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVERLEARN_CACHE"] = folder
        for name in args.methods.split(","):
            seconds = timed(name, stream, args)
            low, middle, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
            print(f"{name:>12}: {middle:7.1f} ms a step (quartiles {low:.1f} and {high:.1f}, {len(seconds)} steps of "
                  f"{args.batch_size} on {stream.name}, {args.backbone}, {args.threads} thread"
                  f"{'s' * (args.threads > 1)})", flush=True)  # fmt: skip


def timed(name: str, stream: streams.Stream, args: argparse.Namespace) -> list[float]:
    """The seconds of the counted steps of the second task."""
    first, second = (-(-len(task.train) // args.batch_size) for task in stream)
    epochs = -(-(WARM + args.steps) // second)
    method = methods.get(name)(backbones.load(args.backbone), epochs=epochs, batch_size=args.batch_size)
    step, seconds = method.step, []

    def measured(*arguments: Any) -> Any:
        start = time.perf_counter()
        loss = step(*arguments)
        seconds.append(time.perf_counter() - start)
        return loss

    object.__setattr__(method, "step", measured)
    run(method, stream)
    counted = first * epochs + WARM
    return seconds[counted : counted + args.steps]


if __name__ == "__main__":
    main()
