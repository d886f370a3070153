"""Old-then-new: two tasks, what a model knew and what it is to learn now."""

from __future__ import annotations

from dataclasses import replace

from everlearn.errors import EverlearnError
from everlearn.streams.records import Record, Table


def sizes(classes: int, old: float) -> list[int]:
    """How many classes are old and how many are new.

    Raises:
        EverlearnError: a share that leaves one side without classes.

    >>> sizes(10, 0.8)
    [8, 2]
    """
    count = round(old * classes)
    if not 0 < count < classes:
        raise EverlearnError(f"old={old} leaves one side of {classes} classes empty; give a share between 0 and 1")
    return [count, classes - count]


def join(old: Table, new: Table) -> Table:
    """The data of two files; the file stands as the domain, and the new one may hold old classes too."""
    sides = [
        replace(table, records=[replace(record, domain=name) for record in table.records])
        for name, table in (("old", old), ("new", new))
    ]
    return Table.join(sides)


def sides(records: list[Record]) -> list[list[Record]]:
    """The records of each file, which are split each by its own."""
    return [[record for record in records if record.domain == name] for name in ("old", "new")]
