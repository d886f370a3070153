"""KeptRows: what heads share that keep the features themselves, and are solved on all of them anew."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.heads.content_sample import ContentSample
from everlearn.heads.gaussian import LEAST
from everlearn.heads.statistics import Statistics


class KeptRows(Statistics):
    """Keeps the directions of features in float16, in the order of their content, so that what is solved on them does
    not depend on the order in which they came. The score of a class without a row is the least that float32 has.

    Args:
        width: length of a feature vector.
        rows: most rows kept; where there are more, a uniform sample of them.
        seed: of the choice of rows.
        rounding: of the encoder (`Backbone.rounding`), up to which rows are known again.
    """

    solved = {"weight": (1, 0.0), "offset": (0, LEAST)}  # noqa: RUF012
    weight: Tensor
    offset: Tensor

    def __init__(self, width: int, rows: int, seed: int, rounding: float = 1e-4) -> None:
        super().__init__()
        self.sample = ContentSample(width, rows, seed, dtype=torch.float16, rounding=rounding)
        drawn = self.sample.directions.numpy().tobytes()
        self.register_buffer("checksum", torch.tensor([width, rows, zlib.crc32(drawn)]))
        self.register_buffer("weight", torch.zeros(width, 0))
        self.register_buffer("offset", torch.zeros(0))

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
        self.sample.merge(other.sample, self._places_of(other))

    def _rows_by_name(self) -> tuple[Tensor, Tensor, Tensor]:
        """All rows (n, width) in float32 on the CPU; the place (n,) of each one's class, the classes sorted by their
        names, so that their order changes no bit either; and the label (classes,) at each place."""
        by_name = torch.tensor(sorted(range(self.classes), key=self.class_names.__getitem__), dtype=torch.long)
        return self.sample.features.float().cpu(), by_name.argsort()[self.sample.labels.cpu()], by_name

    def _set(self, labels: Tensor, weight: Tensor, offset: Tensor) -> None:
        """Keep the solved weight (width, k) and offset (k,) of these k labels."""
        self.weight = self.weight.new_zeros(len(self.weight), self.classes)
        self.offset = self.offset.new_full((self.classes,), LEAST)
        self.weight[:, labels] = weight.to(self.weight)
        self.offset[labels] = offset.to(self.offset)

    def _accumulate(self, features: Tensor, labels: Tensor, sign: int) -> None:
        """Nothing but rows is kept."""
