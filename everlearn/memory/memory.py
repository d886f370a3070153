"""Memory: examples of old tasks, in columns, as many as a budget allows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from everlearn.batches import WINDOW
from everlearn.errors import EverlearnError, EverlearnWarning, one_line
from everlearn.memory.policies import Policy, Reservoir
from everlearn.state import Stateful, check_saved
from everlearn.streams.inputs import content, kind, original
from everlearn.streams.stream import NO_EXAMPLES, Examples

COLUMN = "column "  # how the buffers of named tensors begin
UNCOUNTED = ("draw", "came")  # columns that say only which examples are chosen: no budget in bytes counts them


class Memory(Stateful):
    """Examples that were seen: texts or encoded images (a path is read when it is stored), with labels, ids,
    positives, negatives and any tensors by name, such as the logits or embeddings that a model gave them.

    If the budget does not suffice for all, the policy decides what is kept. With a budget in bytes, smaller
    examples are kept more often than larger ones, and one that is larger than the whole budget is never kept.
    Draws depend on the seed and on two saved counters alone, so a resumed run draws the same. Everything kept
    goes into every checkpoint; `stored_bytes` says how much that is.

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
    records: Tensor

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
        where the column holds whole numbers, False where it holds booleans).

        Raises:
            EverlearnError: a column does not have one row per example.

        Warns:
            EverlearnWarning: the budget in bytes suffices for no example.
        """
        for name, column in columns.items():
            if len(column) != len(examples):
                raise EverlearnError(f"the column '{name}' has {len(column)} rows for {len(examples)} examples")
        if not len(examples):
            return
        draw = np.random.default_rng([self.seed, 0, int(self.seen)]).random(len(examples))
        named = {**examples.columns, **columns, "draw": torch.from_numpy(draw)}
        stored = [item if kind(item) == "text" else content(item) for item in map(original, examples.inputs)]
        new = Examples(stored, examples.labels, list(examples.ids), examples.positives, None,
                       {name: column.detach().cpu() for name, column in named.items()}, examples.negatives)  # fmt: skip
        self.seen += len(examples)
        candidates = Examples.concatenate(_widened(self._held, new))
        self._held = candidates if self.limits == (None, None) else candidates[self._chosen(candidates)]
        most, room = self.limits
        if not len(self) and room and most != 0:
            warnings.warn(f"the memory keeps nothing: {room} bytes hold no example, and the smallest has "
                          f"{min(_sizes(candidates))}: give a larger --method.memory_bytes",
                          EverlearnWarning, stacklevel=2)  # fmt: skip

    def sample(self, n: int, alike: bool = False, among: Sequence[int] | None = None) -> Examples:
        """n examples, or all where there are fewer, drawn without replacement.

        Args:
            among: draw from these rows of `examples()` only.
            alike: draw texts of similar length, so that little of a batch is padding. Several times n are drawn and
                sorted by length, and one run of n of them is taken at random: each example is still equally likely.
        """
        draw = np.random.default_rng([self.seed, 1, int(self.draws)])
        self.draws += 1
        rows = draw.permutation(len(self) if among is None else np.asarray(among))
        if alike and len(rows) >= 2 * n:
            texts = self._held.positives or self._held.inputs
            drawn = rows[: n * min(WINDOW, len(rows) // n)]
            lengths = [len(text) if isinstance(text, str) else 0 for text in (texts[row] for row in drawn.tolist())]
            runs = drawn[np.argsort(lengths, kind="stable")].reshape(-1, n)
            rows = runs[draw.integers(len(runs))]
        return self._held[rows[:n]]

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
        rows = self.policy(candidates)
        if room is not None:
            sizes = torch.tensor(_sizes(candidates))
            # One that is larger than the whole budget is never kept, so it may not take the place of others.
            rows = rows[sizes[rows] <= room][:most]
            rows = rows[sizes[rows].cumsum(0) <= room]
        return sorted(rows[:most].tolist())

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """The saved examples can be read, and each column has a row for each of them; NaN stands for what is blank."""
        columns = {name: tensor for name, tensor in saved.items() if name.startswith(COLUMN)}
        super().check_saved({name: tensor for name, tensor in saved.items() if name not in columns})
        count = len(_from_bytes(saved["records"])) if len(saved.get("records", ())) else 0
        for name, tensor in columns.items():
            check_saved(name, tensor, tensor, (count, *tensor.shape[1:]), finite=False)
        if count and COLUMN + "draw" not in columns:
            raise EverlearnError("the checkpoint does not fit the method: its memory lacks the draws of its examples")

    # -- examples as tensors, so that a state dict carries them

    def _pack(self, held: Examples) -> None:
        """Have the examples in buffers: the named tensors as they are, the rest as one table in Arrow's format."""
        self.register_buffer("records", _to_bytes(held) if len(held) else torch.empty(0, dtype=torch.uint8))
        for name in [name for name in self._buffers if name.startswith(COLUMN)]:
            del self._buffers[name]
        for name, tensor in held.columns.items():
            self.register_buffer(COLUMN + name, tensor)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._pack(self._held)
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[arg-type]
        self._pack(NO_EXAMPLES)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        columns = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix + COLUMN)}
        for name, tensor in columns.items():
            self.register_buffer(name, torch.empty_like(tensor))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prefix + "records" in state_dict:
            held = _from_bytes(self.records) if len(self.records) else NO_EXAMPLES
            named = {name.removeprefix(COLUMN): tensor.cpu().clone() for name, tensor in columns.items()}
            self._held = replace(held, columns=named)
        self._pack(NO_EXAMPLES)


