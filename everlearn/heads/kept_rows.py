"""KeptRows: what heads share that keep the features themselves, and are solved on all of them anew."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.heads.content_sample import ContentSample
from everlearn.heads.statistics import Statistics


class KeptRows(Statistics):
    """Keeps the directions of features in float16, in the order of their content, so that what is solved on them does
    not depend on the order in which they came.

    Args:
        width: length of a feature vector.
        rows: most rows kept; where there are more, a uniform sample of them.
        seed: of the choice of rows.
        rounding: of the encoder (`Backbone.rounding`), up to which rows are known again.
    """

    def __init__(self, width: int, rows: int, seed: int, rounding: float = 1e-4) -> None:
        super().__init__()
        self.sample = ContentSample(width, rows, seed, dtype=torch.float16, rounding=rounding)
        drawn = self.sample.directions.numpy().tobytes()
        self.register_buffer("checksum", torch.tensor([width, rows, zlib.crc32(drawn)]))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        super().add(features, labels)
        self.sample.add(normalize(features.double(), dim=1), labels)

    @torch.no_grad()
    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Undo `add` for these (n, width) features and (n,) labels; `solve` makes it felt.

        Raises:
            ContractError: where more examples of a class leave than were added.
            EverlearnError: where an example was never added.
        """
        counts = self._counted(labels, -1)  # refuses before anything changes
        self.sample.remove(normalize(features.double(), dim=1), labels)
        self.counts = counts

    @torch.no_grad()
    def merge(self, other: Statistics) -> None:
        super().merge(other)
        assert isinstance(other, KeptRows)
        self.sample.merge(other.sample, torch.tensor([self.class_names.index(name) for name in other.class_names]))

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        """Nothing but rows is kept."""
