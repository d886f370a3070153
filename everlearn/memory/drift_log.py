"""How the space of an encoder has moved since each of its earlier states, in the mean."""

from __future__ import annotations

import torch
from torch import Tensor

from everlearn.errors import EverlearnError
from everlearn.state import Stateful, check_saved, grown

BYTES = 16
"""Of a space: it is called by a hash of 32 hexadecimal digits."""


class DriftLog(Stateful):
    """One row for each earlier space: its hash, and the mean movement of embeddings from there to the present.

    Args:
        width: of an embedding.

    >>> log = DriftLog(2)
    >>> log.record("0a" * 16, torch.tensor([1.0, 0.0]))
    >>> log.record("0b" * 16, torch.tensor([0.0, 0.5]))
    >>> log.since("0a" * 16).tolist(), log.since("0b" * 16).tolist(), log.since("0c" * 16) is None
    ([1.0, 0.5], [0.0, 0.5], True)
    """

    spaces: Tensor
    shifts: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("spaces", torch.zeros(0, BYTES, dtype=torch.uint8))
        self.register_buffer("shifts", torch.zeros(0, width))

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """As every module, and each space has one shift of the model's width."""
        super().check_saved(saved)
        rows = len(saved.get("spaces", self.spaces))
        check_saved("spaces", saved.get("spaces", self.spaces), self.spaces, (rows, BYTES))
        check_saved("shifts", saved.get("shifts", self.shifts), self.shifts, (rows, self.shifts.shape[1]))

    def record(self, space: str, moved: Tensor) -> None:
        """Say that the encoder was in `space`, and that its embeddings have moved by `moved` (width,) since then."""
        if self.since(space) is None:
            self.spaces = torch.cat([self.spaces, _packed(space).to(self.spaces)[None]])
            self.shifts = grown(self.shifts, len(self.spaces))
        self.shifts = self.shifts + moved.to(self.shifts)

    def since(self, space: str) -> Tensor | None:
        """The movement (width,) from `space` to the present; None where the encoder was never there."""
        rows = (self.spaces == _packed(space).to(self.spaces)).all(1).nonzero()
        return self.shifts[rows[0, 0]] if len(rows) else None


def _packed(space: str) -> Tensor:
    try:
        return torch.tensor(list(bytes.fromhex(space)), dtype=torch.uint8)
    except ValueError:
        raise EverlearnError(f"'{space}' is not a space: a space is a hash in hexadecimal digits") from None
