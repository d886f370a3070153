"""Index: documents found by their embeddings, kept in a folder that survives every interruption.

The folder holds one generation or, for a moment, two, and the file `current`, which names the one that answers. A
generation (`generation.py`) is a log and plain vectors; what makes the search of many vectors fast (`nearby.py`) is
derived from them and can be made again. Whoever re-indexes builds another index beside this one, stops and goes on as
often as needed, and then has this one `take_over` it, which is one atomic step. Readers that have the generation before
open go on answering from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from everlearn.errors import DataError, EverlearnError, printable
from everlearn.files import flush_to_disk, read_text, write_whole
from everlearn.locks import alone
from everlearn.retrieval.bridge import Bridge, read_bridges, write_bridge
from everlearn.retrieval.generation import REMEDY, Generation
from everlearn.retrieval.nearby import KINDS, Nearby
from everlearn.retrieval.stamp import Encoder, Stamp, embedded, method_of, stamp_of

CURRENT, NEXT = "current", "g{:06d}"
DEAD = 0.25
"""The share of removed rows from which on `save` leaves them out."""
LONGEST_ID = 10_000


class Index:
    """Documents by id and embedding. `create` and `load` open one.

    What embedded the documents is in its stamp, and whoever adds or searches says with what: `by` is an encoder (a
    loaded model, a method or a backbone), for texts, or the stamp of one, for embeddings that were made with it.
    Another encoder is refused, unless a bridge leads from its space here (`allow`), or it knows the way itself, as a
    method does that measures its own drift.

    An added or removed document is safe from a kill of the process when the call returns, and from a loss of power
    after `save`. One process writes at a time; others may read.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> tiny = backbones.load("tiny")
    >>> index = Index.create(tempfile.mkdtemp() + "/garden", stamp_of(tiny))
    >>> index.add(["roses", "lawn"], ["water the roses at six", "the lawn is dry"], by=tiny)
    >>> index.search(["the lawn is dry"], by=tiny, k=1)[0]
    [['lawn']]
    >>> index.remove(["lawn"])
    >>> len(index), index.search(["the lawn is dry"], by=tiny)[0]
    (1, [['roses']])
    """

    def __init__(self, folder: Path, generation: Generation) -> None:
        self.folder, self._generation = folder, generation
        self.bridges = read_bridges(generation.folder)
        self._nearby = Nearby(generation)
        self._lock: Any = None

    # -- opening -------------------------------------------------------------------------------
    @classmethod
    def create(
        cls, folder: str | Path, stamp: Stamp, kind: Literal["exact", "hnsw", "ivf"] = "exact", *,
        made_by: Mapping[str, str] | None = None, **settings: int,
    ) -> Index:  # fmt: skip
        """A new index.

        Args:
            folder: does not exist yet, or is empty.
            stamp: of the encoder of its documents (`stamp_of`).
            kind: how it is searched: `exact` compares with every vector; `hnsw` (a graph) and `ivf` (clusters) look
                at a part of them, after `save`, and need faiss (the extra retrieval).
            made_by: what to load for the encoder, for the command line, such as {"backbone": "minilm"}.
            settings: of the kind: for hnsw links (32), width (64, candidates looked at in a search) and effort (200,
                the same while it is built); for ivf lists (by default 4 times the root of the number of vectors) and
                probes (16, lists looked at).

        Raises:
            EverlearnError: the folder holds something, or there is no such kind or setting.
        """
        place = Path(folder)
        if kind not in KINDS:
            raise EverlearnError(f"there is no kind of index '{printable(kind)}': give one of {', '.join(KINDS)}")
        for name, value in settings.items():
            if name not in KINDS[kind] or not isinstance(value, int) or not 1 <= value < 2**31:
                known = ", ".join(KINDS[kind]) or "no settings"
                raise EverlearnError(f"{name}={value!r} is not a setting of the kind {kind}: it has {known}, which "
                                     "are whole numbers from 1 on")  # fmt: skip
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise EverlearnError(f"{place} exists already: give a new folder, or load the index that it holds")
        try:
            place.mkdir(parents=True, exist_ok=True)
            Generation.create(place / NEXT.format(1), stamp, kind, settings, dict(made_by or {}))
            write_whole(place / CURRENT, NEXT.format(1))
        except OSError as error:
            raise EverlearnError(f"{place} cannot be written ({error.strerror}): give another folder") from None
        return cls.load(place)

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Open an index as it was after the last acknowledged change.

        Raises:
            EverlearnError: the folder holds no index, or a file of it is damaged or cut.
        """
        place = Path(folder)
        if not (place / CURRENT).exists():
            raise EverlearnError(f"{place} is not an index: it has no file '{CURRENT}'; make one with `everlearn index "
                                 "create`")  # fmt: skip
        for last_try in (False, True):
            name = read_text(place / CURRENT, 100).strip()
            if not name.startswith("g") or not name[1:].isdecimal():
                raise DataError(f"{place / CURRENT} names no generation: {REMEDY}")
            try:
                return cls(place, Generation(place / name))
            except DataError:
                # Between the two reads another process may have cut over to the next generation.
                if last_try or read_text(place / CURRENT, 100).strip() == name:
                    raise
        raise AssertionError  # unreachable: the loop returns or raises

    def close(self) -> None:
        """Let other processes write."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what it holds -------------------------------------------------------------------------
    @property
    def stamp(self) -> Stamp:
        """What embedded its documents."""
        return self._generation.stamp

    @property
    def kind(self) -> str:
        """How it is searched: exact, hnsw or ivf."""
        return self._generation.kind

    @property
    def made_by(self) -> dict[str, str]:
        """What to load for its encoder, as the command line was told."""
        return self._generation.made_by

    @property
    def generation(self) -> int:
        """1 for the first, one more after each compaction or re-indexing."""
        return int(self._generation.folder.name[1:])

    @property
    def ids(self) -> list[str]:
        """Of its documents, in the order in which they were added."""
        return [id for id, alive in zip(self._generation.ids, self._generation.alive, strict=True) if alive]

    def __len__(self) -> int:
        return len(self._generation)

    def __contains__(self, id: object) -> bool:
        return id in self._generation.rows

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """(n, dimension) float32 of the documents with these ids.

        Raises:
            EverlearnError: an id is not there.
        """
        self._known(ids)
        return np.asarray(self._generation.vectors[[self._generation.rows[id] for id in ids]])

    def stored_bytes(self) -> int:
        """What its folder takes."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def check(self) -> None:
        """Read everything and compare it with its checksums.

        Raises:
            DataError: something is damaged; the message names it.
        """
        self._generation.check()

    # -- changes -------------------------------------------------------------------------------
    def add(self, ids: Sequence[str], documents: Sequence[str] | np.ndarray, by: Encoder | Stamp) -> None:
        """Add documents; all of them, or none where something is wrong.

        Args:
            ids: n names, which the index does not know yet.
            documents: n texts, if `by` is an encoder; (n, dimension) embeddings, if it is a stamp.

        Raises:
            EverlearnError: an id is there already, is given twice or is no text; numbers do not fit or are not
                finite; another encoder than that of the stamp; another process writes; the disk is full.
        """
        self._writing()
        ids = list(ids)
        if len(ids) != len(documents):
            raise EverlearnError(f"{len(ids):,} ids for {len(documents):,} documents: give one for each")
        self._new(ids)
        stamp = by if isinstance(by, Stamp) else stamp_of(by)
        if stamp.space != self.stamp.space:
            raise EverlearnError(f"{self.folder}: its documents were embedded by another encoder "
                                 f"({stamp.differs_from(self.stamp)}): add with that one, or re-index")  # fmt: skip
        vectors = (
            np.asarray(documents, np.float32) if isinstance(by, Stamp) else embedded(by, list(documents), "document")
        )
        if ids:
            self._generation.append(ids, self._comparable(vectors, len(ids), "document"))

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents; all of them, or none where an id is not there.

        Raises:
            EverlearnError: an id is not there or is given twice; another process writes; the disk is full.
        """
        self._writing()
        ids = list(ids)
        self._known(ids)
        if len(set(ids)) < len(ids):
            raise EverlearnError(f"the id '{printable(_twice(ids))}' is given twice: give each once")
        if ids:
            self._generation.remove(ids)

    def save(self) -> None:
        """Wait until the disk has everything, leave out removed documents where they are many, and bring what makes
        the search fast up to date.

        Raises:
            EverlearnError: another process writes, the disk is full, or faiss is not installed.
        """
        self._writing()
        try:
            self._generation.flush()
            if self._generation.alive.count(0) > DEAD * len(self._generation.ids):
                self._compact()
            self._nearby.build()
        except OSError as error:
            raise EverlearnError(f"{self.folder} cannot be written ({error.strerror}): the index is as before; make "
                                 "room, or correct the permissions, and save again") from None  # fmt: skip

    def allow(self, stamp: Stamp, bridge: Bridge) -> None:
        """Let the queries of another encoder search here, over a bridge from its space (`everlearn migrate` fits one).

        Raises:
            EverlearnError: the bridge ends in another dimension, or another process writes.
        """
        self._writing()
        if bridge.dimensions != (stamp.dimension, self.stamp.dimension):
            raise EverlearnError(f"the bridge leads from {bridge.dimensions[0]} to {bridge.dimensions[1]} numbers, and "
                                 f"the index needs {stamp.dimension} to {self.stamp.dimension}: fit it for these "
                                 "encoders")  # fmt: skip
        write_bridge(self._generation.folder, stamp, bridge)
        self.bridges[stamp.space] = bridge

    def take_over(self, other: Index) -> None:
        """Answer from now on as `other` does, which was built beside this one and is no longer used then. The step is
        atomic: whenever it is interrupted, this index answers as before or as `other`.

        Raises:
            EverlearnError: another process writes in one of the two, or the folder cannot be written.
        """
        self._writing()
        other._writing()
        other.save()
        try:
            # Linked and not moved: until the last moment both indexes are whole.
            place = self.folder / ".taken"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(other._generation.folder, place, copy_function=_link)
            self._switch(place)
        except OSError as error:
            raise EverlearnError(f"{self.folder} cannot be written ({error.strerror}): it answers as before") from None
        other.close()
        shutil.rmtree(other.folder, ignore_errors=True)

    def _compact(self) -> None:
        """A generation of the documents that count."""
        old, place = self._generation, self.folder / ".compacting"
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
        new = Generation.create(place, old.stamp, old.kind, old.settings, old.made_by)
        rows = [row for row, alive in enumerate(old.alive) if alive]
        for start in range(0, len(rows), 8192):
            part = rows[start : start + 8192]
            new.append([old.ids[row] for row in part], old.vectors[part])
        for file in old.folder.glob("bridge-*"):
            shutil.copy2(file, place)
        new.flush()
        self._switch(place)

    def _switch(self, new: Path) -> None:
        """Make the generation in the folder `new` the current one."""
        name, old = NEXT.format(self.generation + 1), self._generation.folder
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)  # of a switch that was killed before it counted
        os.replace(new, place)
        flush_to_disk(self.folder)
        write_whole(self.folder / CURRENT, name)
        self._generation = Generation(place)
        self._nearby = Nearby(self._generation)
        self.bridges = read_bridges(place)
        shutil.rmtree(old, ignore_errors=True)

    # -- search --------------------------------------------------------------------------------
    def search(
        self, queries: Sequence[str] | np.ndarray, by: Encoder | Stamp, k: int = 10
    ) -> tuple[list[list[str]], np.ndarray]:
        """The documents most similar to each query, best first; of equal ones, that which was added first.

        Args:
            queries: n texts, if `by` is an encoder; (n, dimension) embeddings, if it is a stamp.
            k: documents a query, fewer where the index has fewer.

        Returns:
            n lists of ids, and (n, k) similarities.

        Raises:
            EverlearnError: the index is empty, an embedding does not fit, or another encoder than that of the
                stamp, to which no bridge leads.
        """
        if k < 1:
            raise EverlearnError(f"k is {k}: ask for at least one document")
        if not len(self):
            raise EverlearnError(f"{self.folder} has no documents: add some first")
        vectors = self._comparable(self._asked(queries, by), len(queries), "query")
        rows, scores = self._nearby.search(vectors, min(k, len(self)))
        ids, answers = self._generation.ids, zip(rows.tolist(), np.isfinite(scores).tolist(), strict=True)
        # A structure may find fewer than there are, and says so by a score of -inf.
        return [[ids[row] for row, is_found in zip(*both, strict=True) if is_found] for both in answers], scores

    def _asked(self, queries: Sequence[str] | np.ndarray, by: Encoder | Stamp) -> np.ndarray:
        """Embeddings of the queries in the space of the documents."""
        space = self.stamp.space
        if isinstance(by, Stamp):
            stamp, vectors = by, np.asarray(queries, np.float32)
        else:
            method = method_of(by)
            if hasattr(method, "reaches") and method.reaches(space):
                import torch

                with torch.no_grad():
                    found: np.ndarray = method.queries_for(list(queries), space).float().cpu().numpy()
                return found
            stamp = stamp_of(by)
            self._check_reaches(stamp)
            vectors = embedded(by, list(queries), "query")
        self._check_reaches(stamp)
        return vectors if stamp.space == space else self.bridges[stamp.space].apply(vectors)

    def _check_reaches(self, stamp: Stamp) -> None:
        if stamp.space != self.stamp.space and stamp.space not in self.bridges:
            raise EverlearnError(f"{self.folder}: its documents were embedded by another encoder "
                                 f"({stamp.differs_from(self.stamp)}), and its scores would mean nothing: search with "
                                 "that one, or see `everlearn migrate`")  # fmt: skip

    # -- checks --------------------------------------------------------------------------------
    def _writing(self) -> None:
        """Be the only writer, of the newest state."""
        if self._lock is None:
            self._lock = alone(self.folder, "changing the index")
            newest = Index.load(self.folder)
            self._generation, self._nearby, self.bridges = newest._generation, newest._nearby, newest.bridges
            self._generation.recover()
            for left in self.folder.glob("g*"):
                if left.name != self._generation.folder.name:
                    shutil.rmtree(left, ignore_errors=True)

    def _new(self, ids: Sequence[str]) -> None:
        for id in ids:
            if not isinstance(id, str) or not id or len(id) > LONGEST_ID:
                raise EverlearnError(f"the id {printable(repr(id))} is not usable: give a text of 1 to {LONGEST_ID:,} "
                                     "characters")  # fmt: skip
            if id in self._generation.rows:
                raise EverlearnError(f"the id '{printable(id)}' is in the index already: remove it first, or give the "
                                     "document another")  # fmt: skip
        if len(set(ids)) < len(ids):
            raise EverlearnError(f"the id '{printable(_twice(ids))}' is given twice: give each document its own")

    def _known(self, ids: Sequence[str]) -> None:
        if unknown := [id for id in ids if id not in self._generation.rows]:
            raise EverlearnError(f"the id '{printable(unknown[0])}' is not in the index {self.folder}: give ids of its "
                                 "documents")  # fmt: skip

    def _comparable(self, vectors: np.ndarray, n: int, what: str) -> np.ndarray:
        """Checked, and of length 1 where the similarity is the cosine."""
        if vectors.shape != (n, self.stamp.dimension):
            raise EverlearnError(f"the {what} embeddings have the shape {vectors.shape}, and the index needs "
                                 f"({n}, {self.stamp.dimension}): take the encoder of its stamp")  # fmt: skip
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unfit = ~np.isfinite(lengths[:, 0]) | ((lengths[:, 0] == 0) & self.stamp.normalised)
        if unfit.any():
            raise EverlearnError(f"the embedding of {what} {int(unfit.argmax()) + 1} is not finite or is zero: leave "
                                 "it out, or mend the encoder")  # fmt: skip
        return vectors / lengths if self.stamp.normalised else vectors


def _link(source: str, place: str) -> None:
    """The same file under another name; a copy where the disk cannot do that."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def _twice(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
