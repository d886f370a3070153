"""Index: documents found by their embeddings, kept in a folder that survives every interruption.

The folder holds one generation or, for a moment, two, and the file `current`, which names the one that answers. A
generation (`generation.py`) keeps the documents; what makes the search of many vectors fast (`nearby.py`) is derived
from them and can be made again. Whoever re-indexes builds another index beside this one, stops and goes on as often as
needed, and then has this one `take_over` it, which is one atomic step. Readers that have the generation before open go
on answering from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np

from everlearn.errors import EverlearnError, shown
from everlearn.files import flush_to_disk, write_whole
from everlearn.locks import alone
from everlearn.retrieval.bridge import Bridge, check_bridge, write_bridge
from everlearn.retrieval.checks import check_known, check_new, check_removed, comparable, embeddings, listed, rows
from everlearn.retrieval.current import (
    CURRENT,
    FIRST,
    GENERATION,
    as_saved,
    check_free,
    current,
    keeper,
    linked,
    one_line,
    opened,
    removed_on_failure,
)  # fmt: skip
from everlearn.retrieval.generation import Generation, check_settings
from everlearn.retrieval.stamp import Encoder, Stamp, embedded, method_of, stamp_of

MAKING, COMPACTING, TAKEN = ".making", ".compacting", ".taken"
DEAD = 0.25
"""The share of removed rows from which on `save` leaves them out."""


class Index:
    """Documents by id and embedding. `create` and `load` open one.

    What embedded the documents is in its stamp, and whoever adds or searches says with what: `by` is an encoder (a
    loaded model, a method or a backbone), for texts, or the stamp of one, for embeddings that were made with it.
    Another encoder is refused, unless a bridge leads from its space here (`allow`), or it knows the way itself, as a
    method does that measures its own drift.

    An added or removed document is safe from a kill of the process when the call returns, and from a loss of power
    after `save`. One process writes at a time, from its first change until `close`; others may read, and see the index
    as it was when they loaded it.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> from everlearn.retrieval import stamp_of
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
        self.folder = folder
        self._alone: ExitStack | None = None
        self._is_changing = False
        self._answer_from(generation)

    def _answer_from(self, generation: Generation) -> None:
        self.bridges, self._generation = generation.bridges, generation

    # -- opening -------------------------------------------------------------------------------
    @classmethod
    def create(
        cls, folder: str | Path, stamp: Stamp, kind: Literal["exact", "hnsw", "ivf", "lance"] = "exact", *,
        made_by: Mapping[str, str] | None = None, **settings: int,
    ) -> Index:  # fmt: skip
        """A new index.

        Args:
            folder: does not exist yet, or is empty.
            stamp: of the encoder of its documents (`stamp_of`).
            kind: how it is searched: `exact` compares with every vector; `hnsw` (a graph) and `ivf` (clusters) look
                at a part of them, after `save`, and need faiss (the extra retrieval); `lance` keeps the documents in
                a table of LanceDB, which its own tools can open, and needs the extra lancedb.
            made_by: what to load for the encoder, for the command line, such as {"backbone": "minilm"}.
            settings: of the kind: for hnsw links (32), width (64, candidates looked at in a search) and effort (200,
                the same while it is built); for ivf lists (by default 4 times the root of the number of vectors) and
                probes (16, lists looked at).

        Raises:
            EverlearnError: the folder holds something, or there is no such kind or setting.
        """
        place = Path(folder)
        check_settings(kind, settings)
        make = keeper(kind).create
        check_free(place, MAKING)
        with one_line(place):
            place.mkdir(parents=True, exist_ok=True)
            with alone(place, "making the index"), removed_on_failure(place / MAKING):
                check_free(place, MAKING)  # another process may have made one since
                make(place / MAKING, stamp, kind, settings, dict(made_by or {}))
                # In this order, so that a folder with a generation is never taken for one that was not finished.
                write_whole(place / CURRENT, FIRST)
                os.replace(place / MAKING, place / FIRST)
                flush_to_disk(place)
        return cls.load(place)

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Open an index as it was after the last acknowledged change.

        Raises:
            EverlearnError: the folder holds no index, or a file of it is damaged or cut.
        """
        place = Path(folder)
        return cls(place, current(place, opened))

    @classmethod
    def restore(cls, folder: str | Path) -> Index:
        """Open an index as it was when it was last saved, and forget what was added or removed since then. That helps
        after a loss of power, which may leave the last changes damaged.

        Raises:
            EverlearnError: it is damaged before that, another process writes, or it is of the kind lance, whose
                changes are whole or not there.
        """
        place = Path(folder)
        with alone(place, "changing the index"):
            current(place, as_saved)
        return cls.load(place)

    def lock(self) -> None:
        """See what other processes have written, and let none write until `close`.

        Raises:
            EverlearnError: another process writes.
        """
        self._write_alone()

    def close(self) -> None:
        """Let other processes write."""
        if self._alone:
            self._alone.close()
            self._alone = None

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
        """How it is searched: exact, hnsw, ivf or lance."""
        return self._generation.kind

    @property
    def settings(self) -> dict[str, int]:
        """The settings of the kind that were given when it was made."""
        return dict(self._generation.settings)

    @property
    def made_by(self) -> dict[str, str]:
        """What to load for its encoder, as the command line was told."""
        return dict(self._generation.made_by)

    @property
    def generation(self) -> int:
        """1 for the first, one more after each compaction or re-indexing."""
        return int(self._generation.folder.name[1:])

    @property
    def ids(self) -> list[str]:
        """Of its documents, in the order in which they were added."""
        return self._generation.ids

    def __len__(self) -> int:
        return len(self._generation)

    def __contains__(self, id: object) -> bool:
        return id in self._generation

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        """(n, dimension) float32 of the documents with these ids.

        Raises:
            EverlearnError: an id is not there.
        """
        ids = listed(ids, "ids")
        check_known(ids, self._generation)
        return self._generation.vectors(ids)

    def stored_bytes(self) -> int:
        """What its folder takes."""
        total = 0
        for folder, _, files in os.walk(self.folder):
            for name in files:
                with suppress(FileNotFoundError):  # another process may have removed it since
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

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
        self._write_alone()
        ids, documents = listed(ids, "ids"), rows(documents, by, "documents")
        if len(ids) != len(documents):
            raise EverlearnError(f"{len(ids):,} ids for {len(documents):,} documents: give one for each")
        check_new(ids, self._generation)
        stamp = by if isinstance(by, Stamp) else stamp_of(by)
        if stamp.space != self.stamp.space:
            raise EverlearnError(f"{self.folder}: its documents were embedded by another encoder "
                                 f"({stamp.differs_from(self.stamp)}): add with that one, or make the index "
                                 "anew")  # fmt: skip
        if not ids:
            return
        given = documents if isinstance(by, Stamp) else embedded(by, list(documents), "document")
        vectors = comparable(embeddings(given, len(ids), self.stamp, "document"), self.stamp, "document")
        with self._changing():
            self._generation.append(ids, vectors)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents; all of them, or none where an id is not there.

        Raises:
            EverlearnError: an id is not there or is given twice; another process writes; the disk is full.
        """
        self._write_alone()
        ids = listed(ids, "ids")
        check_removed(ids, self._generation)
        if ids:
            with self._changing():
                self._generation.remove(ids)

    def save(self) -> None:
        """Wait until the disk has everything, leave out removed documents where they are many, and bring what makes
        the search fast up to date.

        Raises:
            EverlearnError: another process writes, the disk is full, something is damaged, or faiss is not installed.
        """
        self._write_alone()
        with self._changing():
            self._generation.flush()
            if self._generation.removed > DEAD:
                self._compact()
            self._generation.make_fast()

    def allow(self, stamp: Stamp, bridge: Bridge) -> None:
        """Let the queries of another encoder search here, over a bridge from its space (`everlearn migrate` fits one).

        Raises:
            EverlearnError: the bridge ends in another dimension, has numbers that are not finite, another process
                writes, or the disk is full.
        """
        self._write_alone()
        check_bridge(bridge, stamp, self.stamp)
        with self._changing():
            write_bridge(self._generation.folder, stamp, bridge)
        self.bridges[stamp.space] = bridge

    def take_over(self, other: Index) -> None:
        """Answer from now on as `other` does, which was built beside this one and is no longer used then. The step is
        atomic: whenever it is interrupted, this index answers as before or as `other`.

        Raises:
            EverlearnError: the two are one and the same, another process writes in one of them, or the folder cannot
                be written.
        """
        if other.folder.resolve() == self.folder.resolve():
            raise EverlearnError(f"{self.folder} cannot take over itself: give an index that was built beside it")
        self._write_alone()
        other.save()
        place = self.folder / TAKEN
        with self._changing(), removed_on_failure(place):
            # Linked and not moved: until the last moment both indexes are whole.
            shutil.copytree(other._generation.folder, place, copy_function=linked)
            self._switch(place)
        other.close()
        shutil.rmtree(other.folder, ignore_errors=True)

    def _compact(self) -> None:
        """A generation of the documents that count."""
        old, place = self._generation, self.folder / COMPACTING
        old.check()  # or what is damaged would get a new checksum
        ids = old.ids
        with removed_on_failure(place):
            new = type(old).create(place, old.stamp, old.kind, old.settings, old.made_by)
            for start in range(0, len(ids), 8192):
                new.append(ids[start : start + 8192], old.vectors(ids[start : start + 8192]))
            for file in old.folder.glob("bridge-*"):
                shutil.copy2(file, place)
            new.flush()
            self._switch(place)

    def _switch(self, new: Path) -> None:
        """Make the generation in the folder `new` the current one."""
        old, place = self._generation.folder, self.folder / f"g{self.generation + 1:06d}"
        shutil.rmtree(place, ignore_errors=True)  # of a switch that was killed before it counted
        flush_to_disk(new)
        os.replace(new, place)
        flush_to_disk(self.folder)
        write_whole(self.folder / CURRENT, place.name)
        flush_to_disk(self.folder)
        self._answer_from(opened(place))
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
        if not isinstance(k, int | np.integer) or k < 1:
            raise EverlearnError(f"k is {shown(k)}: ask for at least one document")
        queries = rows(queries, by, "queries")
        if self._is_changing:
            self._answer_from(current(self.folder, opened))
        if not len(self):
            raise EverlearnError(f"{self.folder} has no documents: add some first")
        vectors = embeddings(self._asked(queries, by), len(queries), self.stamp, "query")
        return self._generation.nearest(comparable(vectors, self.stamp, "query"), min(k, len(self)))

    def _asked(self, queries: Sequence[str] | np.ndarray, by: Encoder | Stamp) -> np.ndarray:
        """Embeddings of the queries in the space of the documents."""
        if isinstance(by, Stamp):
            self._check_reaches(by)
            vectors, stamp = embeddings(queries, len(queries), by, "query"), by
        else:
            method = method_of(by)
            if hasattr(method, "reaches") and method.reaches(self.stamp.space):
                import torch

                with torch.no_grad():
                    found: np.ndarray = method.queries_for(queries, self.stamp.space).float().cpu().numpy()
                return found
            stamp = stamp_of(by)
            self._check_reaches(stamp)
            vectors = embedded(by, list(queries), "query")
        if stamp.space == self.stamp.space:
            return vectors
        return self.bridges[stamp.space].apply(comparable(vectors, stamp, "query"))  # as those that it was fitted on

    def _check_reaches(self, stamp: Stamp) -> None:
        if stamp.space != self.stamp.space and stamp.space not in self.bridges:
            raise EverlearnError(f"{self.folder}: its documents were embedded by another encoder "
                                 f"({stamp.differs_from(self.stamp)}), and its scores would mean nothing: search with "
                                 "that one, or see `everlearn migrate`")  # fmt: skip

    # -- writing -------------------------------------------------------------------------------
    def _write_alone(self) -> None:
        """Be the only writer, of the newest state."""
        if self._alone and not self._is_changing:
            return
        with ExitStack() as alone_until_closed:
            if not self._alone:
                alone_until_closed.enter_context(alone(self.folder, "changing the index"))
            with one_line(self.folder):
                self._answer_from(current(self.folder, opened))
                self._generation.recover()
                for left in self.folder.iterdir():
                    if GENERATION.fullmatch(left.name) and left.name != self._generation.folder.name:
                        shutil.rmtree(left, ignore_errors=True)
            self._alone = self._alone or alone_until_closed.pop_all()
        self._is_changing = False

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Within this context the files change. Where it is left by an error, such as an interrupt by Ctrl-C, what is
        in memory may be neither the state before nor after, and is read again when it is needed next."""
        self._is_changing = True
        with one_line(self.folder):
            yield
        self._is_changing = False
