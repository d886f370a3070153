"""Online streams: class-incremental steps whose training examples pass by once, in small batches."""

from __future__ import annotations

import numpy as np

from everlearn.streams.splits import Parts


def shuffled(parts: Parts, seed: int) -> Parts:
    """The training examples in a seeded order: files often stand class by class, which no traffic does."""
    order = np.random.RandomState(seed).permutation(len(parts["train"]))
    return {**parts, "train": [parts["train"][row] for row in order]}
