"""Old-then-new: two tasks, the first with what a model already knows and the second with what it is to learn."""

from __future__ import annotations

from everlearn.errors import EverlearnError
from everlearn.streams.records import Record, Table


def sizes(classes: int, old: float) -> list[int]:
    """The number of old classes and the number of new classes.

    Raises:
        EverlearnError: the share leaves one of the two tasks without classes.

    >>> sizes(10, 0.8)
    [8, 2]
    """
    count = round(old * classes)
    if not 0 < count < classes:
        raise EverlearnError(f"old={old} puts all {classes} classes into one task; give a share between 0 and 1")
    return [count, classes - count]


def join(old: Table, new: Table) -> Table:
    """Join the data of two files. The domain of a record says which file it is from; the new file may also hold
    old classes."""
    return Table.join([old.with_all(domain="old"), new.with_all(domain="new")])


def sides(records: list[Record]) -> list[list[Record]]:
    """The records of each file, because each file is split on its own."""
    return [[record for record in records if record.domain == name] for name in ("old", "new")]
