"""A generation of an index: what the index holds until it is compacted or made anew, in a folder of its own.

Its file `index.json` says what embedded the documents and how they are searched. The documents themselves are kept by
one of two classes with the same functions: `logged.py` (plain files; the kinds exact, hnsw and ivf) and `lance.py` (a
table of LanceDB; the kind lance).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import DataError, EverlearnError, printable
from everlearn.files import flush_to_disk, read_bytes, write_whole
from everlearn.retrieval.bridge import Bridge
from everlearn.retrieval.stamp import Stamp
from everlearn.schemas.retrieval import IndexSettings
from everlearn.schemas.values import valid
from everlearn.strict import from_json

FORMAT = 1
SETTINGS = "index.json"
REMEDY = "take a copy of the index from before, or make it anew from its documents"

KINDS: dict[str, dict[str, tuple[int | None, int, int]]] = {
    "exact": {},
    "hnsw": {"links": (32, 2, 256), "effort": (200, 1, 10_000), "width": (64, 1, 100_000)},
    "ivf": {"lists": (None, 1, 1_000_000), "probes": (16, 1, 1_000_000)},
    "lance": {},
}
"""The kinds of index, and their settings: the default, the least and the largest value."""


def check_settings(kind: str, settings: dict[str, Any]) -> None:
    """Raise an EverlearnError if there is no such kind of index, or it has no such setting.

    >>> check_settings("hnsw", {"links": 1})
    Traceback (most recent call last):
    everlearn.errors.EverlearnError: links=1 is not possible: give a whole number from 2 to 256
    """
    if kind not in KINDS:
        raise EverlearnError(f"there is no kind of index '{printable(kind)}': give one of {', '.join(KINDS)}")
    for name, value in settings.items():
        if name not in KINDS[kind]:
            raise EverlearnError(f"the kind {kind} has no setting '{printable(name)}': it has "
                                 f"{', '.join(KINDS[kind]) or 'none'}")  # fmt: skip
        _, least, most = KINDS[kind][name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise EverlearnError(f"{name}={printable(value)} is not possible: give a whole number from {least} to "
                                 f"{most:,}")  # fmt: skip


class Generation(ABC):
    """Documents by id and embedding.

    Args:
        folder: of the generation.

    Attributes:
        ids: of the documents, in the order in which they were added.
        removed: the share of what it keeps that was removed.
        bridges: to its embeddings, by the space that they come from; whoever opens it reads them.

    Raises:
        EverlearnError: a file is missing, damaged or cut.
    """

    ids: list[str]
    removed: float

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bridges: dict[str, Bridge] = {}
        told = self.read_json(SETTINGS, IndexSettings)
        if told["format"] != FORMAT:
            raise DataError(f"{folder / SETTINGS}: an index of format {told['format']}, and this everlearn reads "
                            f"{FORMAT}: update everlearn")  # fmt: skip
        self.stamp = Stamp.of_record(told["stamp"])
        self.kind, self.settings, self.made_by = told["kind"], told["settings"], told["made_by"]
        try:
            check_settings(self.kind, self.settings)
        except EverlearnError as error:
            raise DataError(f"{folder / SETTINGS}: {error}") from None

    @classmethod
    def create(
        cls, folder: Path, stamp: Stamp, kind: str, settings: dict[str, Any], made_by: dict[str, str]
    ) -> Generation:
        """A new one, without documents; the folder must not exist."""
        folder.mkdir()
        told = {"format": FORMAT, "stamp": stamp.record, "kind": kind, "settings": settings, "made_by": made_by}
        cls.begin(folder, stamp)
        write_whole(folder / SETTINGS, json.dumps(told, indent=1))
        flush_to_disk(folder)
        return cls(folder)

    @staticmethod
    @abstractmethod
    def begin(folder: Path, stamp: Stamp) -> None:
        """Make the files of no documents."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __contains__(self, id: object) -> bool: ...

    @abstractmethod
    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """(n, dimension) float32 of documents that are there."""

    @abstractmethod
    def nearest(self, queries: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """The ids of the k documents with the largest dot product for each query (n, dimension), and these (n, k)."""

    @abstractmethod
    def append(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add documents (n, dimension) that are not there, all of them or, where it fails, none."""

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents that are there, all of them or, where it fails, none."""

    @abstractmethod
    def recover(self) -> None:
        """Clear away what a process that was killed has left; only who alone writes may do so."""

    @abstractmethod
    def flush(self) -> None:
        """Wait until the disk has everything."""

    @abstractmethod
    def make_fast(self) -> None:
        """Bring what makes the search fast up to date."""

    @abstractmethod
    def check(self) -> None:
        """Read everything, and raise a DataError if something is damaged."""

    def read_json(self, name: str, schema: Any, most: int = 2**20) -> Any:
        """The content of one of its JSON files."""
        file = self.folder / name
        return valid(from_json(read_bytes(file, most), file, REMEDY), schema, file, REMEDY)
