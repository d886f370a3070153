"""SLCA's classifier alignment over a whole run, with two ways to draw samples: the kept factors and one batched product
per epoch, or one torch MultivariateNormal per class and epoch.

    python bench/slca_alignment.py [--tasks 10] [--classes 10] [--width 768] [--epochs 5] [--samples 256]
                                   [--threads 2] [--repeats 5]

Each task has `--classes` new classes with random features; after each task the head is aligned on all seen
classes. Both ways train the same head with the same number of steps; the time for drawing is also reported
separately. The batched way is run `--repeats` times, and its result is the median.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from everlearn import backbones
from everlearn.heads.linear import Linear
from everlearn.memory.gaussian_replay import JITTER, GaussianReplay
from everlearn.methods import SLCA
from everlearn.streams.stream import Task

EXAMPLES = 200  # per class


class OneAClass(GaussianReplay):
    """Gaussians that build a new distribution for every class in every epoch; the rest is the same."""

    def drawn(self, samples: int, *, times: int, shrink: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        means = self.means if shrink is None else self.means * shrink[:, None]
        covariances = self.covariances()
        covariances.diagonal(dim1=1, dim2=2).add_(JITTER)
        labels = torch.arange(len(means)).repeat_interleave(samples)
        for _ in range(times):
            draws = [MultivariateNormal(means[k], covariances[k]).sample((samples,)) for k in range(len(means))]
            yield torch.cat(draws), labels


def run(method: SLCA, memory: GaussianReplay, args: argparse.Namespace) -> tuple[float, float, Tensor]:
    """The seconds of drawing, of the whole alignment, and mean and deviation of the last draws of the first class."""
    torch.manual_seed(0)
    method.memory, method.head = memory, Linear(args.width)
    ours, drawing, aligning, last = memory.drawn, 0.0, 0.0, torch.empty(0)

    def timed(samples: int, **more: Any) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal drawing, last
        draws = ours(samples, **more)
        while True:
            start = time.perf_counter()
            drawn = next(draws, None)
            drawing += time.perf_counter() - start
            if drawn is None:
                return
            last = drawn[0][: args.samples]
            yield drawn

    object.__setattr__(memory, "drawn", timed)
    for index in range(args.tasks):
        names = tuple(map(str, range((index + 1) * args.classes)))
        classes = tuple(range(index * args.classes, len(names)))
        method.begin_task(Task(index, f"task {index + 1}", classes, names))
        labels = torch.tensor(classes).repeat_interleave(EXAMPLES)
        centres, mixing = torch.randn(len(names), args.width), torch.randn(args.width, args.width) / args.width**0.5
        method.memory.add(centres[labels] + torch.randn(len(labels), args.width) @ mixing, labels)
        start = time.perf_counter()
        method.align()
        aligning += time.perf_counter() - start
    return drawing, aligning, torch.stack([last.mean(), last.std()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "tasks": 10, "classes": 10, "width": 768, "epochs": 5, "samples": 256, "threads": 2, "repeats": 5,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {"alignment_epochs": args.epochs, "samples": args.samples}
    small = argparse.Namespace(tasks=1, classes=2, width=4, samples=args.samples)
    run(SLCA(backbones.load("tiny"), **settings), GaussianReplay(4), small)  # torch imports some modules at first use

    drawing, aligning, spread = {}, {}, {}
    for name, memory, repeats in (("batched", GaussianReplay, args.repeats), ("one per class", OneAClass, 1)):
        methods = [SLCA(backbones.load("tiny"), **settings) for _ in range(repeats)]
        draws, alignments, spreads = zip(*(run(method, memory(args.width), args) for method in methods), strict=True)
        drawing[name], aligning[name], spread[name] = median(draws), median(alignments), spreads[-1]
        print(f"{name:>13}: {drawing[name]:7.2f} s to draw, {aligning[name]:7.2f} s to align", flush=True)
    fast, slow = drawing
    difference = (spread[fast] - spread[slow]).abs().max()
    print(f"largest difference of the mean and deviation of the first class: {difference:.3f}")
    print(f"ratio: {drawing[slow] / drawing[fast]:.1f} drawing, {aligning[slow] / aligning[fast]:.1f} aligning")


if __name__ == "__main__":
    main()
