"""ContentSample: a bounded set of feature rows that does not depend on their order of arrival."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.errors import EverlearnError
from everlearn.state import Stateful, check_saved


class ContentSample(Stateful):
    """The `capacity` feature rows with the smallest keys, with their labels.

    The key of a row looks random and depends on the row's direction alone. The sample is therefore a
    uniform one of the distinct rows seen, and the same for any order, split into tasks or merge. (A
    `Memory` keeps raw examples, and its draws depend on their order.) Equal rows have equal keys: all
    of them are in the sample, or none is.

    Args:
        width: length of a feature vector.
        capacity: most rows kept.
        seed: of the keys.
        dtype: of the rows as they are kept: float32, or float16 for half the size.
        rounding: how far apart two features of one example may be, of the largest number in them, for `remove` to know
            them again (`Backbone.rounding`).

    >>> rows, labels = torch.randn(9, 4), torch.arange(9)
    >>> one, other = ContentSample(4, capacity=3), ContentSample(4, capacity=3)
    >>> one.add(rows, labels)
    >>> other.add(rows.flip(0), labels.flip(0))
    >>> len(one), torch.equal(one.labels, other.labels)
    (3, True)
    """

    features: Tensor
    labels: Tensor
    keys: Tensor
    limit: Tensor
    directions: Tensor

    def __init__(
        self, width: int, capacity: int, seed: int = 0, dtype: torch.dtype = torch.float32, rounding: float = 1e-4
    ):  # fmt: skip
        super().__init__()
        self.capacity, self.rounding = capacity, rounding
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("directions", torch.randn(width, 2, generator=draw, dtype=torch.float64), persistent=False)
        self.register_buffer("features", torch.zeros(0, width, dtype=dtype))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("keys", torch.zeros(0, dtype=torch.float64))  # ascending
        # A row offered is kept exactly if its key is below the limit, which only falls. Rows that leave by
        # `remove` are thus not replaced, or which rows stand in for them would depend on the order.
        self.register_buffer("limit", torch.tensor(1.0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.labels)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """As every module, and there is one label and one key for each row."""
        super().check_saved(saved)
        rows = len(saved.get("labels", ()))
        shapes = {"features": (rows, self.features.shape[1]), "labels": (rows,), "keys": (rows,), "limit": ()}
        for name in shapes.keys() & saved.keys():
            check_saved(name, saved[name], self._buffers[name], shapes[name])

    def keys_of(self, features: Tensor, which: int = 0) -> Tensor:
        """A number in [0, 1) for each of (n, width) rows, (n,); two independent ones: `which` is 0 or 1.

        A hash of the bits would differ between two machines, or two batches, whose encoders round
        differently; this one moves by 1e-4 when a feature moves by 1e-7, so the same rows are kept.
        """
        rows = normalize(features.to(self.directions), dim=1)
        return (rows @ self.directions[:, which] * 1000).remainder(1)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Offer (n, width) rows with their (n,) labels."""
        self._add(features, labels, self.keys_of(features))

    def clear(self) -> None:
        """Be as if no row had been offered."""
        self.limit = torch.ones_like(self.limit)
        self._keep(self.keys < 0)

    def merge(self, other: ContentSample, places: Tensor) -> None:
        """Offer all rows that `other` was offered; its label k becomes label `places[k]`. Both have the same seed."""
        self.limit = torch.minimum(self.limit, other.limit.to(self.limit))
        self._keep(self.keys < self.limit)
        self._add(other.features, places.to(other.labels)[other.labels], other.keys)

    def smallest(self, n: int) -> tuple[Tensor, Tensor]:
        """Features and labels of the n rows with the smallest keys. Rows that leave by `remove` make room for
        the next ones, so while n rows are left the answer is as if the removed rows had never been offered."""
        rows = self.keys < self.keys[n] if len(self) > n else slice(None)
        return self.features[rows], self.labels[rows]

    def remove(self, features: Tensor, labels: Tensor) -> None:
        """Remove those of the rows that are in the sample: of each the nearest, if it is within the rounding.

        Raises:
            EverlearnError: a row that must be in the sample is not, so it was never added; nothing is removed.
        """
        stay = torch.ones_like(self.labels, dtype=torch.bool)
        # Near the limit, rounding decides whether a row is in the sample. Coarse rounding turns a key into any other.
        margin = 0.0 if self.limit == 1 else 1e-3 if self.rounding <= 1e-4 else 1.0
        keys = self.keys_of(features)
        near = keys < self.limit + margin
        kept = 0.0 if self.features.dtype == torch.float32 else 2e-3  # of the largest value: rounding of what is kept
        must = (keys < self.limit - margin)[near].tolist()
        offered = zip(features[near].to(self.features), labels[near].tolist(), keys[near], must, strict=True)
        for row, label, key, is_kept in offered:
            own = (stay & (self.labels == label)).nonzero()[:, 0]  # to compare the row with all others would take long
            distance = (self.features[own] - row).float().abs().amax(1) / row.abs().amax()
            near_enough = distance <= max(self.rounding, kept)
            found = own[near_enough & (distance <= distance.min() + kept)] if len(own) else own
            if len(found):  # rows that are kept as equal may have had different features, and so different keys
                stay[found[(self.keys[found] - key).abs().argmin()]] = False
            elif is_kept:
                raise EverlearnError("remove: an example was never added with this label; nothing was removed")
        self._keep(stay)

    def _add(self, features: Tensor, labels: Tensor, keys: Tensor) -> None:
        new = keys < self.limit.to(keys)
        self.features = torch.cat([self.features, features[new].to(self.features)])
        self.labels = torch.cat([self.labels, labels[new].to(self.labels)])
        self.keys = torch.cat([self.keys, keys[new].to(self.keys)])
        self._keep(self.keys.argsort(stable=True))
        if len(self) > self.capacity:
            self.limit = self.keys[self.capacity].clone()
            self._keep(self.keys < self.limit)

    def _keep(self, rows: Tensor) -> None:
        self.features, self.labels, self.keys = self.features[rows], self.labels[rows], self.keys[rows]
