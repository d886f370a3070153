"""The time of a run whose features are stored: simplecil with an empty feature store, then with a filled one.

    python bench/warm_run.py [--stream clinc150] [--backbone minilm] [--train-per-class 100] [--threads 2]

Both runs are in one process, after everything has been imported and loaded, so the start-up is not measured.
Each pair starts with an empty store. Target: the second run takes less than 0.15 of the time of the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch

from everlearn import backbones, methods, run, streams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("train-per-class", 100), ("repetitions", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stream", default="clinc150")
    parser.add_argument("--backbone", default="minilm")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stream = streams.load(args.stream, max_train_per_class=args.train_per_class)
    backbone = backbones.load(args.backbone)
    backbone.infer(stream[0].test.inputs[:64])
    ratios = []
    for _ in range(args.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["EVERLEARN_CACHE"] = folder
            seconds, results = [], []
            for _ in ("cold", "warm"):
                learner = methods.get("simplecil")(backbone)
                started = time.perf_counter()
                results.append(run(learner, stream))
                seconds.append(time.perf_counter() - started)
        cold, warm = results
        assert warm.examples_encoded == 0 and warm.accuracy_matrix == cold.accuracy_matrix
        ratios.append(seconds[1] / seconds[0])
        print(f"{stream.name}, {backbone.name}, {cold.examples_encoded} examples encoded: cold {seconds[0]:.2f} s, "
              f"warm {seconds[1]:.2f} s, ratio {ratios[-1]:.3f}", flush=True)  # fmt: skip
    print(f"median ratio: {statistics.median(ratios):.3f} (target: less than 0.15)")


if __name__ == "__main__":
    main()
