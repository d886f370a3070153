"""The overhead of the feature store: encoding with the store compared with a plain loop over the same batches.

    python bench/encode.py [--texts 2000] [--repetitions 5] [--threads 2] [--backbone minilm]

Both encode the same CLINC150 texts with the same weights, precision and length-sorted batches; the store
also hashes texts and weights, checks them, and writes and reads files. The two alternate; each pair gives
one ratio of the times, and the result is the median ratio. Target: at most 1.3.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch

from everlearn import backbones, streams
from everlearn.features import FeatureStore

BATCH = 64  # the batch size of Backbone.infer


def bare(backbone, texts):
    """A plain encoding loop: texts sorted by length, padded batches, inference mode."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    features = torch.empty(len(texts), backbone.width)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=backbone.precision == "bfloat16"):
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            encoded = backbone.tokenizer([texts[row] for row in rows], truncation=True, padding=True,
                                         max_length=backbone.settings["max_length"], return_tensors="pt")  # fmt: skip
            states = backbone.model(**encoded).last_hidden_state
            weights = encoded["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * weights).sum(1) / weights.sum(1)
            features[rows] = torch.nn.functional.normalize(mean, dim=-1).float()
    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("texts", 2000), ("repetitions", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--backbone", default="minilm", help="a text backbone with mean pooling")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = backbones.load(args.backbone)
    texts = [text for task in streams.load("clinc150", tasks=10) for text in task.train.inputs][: args.texts]
    bare(backbone, texts[:BATCH])

    def stored():
        with tempfile.TemporaryDirectory() as folder:
            return FeatureStore(folder).encode(backbone, texts)

    print(f"{len(texts)} texts, {backbone.name}, {backbone.precision}, {args.threads} threads")
    ratios = []
    for number in range(args.repetitions):
        seconds, features = {}, {}
        pair = [("bare", lambda: bare(backbone, texts)), ("store", stored)]
        for name, encode in pair if number % 2 else reversed(pair):
            started = time.perf_counter()
            features[name] = encode()
            seconds[name] = time.perf_counter() - started
        ratios.append(seconds["store"] / seconds["bare"])
        near = (features["bare"] - features["store"]).abs().max()
        print(f"  bare {seconds['bare']:6.2f} s   store {seconds['store']:6.2f} s   ratio {ratios[-1]:.3f}   "
              f"largest difference {near:.1e}", flush=True)  # fmt: skip
    print(f"median ratio: {statistics.median(ratios):.3f} (target: at most 1.3)")


if __name__ == "__main__":
    main()
