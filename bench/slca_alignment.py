"""SLCA's classifier alignment: each class factored once and all drawn by one batched product an epoch, against
one torch MultivariateNormal for each class and epoch.

    python bench/slca_alignment.py [--classes 100] [--width 768] [--epochs 5] [--samples 256]
                                   [--threads 2] [--repeats 7]

Both train the same head with the same steps on their draws; the drawing is timed alone, then with the training.
The batched one is timed `--repeats` times, and the median counts.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch.distributions import MultivariateNormal

from everlearn import backbones
from everlearn.heads.linear import Linear
from everlearn.memory.gaussians import Gaussians
from everlearn.methods import SLCA
from everlearn.methods.slca import JITTER
from everlearn.streams.stream import Task


def one_distribution_a_class(method: SLCA):
    """What `drawn` gives, from a distribution built anew for every class in every epoch."""
    means = method.memory.means.float()
    covariances = method.memory.covariances().float()
    covariances.diagonal(dim1=1, dim2=2).add_(JITTER)
    labels = torch.arange(len(means)).repeat_interleave(method.samples)
    for _ in range(method.alignment_epochs):
        draws = [MultivariateNormal(means[k], covariances[k]).sample((method.samples,)) for k in range(len(means))]
        yield torch.cat(draws), labels


def learned(args: argparse.Namespace) -> SLCA:
    """An SLCA that has seen one task of random features, with the statistics and the head of `width`."""
    method = SLCA(backbones.load("tiny"), alignment_epochs=args.epochs, samples=args.samples)
    method.memory, method.head = Gaussians(args.width), Linear(args.width)
    classes = tuple(range(args.classes))
    method.begin_task(Task(0, "task 1", classes, tuple(map(str, classes)), "text"))
    labels = torch.arange(args.examples).remainder(args.classes)
    centres, mixing = torch.randn(args.classes, args.width), torch.randn(args.width, args.width) / args.width**0.5
    method.memory.add(centres[labels] + torch.randn(args.examples, args.width) @ mixing, labels)
    return method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {
        "classes": 100,
        "width": 768,
        "examples": 20_000,
        "epochs": 5,
        "samples": 256,
        "threads": 2,
        "repeats": 7,
    }
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    learned(argparse.Namespace(classes=2, width=4, epochs=1, samples=2, examples=8)).align()  # torch imports late
    method = learned(args)

    drawing, aligning, spread = {}, {}, {}
    ours = method.drawn
    for name, draw, repeats in (
        ("batched", ours, args.repeats),
        ("one a class", lambda: one_distribution_a_class(method), 1),  # long enough to average the machine's moods
    ):
        object.__setattr__(method, "drawn", draw)
        draws, alignments = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            for features, labels in draw():
                spread[name] = torch.stack([features[labels == 0].mean(), features[labels == 0].std()])
            middle = time.perf_counter()
            method.align()
            draws.append(middle - start)
            alignments.append(time.perf_counter() - middle)
        drawing[name], aligning[name] = median(draws), median(alignments)
        print(f"{name:>12}: {drawing[name]:7.2f} s to draw, {aligning[name]:7.2f} s to align", flush=True)
    fast, slow = drawing
    difference = (spread[fast] - spread[slow]).abs().max()
    print(f"largest difference of the mean and deviation of class 0: {difference:.3f}")
    print(f"ratio: {drawing[slow] / drawing[fast]:.1f} drawing, {aligning[slow] / aligning[fast]:.1f} aligning")


if __name__ == "__main__":
    main()
