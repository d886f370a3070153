"""Toy streams: small enough for seconds, and such that a small model can learn them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from everlearn.backbones.image_text import ImageText
from everlearn.backbones.lit import Pair
from everlearn.backbones.tiny import TinyBackbone
from everlearn.streams.digits import as_png
from everlearn.streams.stream import Corpus, Examples, Stream, Task


def toy_stream(
    input: str = "text", *, goal: str = "classes", kind: str = "class-incremental", tasks: int = 3,
    per_class: int = 16, seed: int = 0,
) -> Stream:  # fmt: skip
    """A small stream of two classes per task that a small model can learn.

    >>> [len(task.class_names) for task in toy_stream()]
    [2, 4, 6]
    """
    draw = random.Random(seed)
    built = []
    for t in range(tasks):
        labels: tuple[int, ...] = (0, 1) if kind == "domain-incremental" else (2 * t, 2 * t + 1)
        names = tuple(f"class {k}" for k in range(labels[-1] + 1))
        parts = {part: _toy_examples(input, labels, count, draw, f"{part}-{t}")
                 for part, count in (("train", per_class), ("test", 6))}  # fmt: skip
        corpus = None
        if goal == "ranking":
            labels, names, none = (), (), torch.empty(0, dtype=torch.long)
            train, test = parts["train"], parts["test"]
            corpus = Corpus([f"d{i}" for i in range(len(test))], [f"answer to {q!s}" for q in test.inputs])
            parts = {"train": replace(train, labels=none, positives=[f"answer to {q!s}" for q in train.inputs]),
                     "test": replace(test, labels=none, relevant=[{id: 1} for id in corpus.ids])}  # fmt: skip
        size = 4 if kind == "online" else None
        built.append(Task(t, f"task {t + 1}", labels, names, input, goal, size, examples=parts, corpus=corpus))
    return Stream("toy", kind, tuple(built), {"name": "toy"})


def tiny_pair() -> ImageText:
    """A pair of tiny encoders, one of images and one of texts, in place of CLIP: their features have one size and a
    mean of zero, and nothing else in common.

    >>> tiny_pair().class_features(["cat", "dog"]).shape
    torch.Size([2, 32])
    """
    image, text, stream = TinyBackbone(seed=1), TinyBackbone(seed=2), toy_stream("image", per_class=4)
    seen = image.infer([item for task in stream for item in task.train.inputs]).mean(0)
    read = text.infer([f"a photo of a {name}." for name in stream.class_names]).mean(0)
    return Pair(seen, None, torch.eye(len(read)), -read, 20.0).join(image, text, "tiny pair")


def _toy_examples(kind: str, labels: tuple[int, ...], count: int, draw: random.Random, tag: str) -> Examples:
    make: Callable[[int, random.Random], Any] = _toy_image if kind == "image" else toy_text
    truth = [label for label in labels for _ in range(count)]
    inputs = [make(label, draw) for label in truth]
    return Examples(inputs, torch.tensor(truth), [f"{tag}-{row}" for row in range(len(truth))])


def toy_text(label: int, draw: random.Random) -> str:
    own = [f"word{label}x{draw.randrange(3)}" for _ in range(3)]
    return " ".join([*own, f"noise{draw.randrange(20)}"])


def _toy_image(label: int, draw: random.Random) -> bytes:
    pixels = np.zeros((16, 16), np.uint8)
    across, down = divmod(label, 4)
    pixels[4 * down : 4 * down + 4, 4 * across : 4 * across + 6] = 200
    noise = np.array([[draw.randrange(40) for _ in range(16)] for _ in range(16)], np.uint8)
    return as_png(pixels + noise)
