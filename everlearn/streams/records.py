"""Records: the rows of a data set, before they are arranged into a stream."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from everlearn.errors import DataError

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The names that data sets use for their splits, and the names that this package uses."""

SPLITS = ("train", "validation", "test")
LINE_FILES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")


def place(file: str, row: int | None) -> str:
    """The position of a row, in the words of its file format.

    >>> place("shop.csv", 3), place("shop.parquet", 3), place("cats/1.png", None)
    ('shop.csv, line 3', 'shop.parquet, row 3', 'cats/1.png')
    """
    if row is None:
        return file
    return f"{file}, {'line' if file.lower().endswith(LINE_FILES) else 'row'} {row}"


@dataclass(frozen=True)
class Record:
    """One row: an input, what is known about it, and its position in a file. An empty id is filled in later.

    >>> record = Record("tea please", "drink", file="shop.csv", row=3)
    >>> record.place
    'shop.csv, line 3'
    """

    input: str | bytes | Path
    label: str
    id: str = ""
    file: str = ""
    row: int | None = None
    split: str | None = None
    domain: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, in the words of its file format."""
        return place(self.file, self.row)


@dataclass
class BadRows:
    """Refuses bad rows, or records them if the user asked to leave them out.

    Attributes:
        rows: where each of them is, and what is wrong with it.
        option: how the command line asks to leave them out.

    >>> bad = BadRows(skip=True)
    >>> bad.add("shop.csv, line 3", "the text is empty", "fill it in")
    >>> bad.notes()
    ('left out 1 bad row: shop.csv, line 3: the text is empty',)
    """

    skip: bool
    rows: list[tuple[str, str]] = field(default_factory=list)
    option: str = "--stream.skip_bad_rows true"

    def add(self, where: str, cause: str, remedy: str) -> None:
        """Record a row that is left out. Raises DataError if bad rows are not to be skipped."""
        if not self.skip:
            python = "in Python skip_bad_rows=True"
            raise DataError(f"{where}: {cause}; {remedy}, or leave bad rows out with {self.option} ({python})")
        self.rows.append((where, cause))

    def notes(self) -> tuple[str, ...]:
        if not self.rows:
            return ()
        first, count = ": ".join(self.rows[0]), len(self.rows)
        return (f"left out {count} bad rows: the first is {first}" if count > 1 else f"left out 1 bad row: {first}",)


@dataclass(frozen=True)
class Table:
    """The records of one data set.

    Args:
        source: what the user named, for messages.
        input: text or image.
        class_names: the classes in the data set's own order, where it declares one.
        notes: what a reader of results on this data must know.
    """

    source: str
    input: str
    records: list[Record]
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def with_all(self, **fields: Any) -> Table:
        """The same records, all with these values: of one split, or of one domain."""
        return replace(self, records=[replace(record, **fields) for record in self.records])

    @staticmethod
    def join(tables: list[Table]) -> Table:
        """The records of all tables, in order. All tables must hold the same kind of input."""
        first = tables[0]
        for other in tables[1:]:
            if other.input != first.input:
                raise DataError(
                    f"{other.source} holds {other.input} data, but {first.source} holds {first.input} data; "
                    "give files of one kind"
                )
        records = [record for table in tables for record in table.records]
        names = dict.fromkeys(name for table in tables for name in table.class_names)
        notes = tuple(note for table in tables for note in table.notes)
        return replace(first, records=records, class_names=tuple(names), notes=notes)


def of_split(records: list[Record], split: str) -> list[Record]:
    """The records of one split. A record without a split is a training record."""
    return [record for record in records if (record.split or "train") == split]


def with_ids(records: list[Record], bad: BadRows) -> list[Record]:
    """The records, each with its own id. A record with an id that its file has already is a bad row.

    A record without an id gets the name of its file and its row as id, or the whole path and the row if two files
    have the same name. Many files number their rows from 0: where a file has an id of an earlier file, all of its ids
    get its name in front.

    >>> records = [Record("tea", "drink", "0", "train.csv", 2), Record("a sofa", "furniture", "0", "test.csv", 2)]
    >>> [record.id for record in with_ids(records, BadRows(skip=False))]
    ['0', 'test.csv:0']
    """
    names = {file: Path(file).name for file in {record.file for record in records}}
    paths = Counter(names.values())
    first_with = {record.id: record.file for record in reversed(records)}
    numbered_again = {record.file for record in records if record.id and first_with[record.id] != record.file}

    def own_id(record: Record) -> str:
        if record.id and record.file not in numbered_again:
            return record.id
        name = names[record.file]
        return f"{name if paths[name] == 1 else record.file}:{record.id or record.row}"

    seen: dict[str, Record] = {}
    for record in records:
        own = replace(record, id=own_id(record))
        first = seen.setdefault(own.id, own)
        if first is not own:
            cause = f"the id '{record.id or own.id}' is already used at {first.place}"
            bad.add(record.place, cause, "give each record its own id, or name another column with id_column")
    return list(seen.values())
