"""How many of the last layers should give features? Chosen on held-out training examples; test data are not read.

    python bench/layers.py [--data ../shared/data] [--sets trec6,amazon] [--layers 1,2,3,4] [--most 5000]

From the training part of each set at most 5,000 examples are drawn, of which a fifth is held out. The encoder runs
once, with the most layers; the features of fewer are the last columns of them. Each cell of the table is the held-out
accuracy of a head that is solved on the other four fifths. Writes docs/results/layers.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import numpy as np
import pyarrow.parquet as pq
import torch

from everlearn import backbones
from everlearn.heads.gaussian import Gaussian
from everlearn.heads.logistic import Logistic
from everlearn.results import environment

TEXTS = ("clinc150", "banking77", "trec6", "20newsgroups", "dbpedia14", "agnews", "amazon", "yelp")
IMAGES = ("tinyimagenet100", "cifar10", "pacs")
HEADS = {"logistic": Logistic, "lda": Gaussian}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=common.SHARED)
    parser.add_argument("--sets", default=",".join((*TEXTS, *IMAGES)))
    parser.add_argument("--layers", default="1,2,3,4")
    parser.add_argument("--most", type=int, default=5000)
    args = parser.parse_args()
    layers = [int(k) for k in args.layers.split(",")]
    rows = []
    for name in args.sets.split(","):
        kind = "image" if name in IMAGES else "text"
        table = pq.read_table(args.data / f"{kind}s".replace("texts", "text") / f"{name}_train.parquet")
        table = table.take(np.random.default_rng(0).permutation(len(table))[: args.most])
        backbone = backbones.load(f"{backbones.default_for(kind)}@layers={max(layers)}")
        features = backbone.encode(table[kind].to_pylist())
        labels, held = torch.tensor(table["label"].to_pylist()), len(table) // 5
        for head_name, make in HEADS.items():
            scores = []
            for k in layers:
                width = k * backbone.hidden_width
                head = make(width)
                head.grow(int(labels.max()) + 1)
                head.add(features[held:, -width:], labels[held:])
                head.solve()
                right = head(features[:held, -width:]).argmax(1) == labels[:held]
                scores.append(100 * float(right.float().mean()))
            rows.append(f"| {name} | {head_name} | {' | '.join(f'{score:.1f}' for score in scores)} |")
            print(rows[-1], flush=True)
    columns = " | ".join("1 layer" if k == 1 else f"{k} layers" for k in layers)
    lines = [
        "# Features of several layers", "", f"From `{common.command(parser, args, ('out', 'data'))}`.", "",
        f"Measured: held-out training examples, seed 0; {common.machine(environment(backbone))}.", "",
        f"| set | head | {columns} |", "|---" * (2 + len(layers)) + "|", *rows,
    ]  # fmt: skip
    common.write_page("layers", lines)


if __name__ == "__main__":
    main()
