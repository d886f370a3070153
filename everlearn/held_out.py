"""Held out: examples that a run keeps in its folder, so that an update can say what it changed."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from everlearn.calibration import draw
from everlearn.errors import EverlearnError, one_line
from everlearn.memory.memory import Memory
from everlearn.memory.policies import Balanced
from everlearn.streams.stream import Examples

KEEP = 2000
"""Examples kept for each of the two purposes, as many of each class as of the others."""
MOST_BYTES = 64 * 2**20
"""And at most so many bytes, which 2,000 texts never reach, and large images do."""


class HeldOut(nn.Module):
    """Two samples, of raw texts or of images as they are encoded. A later version loads them and adds to them.

    Attributes:
        test: test examples, by which the scores before and after an update are compared.
        calibration: the examples that the temperature is fitted on.

    >>> import torch
    >>> held_out = HeldOut()
    >>> held_out.test.add(Examples(["a", "b"], torch.tensor([0, 1]), ["1", "2"]))
    >>> HeldOut.load(held_out.state_dict(), classes=2).test.examples().inputs
    ['a', 'b']
    """

    def __init__(self, keep: int = KEEP) -> None:
        super().__init__()
        self.test = Memory(keep, bytes=MOST_BYTES, policy=Balanced())
        self.calibration = Memory(keep, bytes=MOST_BYTES, policy=Balanced(), seed=1)

    def add_test(self, examples: Examples) -> None:
        """Offer test examples. The memory reads images from their files, so only as many are offered as it may keep."""
        labels = set(examples.labels.tolist())
        most = (self.test.limits[0] or 0) // max(len(labels), 1) + 1
        self.test.add(examples[draw(examples, dict.fromkeys(labels, most), np.random.default_rng(int(self.test.seen)))])

    def stored_bytes(self) -> int:
        """Bytes of the examples, with their labels and ids."""
        return self.test.stored_bytes() + self.calibration.stored_bytes()

    @staticmethod
    def load(saved: dict[str, Tensor], classes: int, keep: int = KEEP) -> HeldOut:
        """What a state dict holds; it is empty where nothing is kept.

        Raises:
            EverlearnError: it is damaged, or has a label that is not one of so many classes.
        """
        held_out = HeldOut(keep)
        with one_line("the held-out examples", "learn the run again", EverlearnError):
            for name, memory in (("test", held_out.test), ("calibration", held_out.calibration)):
                prefix = f"{name}."
                memory.check_saved({key.removeprefix(prefix): t for key, t in saved.items() if key.startswith(prefix)})
            if saved:
                held_out.load_state_dict(saved)
            for memory in (held_out.test, held_out.calibration):
                labels = memory.examples().labels
                if len(labels) < len(memory) or not all(0 <= label < classes for label in labels.tolist()):
                    raise ValueError(f"a label is not one of {classes} classes")
        return held_out
