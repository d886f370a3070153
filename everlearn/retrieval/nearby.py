"""The search of vectors in plain files: exact, or with a structure of faiss over those that were there when it was
made.

The structure is derived, so it may be missing: rows that it does not cover are compared one by one. Removed rows are
never answered. Its file is sealed with a SHA-256, because faiss does not expect a damaged one. The seal protects from
damage and not from forgery: delete `nearby.json` of an index that a stranger has made.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import DataError, EverlearnError, printable
from everlearn.files import flush_to_disk, read_bytes, regular, sha256_of, write_whole
from everlearn.retrieval.generation import KINDS, Generation
from everlearn.schemas.retrieval import NearbyFile
from everlearn.schemas.values import valid
from everlearn.strict import from_json

SEAL = "nearby.json"
BLOCK = 4096  # rows that are compared at once
QUERIES = 1024
ADDED = 65_536  # rows that are put into a structure at once
TRAINED_ON = 64  # vectors a list, from which ivf learns where its lists are
SPARE = 16  # rows that are looked at beyond those that are asked for, since rounding may have put them behind
WIDENED = 65_536  # rows that are looked at in all, for as many queries as that makes, where so many are equal
PAIRS = 4096  # of a query and a row, whose dot products are computed at once
REMEDY = "delete it, and `everlearn index save` makes it again"


class Nearby:
    """The search of a generation.

    Args:
        generation: whose vectors are searched. Each function is given them as they are: `stored` (rows, d), of which
            those count that are `alive`.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._opened: tuple[dict[str, Any], Any] | None = None  # the seal and the structure
        self._settings = {name: default for name, (default, *_) in KINDS[generation.kind].items()} | generation.settings

    def search(
        self, stored: np.ndarray, alive: np.ndarray, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n, k) rows and their dot products with the queries (n, d), best first, and of equal ones the first row.

        Args:
            k: at most the number of rows that count.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        structure, covered = self._structure(len(stored))
        inside = min(k, int(alive[:covered].sum()))
        if structure is None or not inside:
            return _exact(stored, alive, queries, k)
        found = self._asked(structure, stored, queries, inside, alive), _exact(stored, alive, queries, k, covered)
        rows, scores = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
        order = np.lexsort((rows, -scores))[:, :k]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        # The structure looks at a part of the vectors, and may find too few where many were removed.
        if len(few := np.flatnonzero(~np.isfinite(scores[:, -1]))):
            rows[few], scores[few] = _exact(stored, alive, queries[few], k)
        return rows, scores

    def _asked(
        self, structure: Any, stored: np.ndarray, queries: np.ndarray, k: int, alive: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The answers of the structure; where it finds fewer than k, the rest are rows 0 with a score of -inf."""
        faiss = _faiss()
        # The structure numbers its vectors as the rows are numbered; it skips those that do not count.
        only = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        if self.generation.kind == "hnsw":
            how = faiss.SearchParametersHNSW(sel=only, efSearch=max(self._settings["width"], k))
        else:
            how = faiss.SearchParametersIVF(sel=only, nprobe=self._settings["probes"])
        _, rows = structure.search(queries, k, params=how)
        found = np.where(rows < 0, 0, rows)
        return found, np.where(rows < 0, np.float32(-np.inf), _scores(stored, queries, found))

    # -- the structure -------------------------------------------------------------------------
    def build(self, stored: np.ndarray) -> None:
        """Make the structure cover every row.

        Raises:
            EverlearnError: faiss is not installed, or the structure that is there is damaged.
            OSError: it cannot be written.
        """
        rows = len(stored)
        if self.generation.kind == "exact" or not rows:
            return
        seal = self._seal()
        if seal and seal["rows"] == rows:
            return
        faiss = _faiss()
        structure, covered = (self._read(seal, mapped=False), seal["rows"]) if seal else (None, 0)
        # Lists that were made for a quarter of the vectors would be twice as long as they should be.
        if structure is None or (self.generation.kind == "ivf" and 2 * structure.nlist < self._lists(rows)):
            structure, covered = self._new(faiss, stored), 0
        for start in range(covered, rows, ADDED):
            structure.add(np.ascontiguousarray(stored[start : start + ADDED]))
        self._write(faiss, structure, rows)

    def _write(self, faiss: Any, structure: Any, rows: int) -> None:
        folder, name = self.generation.folder, f"nearby-{rows}.faiss"
        partial = folder / f".{name}.{os.getpid()}"
        try:
            faiss.write_index(structure, str(partial))
            flush_to_disk(partial)
            seal = {"file": name, "rows": rows, "bytes": partial.stat().st_size, "sha256": _sha256(partial)}
            os.replace(partial, folder / name)
        except RuntimeError:  # faiss has no errors of its own
            raise EverlearnError(f"{folder / name} cannot be written: free some space, and save again") from None
        finally:
            partial.unlink(missing_ok=True)
        write_whole(folder / SEAL, json.dumps(seal))
        self._clear(but=name)

    def _clear(self, but: str = "") -> None:
        """Remove structures that are no longer used; whoever has one open keeps it."""
        for left in (*self.generation.folder.glob("nearby-*.faiss"), *self.generation.folder.glob(".nearby-*.faiss.*")):
            if left.name != but:
                left.unlink(missing_ok=True)
        self._opened = None

    def drop_beyond(self, rows: int) -> None:
        """Remove a structure that covers more rows than there are, as after a return to an earlier state."""
        seal = self._seal()
        if seal and seal["rows"] > rows:
            (self.generation.folder / SEAL).unlink()
            self._clear()

    def check(self) -> None:
        """Raise a DataError if the file of the structure is damaged."""
        if seal := self._seal():
            self._check_sealed(seal)

    def _new(self, faiss: Any, stored: np.ndarray) -> Any:
        rows, dimension = stored.shape
        if self.generation.kind == "hnsw":
            graph = faiss.IndexHNSWFlat(dimension, self._settings["links"], faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = self._settings["effort"]
            return graph
        lists = self._lists(rows)
        clusters = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
        clusters.cp.min_points_per_centroid = 1
        sample = np.random.default_rng(0).permutation(rows)[: TRAINED_ON * lists]
        clusters.train(np.ascontiguousarray(stored[np.sort(sample)]))
        return clusters

    def _lists(self, rows: int) -> int:
        return min(self._settings["lists"] or round(4 * rows**0.5), rows)

    def _structure(self, rows: int) -> tuple[Any, int]:
        """The structure and the rows that it covers; None and 0 where there is none.

        Raises:
            DataError: its file is damaged.
        """
        if self.generation.kind == "exact":
            return None, 0
        if self._opened is None:
            seal = self._seal()
            if seal is None:
                return None, 0
            try:
                self._opened = seal, self._read(seal, mapped=True)
            except DataError:
                if seal == self._seal():
                    raise
                return self._structure(rows)  # another process has saved between the two reads
        # Another process may have saved rows that were added after this one had read the log.
        return self._opened[1], min(self._opened[0]["rows"], rows)

    def _seal(self) -> dict[str, Any] | None:
        file = self.generation.folder / SEAL
        if not file.exists():
            return None
        seal: dict[str, Any] = valid(from_json(read_bytes(file, 4096), file, REMEDY), NearbyFile, file, REMEDY)
        return seal

    def _check_sealed(self, seal: dict[str, Any]) -> Path:
        file = self.generation.folder / seal["file"]
        if not file.exists() or file.stat().st_size != seal["bytes"] or _sha256(file) != seal["sha256"]:
            raise DataError(f"{file} is damaged or missing: delete {self.generation.folder / SEAL}, then "
                            "`everlearn index save` makes both again")  # fmt: skip
        return file

    def _read(self, seal: dict[str, Any], *, mapped: bool) -> Any:
        faiss, file = _faiss(), self._check_sealed(seal)
        kind, flags = {
            "hnsw": (faiss.IndexHNSWFlat, faiss.IO_FLAG_MMAP_IFC), "ivf": (faiss.IndexIVFFlat, faiss.IO_FLAG_MMAP),
        }[self.generation.kind]  # fmt: skip
        try:
            structure = faiss.read_index(str(file), flags if mapped else 0)
        except RuntimeError as error:
            raise DataError(f"{file} cannot be read ({printable(error)}): {REMEDY}") from None
        expected = seal["rows"], self.generation.stamp.dimension, faiss.METRIC_INNER_PRODUCT
        if not isinstance(structure, kind) or (structure.ntotal, structure.d, structure.metric_type) != expected:
            raise DataError(f"{file} is of another index: delete {self.generation.folder / SEAL}, then "
                            "`everlearn index save` makes both again")  # fmt: skip
        return structure


def _exact(
    stored: np.ndarray, alive: np.ndarray, queries: np.ndarray, k: int, start: int = 0, spare: int = SPARE
) -> tuple[np.ndarray, np.ndarray]:
    """The search over the rows from `start` on, each compared; fewer columns where there are fewer rows.

    A product of matrices rounds a score by the place of its row and query in a block, so that equal rows get scores
    that differ in the last digits. It only chooses some more rows than are asked for, and these are compared one by
    one.
    """
    count = int(alive[start:].sum())
    k = min(k, count)
    if not k:
        return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    rows = _chosen(stored, alive, queries, min(k + spare, count), start)
    scores = _scores(stored, queries, rows)
    order = np.lexsort((rows, -scores))
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    last, ends = scores[:, k - 1], scores[:, -1]
    rows, scores = rows[:, :k], scores[:, :k]
    if k + spare < count:
        # Where the last of them is as good as the last that is asked for, others that were left out may be so too.
        lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(stored[rows[:, -1]], axis=1)
        close = np.flatnonzero(last - ends <= np.finfo(np.float32).eps * stored.shape[1] * lengths)
        at_once = max(1, WIDENED // spare)
        for some in np.split(close, range(at_once, len(close), at_once)) if len(close) else ():
            rows[some], scores[some] = _exact(stored, alive, queries[some], k, start, 8 * spare)
    return rows, scores


def _chosen(stored: np.ndarray, alive: np.ndarray, queries: np.ndarray, k: int, start: int) -> np.ndarray:
    """(n, k) rows from `start` on that have the largest dot products, but for rounding."""
    import torch

    from everlearn.metrics.retrieval import first_largest

    count, answers = len(stored), [np.empty((0, k), np.int64)]
    for asked in torch.from_numpy(queries).split(QUERIES):
        at, best = torch.empty(len(asked), 0, dtype=torch.long), torch.empty(len(asked), 0)
        for begin in range(start, count, BLOCK):
            rows = np.flatnonzero(alive[begin : begin + BLOCK]) + begin
            if not len(rows):
                continue
            whole = len(rows) == min(BLOCK, count - begin)
            block = np.array(stored[begin : begin + BLOCK]) if whole else stored[rows]
            scores = torch.cat([best, asked @ torch.from_numpy(block).T], 1)
            columns = first_largest(scores, min(k, scores.shape[1]))
            before = best.shape[1]
            new = torch.from_numpy(rows)[(columns - before).clamp(min=0)]
            at = torch.where(columns < before, at.gather(1, columns.clamp(max=before - 1)), new) if before else new
            best = scores.gather(1, columns)
        answers.append(at.numpy())
    return np.concatenate(answers)


def _scores(stored: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, k) float32: the dot products of queries (n, d) with some rows (n, k), each of which depends on its query and
    its row alone."""
    asked, flat = np.repeat(np.arange(len(rows)), rows.shape[1]), rows.ravel()
    scores = np.empty(len(flat), np.float32)
    for start in range(0, len(flat), PAIRS):
        part = slice(start, start + PAIRS)
        scores[part] = (stored[flat[part]].astype(np.float64) * queries[asked[part]]).sum(1)
    return scores.reshape(rows.shape)


def _sha256(file: Path) -> str:
    with regular(file) as opened:
        return sha256_of(opened)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise EverlearnError("an index of the kind hnsw or ivf needs faiss: install it with `pip install "
                             "'everlearn[retrieval]'`, or make one of the kind exact") from None  # fmt: skip
    return faiss
