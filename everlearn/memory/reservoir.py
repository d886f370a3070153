"""Reservoir: a bounded set of old examples, each equally likely to be in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everlearn.state import Stateful
from everlearn.streams.stream import Examples, content
from everlearn.streams.views import original

Record = tuple["str | bytes", "int | None", str, "str | None"]  # input, label, id, positive
TEXT, LABEL, POSITIVE = 1, 2, 4  # flags of a packed record: what it has


class Reservoir(Stateful):
    """Raw examples of what was seen: texts, or encoded images (a path is read when it is stored).

    After t examples each of them is kept with probability capacity / t (reservoir sampling, Vitter
    1985). Draws depend on the seed and on two saved counters alone, so a resumed run draws the same.
    Everything kept goes into every checkpoint; `stored_bytes` says how much that is.

    Args:
        capacity: most examples kept; None keeps everything.
        seed: of the draws.

    >>> memory = Reservoir(capacity=2, seed=0)
    >>> memory.add(Examples(["a", "b", "c"], torch.tensor([0, 1, 2]), ["1", "2", "3"]))
    >>> len(memory), len(memory.sample(5)), int(memory.seen)
    (2, 2, 3)
    """

    seen: Tensor
    draws: Tensor
    flags: Tensor
    labels: Tensor

    def __init__(self, capacity: int | None, seed: int = 0):
        super().__init__()
        self.capacity, self.seed = capacity, seed
        self._records: list[Record] = []
        self.register_buffer("seen", torch.tensor(0))  # examples offered so far
        self.register_buffer("draws", torch.tensor(0))  # calls of `sample` so far
        self._pack([])  # the other buffers are filled only while a state dict is made

    def __len__(self) -> int:
        return len(self._records)

    def add(self, examples: Examples) -> None:
        """Offer examples to the memory, in order. Costs nothing for those that are not kept."""
        seen, limit = int(self.seen), np.inf if self.capacity is None else self.capacity
        order = np.arange(seen, seen + len(examples))
        # Example t goes to place t while there are places, then to a random one of t + 1, if it exists.
        drawn = np.random.default_rng([self.seed, 0, seen]).integers(order + 1)
        for row, place in enumerate(np.where(order < limit, order, drawn).tolist()):
            if place < len(self):
                self._records[place] = _record(examples, row)
            elif place < limit:
                self._records.append(_record(examples, row))
        self.seen += len(examples)

    def sample(self, n: int) -> Examples:
        """n examples, or all where there are fewer, drawn without replacement."""
        draw = np.random.default_rng([self.seed, 1, int(self.draws)])
        self.draws += 1
        rows = draw.permutation(len(self))[:n]
        return _examples([self._records[row] for row in rows])

    def examples(self) -> Examples:
        """Everything that is kept."""
        return _examples(self._records)

    def remove(self, ids: Iterable[str]) -> int:
        """Forget the records of these ids and say how many there were. Later examples fill their places."""
        forget, before = set(ids), len(self)
        self._records = [record for record in self._records if record[2] not in forget]
        return before - len(self)

    def stored_bytes(self) -> int:
        """Bytes of the inputs, labels, ids and positives."""
        return sum(
            len(content(item)) + 8 + len(name.encode()) + len((positive or "").encode())
            for item, _, name, positive in self._records
        )

    # -- records as tensors, so that a state dict carries them

    def _pack(self, records: Sequence[Record]) -> None:
        inputs, labels, ids, positives = zip(*records, strict=True) if records else ([], [], [], [])
        flags = [
            TEXT * isinstance(item, str) + LABEL * (label is not None) + POSITIVE * (positive is not None)
            for item, label, _, positive in records
        ]
        self.register_buffer("flags", torch.tensor(flags, dtype=torch.uint8))
        self.register_buffer("labels", torch.tensor([label or 0 for label in labels], dtype=torch.long))
        for name, column in (("inputs", inputs), ("ids", ids), ("positives", positives)):
            parts = [content(item or "") for item in column]
            self.register_buffer(name, torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).copy()))
            self.register_buffer(f"{name}_length", torch.tensor([len(part) for part in parts], dtype=torch.long))

    def _unpack(self) -> list[Record]:
        def column(name: str) -> list[bytes]:
            blob = getattr(self, name).cpu().numpy().tobytes()
            ends = getattr(self, f"{name}_length").cumsum(0).tolist()
            return [blob[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []

        columns = (
            self.flags.tolist(),
            column("inputs"),
            self.labels.tolist(),
            column("ids"),
            column("positives"),
        )
        return [
            (
                item.decode() if flag & TEXT else item,
                label if flag & LABEL else None,
                name.decode(),
                positive.decode() if flag & POSITIVE else None,
            )
            for flag, item, label, name, positive in zip(*columns, strict=True)
        ]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._pack(self._records)
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[arg-type]
        self._pack([])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prefix + "flags" in state_dict:
            self._records = self._unpack()
        self._pack([])


def _record(examples: Examples, row: int) -> Record:
    item = original(examples.inputs[row])
    return (
        item if isinstance(item, str) else content(item),
        int(examples.labels[row]) if len(examples.labels) else None,
        examples.ids[row],
        None if examples.positives is None else examples.positives[row],
    )


def _examples(records: Sequence[Record]) -> Examples:
    """The records in columns; labels or positives are left out where no record has them."""
    inputs, labels, ids, positives = ([*column] for column in zip(*records, strict=True)) if records else ([],) * 4
    known = torch.tensor([label for label in labels if label is not None], dtype=torch.long)
    has_positives = bool(records) and None not in positives
    return Examples(inputs, known, ids, positives if has_positives else None)
