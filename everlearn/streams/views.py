"""Augmented images: a random crop and flip that is a function of the image and a seed alone."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from everlearn.streams.images import decode, pillow
from everlearn.streams.inputs import original

LARGEST_SIDE = 4096
"""Pixels of a side of a view: the square of a long narrow image could be a thousand times larger than the image."""


@dataclass(frozen=True)
class View:
    """An image as one step of training sees it: a random crop of 5 to 100 % of its area with sides between
    3:4 and 4:3, stretched to a square, mirrored half of the time (Szegedy et al., 2015; the training views of
    L2P, DualPrompt, CODA-Prompt and SLCA). The backbone then prepares it as any other image.

    Args:
        original: the image, encoded or as a path. Stored features, queries and memories are of it.
        seed: decides crop and flip.
    """

    original: bytes | Path
    seed: int
    kind: ClassVar[str] = "image"

    def content(self) -> bytes:
        """The view as an encoded image (PPM: nothing is lost, and nothing spent on compression).

        Raises:
            DataError: the original cannot be read or decoded.
        """
        Image = pillow()
        draw = random.Random(self.seed)
        whole = decode(self.original)
        width, height = whole.size
        side = min(max(width, height), LARGEST_SIDE)
        view = whole.resize((side, side), Image.Resampling.BICUBIC, box=_crop(width, height, draw))
        if draw.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        encoded = io.BytesIO()
        view.save(encoded, "PPM")
        return encoded.getvalue()


def views(inputs: Sequence[Any], seeds: Sequence[int]) -> list[View]:
    """A view of each image."""
    return [View(original(item), seed) for item, seed in zip(inputs, seeds, strict=True)]


def _crop(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop; the whole image where ten draws do not fit."""
    for _ in range(10):
        area = width * height * draw.uniform(0.05, 1.0)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height
