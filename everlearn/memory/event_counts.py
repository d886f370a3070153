"""Event counts: how often each example of the present task was forgotten while it was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everlearn.errors import EverlearnError, one_line
from everlearn.state import Stateful
from everlearn.strict import from_json


class EventCounts(Stateful):
    """Forgetting events (Toneva et al., ICLR 2019, https://arxiv.org/abs/1812.05159), counted as training goes on.

    >>> counts = EventCounts()
    >>> for right in (True, False, True, False):
    ...     counts.record(["a", "b"], [right, False])
    >>> counts.forgotten(["a", "b", "c"]).tolist()  # b was never learned, and c never presented
    [2, 1073741824, 0]
    """

    ids: Tensor
    counts: Tensor
    NEVER_LEARNED = 2**30
    """Stands for the events of an example that was never learned, which count as more than all others, as in the
    paper."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, list[int]] = {}  # whether it was right last, whether ever, how often forgotten
        self._pack({})

    def record(self, ids: Sequence[str], right: Sequence[bool]) -> None:
        """Count one presentation of each example."""
        for id, now in zip(ids, right, strict=True):
            last, ever, forgotten = self._counts.get(id, (0, 0, 0))
            self._counts[id] = [int(now), int(ever or now), forgotten + int(last and not now)]

    def forgotten(self, ids: Sequence[str]) -> Tensor:
        """(n,) int64: how often each was forgotten."""
        found = (self._counts.get(id, (0, 1, 0)) for id in ids)
        return torch.tensor([events if ever else self.NEVER_LEARNED for _, ever, events in found], dtype=torch.long)

    def clear(self) -> None:
        """Count from nothing, for the next task."""
        self._counts = {}

    def _pack(self, counts: dict[str, list[int]]) -> None:
        names = json.dumps(list(counts)).encode() if counts else b""
        self.register_buffer("ids", torch.from_numpy(np.frombuffer(names, np.uint8).copy()))
        self.register_buffer("counts", torch.tensor(list(counts.values()), dtype=torch.long).reshape(-1, 3))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._pack(self._counts)
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[arg-type]
        self._pack({})

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        with one_line("the event counts in the checkpoint", "learn the run again", EverlearnError):
            names = from_json(self.ids.cpu().numpy().tobytes(), "event counts") if len(self.ids) else []
            self._counts = dict(zip(names, self.counts.tolist(), strict=True))
        self._pack({})
