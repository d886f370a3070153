"""Online streams: class-incremental steps whose training examples are seen only once, in small batches."""

from __future__ import annotations

import numpy as np

from everlearn.streams.splits import Parts


def shuffled(parts: Parts, seed: int) -> Parts:
    """Shuffle the training examples with a seed: files are often sorted by class, and real streams are not."""
    order = np.random.RandomState(seed).permutation(len(parts["train"]))
    return {**parts, "train": [parts["train"][row] for row in order]}
