"""Splits: the data set's own, or seeded stratified splits if it has none; and limits on the examples per class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import DataError
from everlearn.streams.records import SPLITS, BadRows, Record, of_split

Parts = dict[str, list[Record]]
"""The records of train, validation and test."""

Shares = dict[str, float | str]
"""What to take for test and validation: a share of the training examples, or all of another file."""


def merge(several: list[Parts]) -> Parts:
    """Concatenate several sets of parts, split by split."""
    return {split: [record for parts in several for record in parts[split]] for split in SPLITS}


def make_splits(records: list[Record], source: str, shares: Shares, *, seed: int, by_domain: bool) -> Parts:
    """The data set's own splits. If it has no test or validation split, examples are taken out of training.

    The share is taken from each class (from each class in each domain, if domains are tasks): at least one
    example, as long as two examples stay in training.

    Raises:
        DataError: there are no training examples.
    """
    parts = {split: of_split(records, split) for split in SPLITS}
    if not parts["train"]:
        raise DataError(f"{source}: no training examples; give some with split 'train'")
    random = np.random.RandomState(seed)
    for name, share in shares.items():
        if share and not isinstance(share, str) and not parts[name]:
            parts["train"], parts[name] = _take(parts["train"], share, random, by_domain)
    return parts


def _take(
    records: list[Record], share: float, random: np.random.RandomState, by_domain: bool
) -> tuple[list[Record], list[Record]]:
    taken = drawn(_groups(records, by_domain), [record.input for record in records], share, random)
    kept = [record for row, record in enumerate(records) if row not in taken]
    return kept, [records[row] for row in sorted(taken)]


def drawn(groups: Iterable[list[int]], inputs: Sequence[Any], share: float, random: np.random.RandomState) -> set[int]:
    """Rows of a share of each group, at least one as long as two stay. Equal inputs of a group are drawn together, so
    that none of them is on both sides. If they are more than the share, they stay; and if all are, the fewest go."""
    taken: set[int] = set()
    for rows in groups:
        equal: dict[Any, list[int]] = defaultdict(list)
        for row in rows:
            equal[inputs[row]].append(row)
        together, mine = list(equal.values()), set[int]()
        count = max(min(max(round(share * len(rows)), 1), len(rows) - 2), 0)
        for place in random.permutation(len(together)).tolist():
            if len(mine) + len(together[place]) <= count:
                mine.update(together[place])
        fewest = min(together, key=len)
        if count and not mine and len(rows) - len(fewest) >= 2:
            mine.update(fewest)
        taken |= mine
    return taken


def _groups(records: list[Record], by_domain: bool) -> list[list[int]]:
    """The rows of each class, or of each class in each domain. The groups are sorted by name."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        groups[record.label, (record.domain or "") if by_domain else ""].append(row)
    return [rows for _, rows in sorted(groups.items())]


def learnable(parts: Parts, bad: BadRows, least: int = 2) -> Parts:
    """The records of all classes with at least so many training examples. Each row of another class is a bad row.

    Raises:
        DataError: there is another class, and bad rows are not skipped.
    """
    counts = Counter(record.label for record in parts["train"])
    for records in parts.values():
        for record in records:
            if counts[record.label] < least:
                found = "has a single training example" if counts[record.label] else "has no training example"
                bad.add(record.place, f"the class '{record.label}' {found}", "give it more examples, or remove it")
    return having(parts, "label", [label for label, count in counts.items() if count >= least])


def having(parts: Parts, field: str, values: Iterable[str]) -> Parts:
    """The records whose `field` (label or domain) has one of these values."""
    wanted = set(values)
    return {split: [r for r in records if getattr(r, field) in wanted] for split, records in parts.items()}


def divide(parts: Parts, field: str, groups: dict[str, int], count: int) -> list[Parts]:
    """The records of each of `count` groups. A group is named by `groups` for a value of `field` (label or domain);
    records with other values are left out."""
    divided: list[Parts] = [{split: [] for split in parts} for _ in range(count)]
    for split, records in parts.items():
        for record in records:
            group = groups.get(getattr(record, field))
            if group is not None:
                divided[group][split].append(record)
    return divided


def limit(parts: Parts, limits: dict[str, int | None], *, seed: int, by_domain: bool) -> Parts:
    """At most so many examples of a split per class (per class and domain, if domains are tasks)."""
    return {name: _fewer(records, limits.get(name), seed, by_domain) for name, records in parts.items()}


def _fewer(records: list[Record], most: int | None, seed: int, by_domain: bool) -> list[Record]:
    if most is None:
        return records
    random = np.random.RandomState(seed)
    chosen = [random.permutation(rows)[:most].tolist() for rows in _groups(records, by_domain)]
    return [records[row] for row in sorted(row for rows in chosen for row in rows)]


def shuffled(parts: Parts, seed: int) -> Parts:
    """Shuffle the training examples with a seed: files are often sorted by class, and online streams are not."""
    order = np.random.RandomState(seed).permutation(len(parts["train"]))
    return {**parts, "train": [parts["train"][row] for row in order]}


def inputs_of(parts: Parts) -> dict[str, list[Any]]:
    """The inputs of each split."""
    return {split: [record.input for record in records] for split, records in parts.items()}


def repeated_inputs(inputs: Mapping[str, Sequence[Any]]) -> list[str]:
    """Notes on test and validation inputs that also occur in training. Image files are not compared.

    Args:
        inputs: by the names of the splits.

    >>> repeated_inputs({"train": ["tea", "sofa"], "validation": [], "test": ["tea", "rose"]})
    ['1 of 2 test inputs also occur in train']
    """
    known, notes = set(inputs["train"]), []
    for split in ("test", "validation"):
        count = sum(input in known for input in inputs[split] if not isinstance(input, Path))
        if count:
            notes.append(f"{count} of {len(inputs[split])} {split} inputs also occur in train")
    return notes
