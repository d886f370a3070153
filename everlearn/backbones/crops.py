"""Crops: images that were decoded, resized and cut before, so that later epochs need not do it again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from everlearn.features import content_key
from everlearn.streams.inputs import Input

MOST_BYTES = 512 * 2**20  # 3,500 crops of 224 x 224 pixels


class Crops:
    """Crops (height, width, 3), each with one byte a colour, by the content of their images. They stay in the memory of
    this process only. Where there is no room for another one, it takes the place of any, because epochs that go through
    more images than there is room for would find nothing if the oldest one went.

    Args:
        most_bytes: the most memory that they take, in bytes.

    >>> crops = Crops()
    >>> cut = lambda item: np.zeros((2, 2, 3), dtype=np.uint8)
    >>> crops.crop(b"an image", cut) is crops.crop(b"an image", cut)
    True
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: dict[bytes, np.ndarray] = {}
        self._keys: list[bytes] = []
        self._random = random.Random(0)

    def crop(self, item: Input, cut: Callable[[Input], np.ndarray], keep: bool = True) -> np.ndarray:
        """The crop of an image, kept or made.

        Args:
            cut: makes it; all crops have the same size.
            keep: whether one that is made is kept.

        Raises:
            DataError: the image cannot be read or decoded.
        """
        if not (keep or self._kept):
            return cut(item)  # a frozen encoder has no use for the key, for which a file would be read once more
        key = content_key(item)
        if (crop := self._kept.get(key)) is None:
            crop = cut(item)
            if keep:
                self._keep(key, crop)
        return crop

    def _keep(self, key: bytes, crop: np.ndarray) -> None:
        if (len(self._keys) + 1) * crop.nbytes <= self.most_bytes:
            self._keys.append(key)
        elif self._keys:
            place = self._random.randrange(len(self._keys))
            del self._kept[self._keys[place]]
            self._keys[place] = key
        else:
            return
        self._kept[key] = crop

    def __len__(self) -> int:
        return len(self._kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> Crops:
        """Itself: the crops of a copied encoder, such as a teacher, are the same."""
        return self