def _to_bytes(held: Examples) -> Tensor:
    """All but the named tensors as a table in Arrow's stream format, (bytes,)."""
    import pyarrow

    nothing = [None] * len(held)
    negatives = {} if held.negatives is None else {"negatives": list(map(list, held.negatives))}
    table = pyarrow.table({
        "input": [content(item) for item in held.inputs], "is_text": [kind(item) == "text" for item in held.inputs],
        "label": held.labels.tolist() or nothing, "id": list(held.ids), "positive": held.positives or nothing,
        **negatives,
    })  # fmt: skip
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return torch.from_numpy(np.frombuffer(sink.getvalue(), np.uint8).copy())


def _from_bytes(packed: Tensor) -> Examples:
    """What `_to_bytes` packed.

    Raises:
        EverlearnError: it is damaged.
    """
    import pyarrow

    with one_line("the memory in the checkpoint", "learn the run again", EverlearnError):
        table = pyarrow.ipc.open_stream(packed.cpu().numpy().tobytes()).read_all()
        table.validate(full=True)  # else a wrong offset would be read from beyond the table
        columns = table.to_pydict()
        inputs = [item.decode() if text else item
                  for item, text in zip(columns["input"], columns["is_text"], strict=True)]  # fmt: skip
        labels = [] if columns["label"][0] is None else columns["label"]
        positives = None if columns["positive"][0] is None else columns["positive"]
        negatives = columns.get("negatives")
        documents = [*(positives or ()), *(text for own in negatives or () for text in own)]
        if not all(isinstance(item, str) for item in [*columns["id"], *documents]):
            raise ValueError("an id or a document is not a text")
        labels = torch.tensor(labels, dtype=torch.long)
        return Examples(inputs, labels, columns["id"], positives, negatives=negatives)


def _sizes(examples: Examples) -> list[int]:
    """Bytes of each example with all that is kept of it."""
    columns = [column for name, column in examples.columns.items() if name not in UNCOUNTED and len(column)]
    fixed = 8 + sum(column[0].numel() * column.element_size() for column in columns)
    positives: Sequence[str] = examples.positives or [""] * len(examples)
    negatives: Sequence[Sequence[str]] = examples.negatives or [()] * len(examples)
    return [
        len(content(item)) + sum(len(text.encode()) for text in (name, positive, *own)) + fixed
        for item, name, positive, own in zip(examples.inputs, examples.ids, positives, negatives, strict=True)
    ]


def _widened(old: Examples, new: Examples) -> tuple[Examples, Examples]:
    """Both with the same columns of the same width; what one of them does not have is blank there."""
    if not len(old) or not len(new):
        return old, new
    columns: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name in {**old.columns, **new.columns}:
        known = [part.columns.get(name) for part in (old, new)]
        like = next(column for column in known if column is not None)
        blank = torch.nan if like.is_floating_point() else False if like.dtype == torch.bool else -1
        width = max(column.shape[-1] for column in known if column is not None)
        for part, column, into in zip((old, new), known, columns, strict=True):
            column = like.new_full((len(part), *like.shape[1:]), blank) if column is None else column
            into[name] = pad(column, (0, width - column.shape[1]), value=blank) if column.dim() == 2 else column
    return replace(old, columns=columns[0]), replace(new, columns=columns[1])
