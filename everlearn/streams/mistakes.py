"""Common mistakes in labelled data that would otherwise be learned without a word: exchanged columns, several labels in
one cell, and examples whose labels contradict each other."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from everlearn.errors import DataError, printable
from everlearn.streams.records import Record, place
from everlearn.streams.splits import Parts

SEPARATORS = ";|,"
NUMBER = re.compile(r"[\d.,\s+-]+")
LIST = re.compile(r"\[\s*(['\"]).*\1\s*\]")
"""A list of texts, as Python or JSON writes it into a cell of CSV."""

FEW = 10
"""Rows below which nothing is concluded from how often values repeat."""

MOST_CONFLICTING = 0.25
"""The share of examples with contradicting labels above which the data cannot be meant so."""


def check_columns(file: str, text_column: str, texts: Sequence[Any], label_column: str, labels: Sequence[Any]) -> None:
    """Raise a DataError if the label column holds long texts that hardly repeat and the text column few short ones."""
    if len(texts) < FEW or not all(isinstance(value, str) for value in labels):
        return
    shown = list(map(str, texts)) if all(isinstance(text, str | int | float) for text in texts) else []
    few, many, rows = len(set(shown)), len(set(labels)), len(labels)
    if shown and few <= rows / 2 and many >= 0.9 * rows and mean(map(len, labels)) > mean(map(len, shown)):
        counts = f"'{label_column}' holds {many:,} different values in {rows:,} rows, '{text_column}' only {few:,}"
        raise DataError(f"{file}: the columns of texts and labels seem to be exchanged ({counts}); give "
                        f"text_column={label_column} and label_column={text_column}")  # fmt: skip


def check_labels(records: Sequence[Record]) -> None:
    """Raise a DataError if the labels are several labels in one cell, such as ``card;lost``.

    A separator inside a label proves nothing. What does: nearly every part also occurs elsewhere, and some part is a
    label of its own or stands at another position too. The parts of ``animal|cat`` and ``animal|dog`` do not.
    """
    names = Counter(record.label for record in records)
    lists = [name for name in names if LIST.fullmatch(name)]
    if lists and len(lists) > len(names) / 2:
        _refuse(records, lists[0])
    for separator in SEPARATORS:
        split = {name: [part.strip() for part in name.split(separator)] for name in names if separator in name}
        joined = {name: parts for name, parts in split.items() if all(parts) and not NUMBER.fullmatch(name)}
        places: dict[str, set[int]] = defaultdict(set)
        count: Counter[str] = Counter()
        for parts in joined.values():
            count.update(parts)
            for position, part in enumerate(parts):
                places[part].add(position)
        known = [name for name, parts in joined.items() if all(part in names or count[part] > 1 for part in parts)]
        mixed = any(part in names or len(found) > 1 for part, found in places.items())
        if mixed and len(known) >= 0.9 * len(joined):
            _refuse(records, known[0])


def _refuse(records: Sequence[Record], label: str) -> None:
    first = next(record for record in records if record.label == label)
    remedy = "keep the main one, or write it without separators if it is one class"
    raise DataError(f"{first.place}: the label '{printable(label)}' seems to be several labels, and there is one class "
                    f"per row: {remedy}")  # fmt: skip


def conflicting_labels(parts: Parts, source: str, *, by_domain: bool) -> tuple[str, ...]:
    """A note on training texts and images that stand with more than one label, if there are any; they are kept.

    Args:
        by_domain: whether the same text may have another label in another domain.

    Raises:
        DataError: so many that the labels cannot be meant as classes.
    """
    records = [record for record in parts["train"] if not isinstance(record.input, Path)]
    labels: dict[tuple[object, str | None], dict[str, Record]] = defaultdict(dict)
    for record in records:
        labels[record.input, record.domain if by_domain else None].setdefault(record.label, record)
    conflicts = {key: found for key, found in labels.items() if len(found) > 1}
    if not conflicts:
        return ()
    (item, _), found = next(iter(conflicts.items()))
    shown = f"'{printable(item, 80)}'" if isinstance(item, str) else "an image"
    example = f"{shown} is {' and '.join(map(_where, list(found.values())[:2]))}"
    affected = sum((record.input, record.domain if by_domain else None) in conflicts for record in records)
    if affected > max(MOST_CONFLICTING * len(records), FEW):
        raise DataError(f"{source}: {affected:,} of {len(records):,} training rows have an input with several labels "
                        f"({example}), but an input has one class: keep one label of each input")  # fmt: skip
    count = len(conflicts)
    have = "inputs have" if count > 1 else "input has"
    return (
        f"{count:,} training {have} more than one label, and all rows are used: {example}; correct the wrong label",
    )


def _where(record: Record) -> str:
    return f"'{printable(record.label, 80)}' at {place(Path(record.file).name, record.row)}"


def other_spellings(new: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """A note on the first new class whose name differs from that of a known one in case, spaces or the way that a
    number is written, if there is one.

    >>> other_spellings(["Card  lost", "2.0"], ["card lost", "2"])[0]
    "2 new classes may be known ones in another spelling, such as 'Card  lost' beside 'card lost': correct the labels, \
and go back with everlearn rollback"
    """
    plain = {_plain(name): name for name in known}
    pairs = [(name, plain[_plain(name)]) for name in new if _plain(name) in plain]
    if not pairs:
        return ()
    name, old = (printable(name, 60) for name in pairs[0])
    return (f"{len(pairs)} new class{'es' * (len(pairs) > 1)} may be known ones in another spelling, such as '{name}' "
            f"beside '{old}': correct the labels, and go back with everlearn rollback",)  # fmt: skip


def _plain(name: str) -> str:
    words = " ".join(name.casefold().split())
    try:
        return f"{float(words):g}"
    except ValueError:
        return words
