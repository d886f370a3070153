"""What an answer costs: the seconds of a prediction, and how often an encoder reads its example."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from everlearn.backbones.backbone import Backbone
from everlearn.features import default_store


@dataclass
class AnswerCosts:
    """Sums over predictions, as evaluation asks for them.

    The feature store decides which features are computed, so what it holds must not decide what an answer costs: the
    seconds are those without the encoding of features that the store keeps, and each of these features counts as one
    pass, whether it was computed or read, and as a stored feature. In a run that encodes, `seconds.encode /
    examples_encoded` of its results is the mean time of one.

    Args:
        examples: asked so far. seconds: of their answers. passes: through an encoder, where each example counts once
            for each pass. features: of these passes, those whose features the store keeps.

    >>> from everlearn import backbones
    >>> tiny, costs = backbones.load("tiny"), AnswerCosts()
    >>> for _ in range(2):
    ...     with costs.counted(3):
    ...         _ = tiny.encode(["a cup of tea", "a sofa", "a chair"])
    >>> costs.each()["encoder_passes"], costs.each()["stored_features"], costs.each()["milliseconds"] >= 0
    (1.0, 1.0, True)
    """

    examples: int = 0
    seconds: float = 0.0
    passes: int = 0
    features: int = 0

    @contextmanager
    def counted(self, examples: int) -> Iterator[None]:
        """Inside the block, so many examples are answered."""
        store, started, passed = default_store(), time.perf_counter(), Backbone.passed
        served, encoded, encoding = store.served, store.encoded, store.seconds
        yield
        self.examples += examples
        self.seconds += max(0.0, time.perf_counter() - started - (store.seconds - encoding))
        self.passes += Backbone.passed - passed + store.served - served
        self.features += store.encoded - encoded + store.served - served

    def each(self) -> dict[str, float] | None:
        """Milliseconds, encoder passes and stored features of one answer; None where nothing was asked."""
        sums = {"milliseconds": 1000 * self.seconds, "encoder_passes": self.passes, "stored_features": self.features}
        return {name: total / self.examples for name, total in sums.items()} if self.examples else None
