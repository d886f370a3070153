"""Encoding of texts compared with the plain matrix products in it, and with what the feature store adds.

    python bench/encode.py [--texts 1000] [--repetitions 5] [--threads 1] [--backbone minilm]

The products are those of all linear layers, in the precision of the backbone and on as many tokens as the texts have:
padding, attention and everything else that encoding does lower the share that they have of its time. Target: at least
0.85. The store also hashes texts and weights, checks them, and writes and reads files. Target: at most 1.3 times
encoding. The three take turns; seconds are those of the processor, so work beside this one disturbs them little, and
each result is a median of ratios. Last comes the parity of the features with those of the same weights in float32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from torch import nn

from everlearn import backbones, streams
from everlearn.batches import of_similar_length
from everlearn.features import FeatureStore


def products(backbone, tokens):
    """The matrix products of all linear layers for `tokens` tokens, as many at once as the backbone computes."""
    dtype = getattr(torch, backbone.precision)
    weights = [m.weight.detach().to(dtype) for m in backbone.model.modules() if isinstance(m, nn.Linear)]
    widths = {weight.shape[1] for weight in weights}
    inputs = {width: torch.randn(backbone.tokens_at_once, width, dtype=dtype) for width in widths}
    with torch.inference_mode():
        for start in range(0, tokens, backbone.tokens_at_once):
            for weight in weights:
                nn.functional.linear(inputs[weight.shape[1]][: tokens - start], weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("texts", 1000), ("repetitions", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--backbone", default="minilm", help="a text backbone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = backbones.load(args.backbone)
    texts = [text for task in streams.load("clinc150", tasks=10) for text in task.train.inputs][:: 15_000 // args.texts]
    lengths = backbone.lengths(texts)
    padded = sum(len(rows) * lengths[rows[-1]] for rows in of_similar_length(lengths, backbone.tokens_at_once, 64))
    print(f"{len(texts)} texts of {sum(lengths) / len(texts):.1f} tokens, {100 * padded / sum(lengths) - 100:.0f} % of "
          f"padding, {backbone.name}, {backbone.precision}, {args.threads} threads")  # fmt: skip

    def stored():
        with tempfile.TemporaryDirectory() as folder:
            return FeatureStore(folder).encode(backbone, texts)

    ways = {"products": lambda: products(backbone, sum(lengths)), "encode": lambda: backbone.infer(texts),
            "store": stored}  # fmt: skip
    seconds = {name: [] for name in ways}
    for number in range(args.repetitions + 1):
        for name in ways if number % 2 else reversed(ways):
            started = time.process_time()
            ways[name]()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    for name, of, target in (("products", "encode", "at least 0.85"), ("store", "encode", "at most 1.3")):
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[of], strict=True))
        print(f"{name} {statistics.median(seconds[name]):.2f} s, {of} {statistics.median(seconds[of]):.2f} s: "
              f"median ratio {ratio:.3f} (target: {target})")  # fmt: skip
    features, backbone.precision = backbone.infer(texts), "float32"
    cosines = torch.cosine_similarity(features, backbone.infer(texts)).sort().values
    print(f"cosine to float32: lowest {cosines[0]:.6f}, one text of a hundred below {cosines[len(texts) // 100]:.6f}")


if __name__ == "__main__":
    main()
