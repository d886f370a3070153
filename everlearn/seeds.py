"""Seeds: everything random is a function of a few whole numbers, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: int) -> int:
    """A seed made of several numbers, such that neighbouring numbers do not give related random streams.

    >>> derived_seed(0, 1) == derived_seed(0, 1), derived_seed(0, 1) == derived_seed(1, 0)
    (True, False)
    """
    mixed = 0
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return mixed


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Inside the block torch draws from a generator seeded by `parts`; afterwards it goes on as before."""
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(*parts))
        yield
