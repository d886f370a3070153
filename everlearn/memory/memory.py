"""Memory: examples of old tasks, in columns, as many as a budget allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from everlearn.errors import EverlearnError
from everlearn.memory.policies import Policy, Reservoir
from everlearn.state import Stateful
from everlearn.streams.inputs import content, kind, original
from everlearn.streams.stream import NO_EXAMPLES, Examples

TEXT, LABEL, POSITIVE = 1, 2, 4  # flags of a packed example: what it has
COLUMN = "column "  # how the buffers of named tensors begin


class Memory(Stateful):
    """Examples that were seen: texts or encoded images (a path is read when it is stored), with labels, ids,
    positives and any tensors by name, such as the logits or embeddings that a model gave them.

    What is kept beyond the budget is the policy's choice. Draws depend on the seed and on two saved
    counters alone, so a resumed run draws the same. Everything kept goes into every checkpoint;
    `stored_bytes` says how much that is.

    Args:
        examples: most examples kept; None for no such limit.
        bytes: most bytes kept; None for no such limit.
        policy: which examples to keep; by default each is equally likely.
        seed: of the draws.

    Raises:
        EverlearnError: a negative budget.

    >>> memory = Memory(examples=2)
    >>> batch = Examples(["a", "b", "c"], torch.tensor([0, 1, 2]), ["1", "2", "3"])
    >>> memory.add(batch, logits=torch.eye(3))
    >>> len(memory), memory.sample(5).columns["logits"].shape, int(memory.seen)
    (2, torch.Size([2, 3]), 3)
    """

    seen: Tensor
    draws: Tensor
    flags: Tensor
    labels: Tensor

    def __init__(
        self, examples: int | None = None, *, bytes: int | None = None, policy: Policy | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if min(examples or 0, bytes or 0) < 0:
            raise EverlearnError("a memory cannot keep fewer than 0 examples or bytes: give a larger budget")
        self.limits, self.policy, self.seed = (examples, bytes), policy or Reservoir(), seed
        self._held = NO_EXAMPLES
        self.register_buffer("seen", torch.tensor(0))  # examples offered so far
        self.register_buffer("draws", torch.tensor(0))  # calls of `sample` so far
        self._pack(NO_EXAMPLES)  # the other buffers are filled only while a state dict is made

    def __len__(self) -> int:
        return len(self._held)

    def add(self, examples: Examples, **columns: Tensor) -> None:
        """Offer examples, in order, each with its row of the `columns` (n, …).

        A column may grow wider from task to task, as logits do. What was stored before is NaN there (-1
        where the column holds whole numbers).
        """
        draw = np.random.default_rng([self.seed, 0, int(self.seen)]).random(len(examples))
        named = {**examples.columns, **columns, "draw": torch.from_numpy(draw)}
        stored = [item if kind(item) == "text" else content(item) for item in map(original, examples.inputs)]
        new = Examples(stored, examples.labels, list(examples.ids), examples.positives, None,
                       {name: column.detach().cpu() for name, column in named.items()})  # fmt: skip
        self.seen += len(examples)
        candidates = Examples.concatenate(_widened(self._held, new))
        self._held = candidates if self.limits == (None, None) else candidates[self._chosen(candidates)]

    def sample(self, n: int) -> Examples:
        """n examples, or all where there are fewer, drawn without replacement."""
        draw = np.random.default_rng([self.seed, 1, int(self.draws)])
        self.draws += 1
        return self._held[draw.permutation(len(self))[:n]]

    def examples(self) -> Examples:
        """Everything that is kept."""
        return self._held

    def remove(self, ids: Iterable[str]) -> int:
        """Forget the examples of these ids and say how many there were. Later examples fill their places."""
        forget, before = set(ids), len(self)
        self._held = self._held[[row for row, name in enumerate(self._held.ids) if name not in forget]]
        return before - len(self)

    def stored_bytes(self) -> int:
        """Bytes of the inputs, labels, ids, positives and columns."""
        return sum(_sizes(self._held))

    def _chosen(self, candidates: Examples) -> list[int]:
        """The rows that the policy prefers and the budget allows, in the order of their arrival."""
        most, room = self.limits
        rows = self.policy(candidates).tolist()[:most]
        if room is not None:
            within = np.cumsum(np.array(_sizes(candidates))[rows]) <= room
            rows = rows[: int(within.sum())]
        return sorted(rows)

    # -- examples as tensors, so that a state dict carries them

    def _pack(self, held: Examples) -> None:
        labels = held.labels if len(held.labels) else torch.zeros(len(held), dtype=torch.long)
        known = LABEL * bool(len(held.labels)) + POSITIVE * (held.positives is not None)
        flags = [TEXT * (kind(item) == "text") + known for item in held.inputs]
        self.register_buffer("flags", torch.tensor(flags, dtype=torch.uint8))
        self.register_buffer("labels", labels)
        positives = held.positives if held.positives is not None else [""] * len(held)
        for name, column in (("inputs", held.inputs), ("ids", held.ids), ("positives", positives)):
            parts = [content(item) for item in column]
            self.register_buffer(name, torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).copy()))
            self.register_buffer(f"{name}_length", torch.tensor([len(part) for part in parts], dtype=torch.long))
        for name in [name for name in self._buffers if name.startswith(COLUMN)]:
            del self._buffers[name]
        for name, tensor in held.columns.items():
            self.register_buffer(COLUMN + name, tensor)

    def _unpack(self) -> Examples:
        def column(name: str) -> list[bytes]:
            blob = getattr(self, name).cpu().numpy().tobytes()
            ends = getattr(self, f"{name}_length").cumsum(0).tolist()
            return [blob[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []

        flags = self.flags.tolist()
        inputs = [item.decode() if flag & TEXT else item for item, flag in zip(column("inputs"), flags, strict=True)]
        has_labels, has_positives = (bool(flags and flags[0] & flag) for flag in (LABEL, POSITIVE))
        return Examples(
            inputs, self.labels.cpu() if has_labels else torch.empty(0, dtype=torch.long),
            [name.decode() for name in column("ids")],
            [text.decode() for text in column("positives")] if has_positives else None, None,
            {name.removeprefix(COLUMN): getattr(self, name).cpu() for name in self._buffers if name.startswith(COLUMN)},
        )  # fmt: skip

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._pack(self._held)
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[arg-type]
        self._pack(NO_EXAMPLES)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in state_dict:
            if name.startswith(prefix + COLUMN):
                self.register_buffer(name.removeprefix(prefix), torch.empty_like(state_dict[name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prefix + "flags" in state_dict:
            self._held = self._unpack()
        self._pack(NO_EXAMPLES)


def _sizes(examples: Examples) -> list[int]:
    """Bytes of each example with all that is kept of it."""
    columns = [column for name, column in examples.columns.items() if name != "draw" and len(column)]
    fixed = 8 + sum(column[0].numel() * column.element_size() for column in columns)
    positives: Sequence[str] = examples.positives or [""] * len(examples)
    return [
        len(content(item)) + len(name.encode()) + len(positive.encode()) + fixed
        for item, name, positive in zip(examples.inputs, examples.ids, positives, strict=True)
    ]


def _widened(old: Examples, new: Examples) -> tuple[Examples, Examples]:
    """Both with the same columns of the same width; what one of them does not have is blank there."""
    if not len(old) or not len(new):
        return old, new
    columns: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name in {**old.columns, **new.columns}:
        known = [part.columns.get(name) for part in (old, new)]
        like = next(column for column in known if column is not None)
        blank = torch.nan if like.is_floating_point() else -1
        width = max(column.shape[-1] for column in known if column is not None)
        for part, column, into in zip((old, new), known, columns, strict=True):
            column = like.new_full((len(part), *like.shape[1:]), blank) if column is None else column
            into[name] = pad(column, (0, width - column.shape[1]), value=blank) if column.dim() == 2 else column
    return replace(old, columns=columns[0]), replace(new, columns=columns[1])
