"""The search of an index: exact, or with a structure of faiss over the vectors that were there when it was saved.

The structure is derived, so it may be missing: rows that it does not cover are compared one by one. Removed rows are
never answered. Its file is sealed with a SHA-256, because faiss does not expect a damaged one.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np

from everlearn.errors import DataError, EverlearnError
from everlearn.files import flush_to_disk, read_bytes, regular, write_whole
from everlearn.retrieval.generation import Generation
from everlearn.schemas import NearbyFile, valid
from everlearn.strict import from_json

KINDS: dict[str, dict[str, int | None]] = {
    "exact": {}, "hnsw": {"links": 32, "effort": 200, "width": 64}, "ivf": {"lists": None, "probes": 16},
}  # fmt: skip
"""The kinds of search, and their settings with the default values."""

SEAL = "nearby.json"
BLOCK = 16384  # rows that are compared at once
QUERIES = 1024
TRAINED_ON = 64  # vectors a list, from which ivf learns where its lists are
REMEDY = "delete it, and `everlearn index save` makes it again"


class Nearby:
    """The search of a generation.

    Args:
        generation: whose vectors are searched.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._found: tuple[Any, int] | None = None  # the structure, and how many rows it covers

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, k) rows and their dot products with the queries (n, d), best first; k of the rows that count at most."""
        structure, covered = self._structure()
        alive = np.frombuffer(self.generation.alive, np.uint8).astype(bool)
        first = self._exact(queries, k, covered, alive)
        if structure is None:
            return first
        rows, scores = self._asked(structure, queries, k, alive)
        both = np.concatenate([rows, first[0]], 1), np.concatenate([scores, first[1]], 1)
        order = np.argsort(-both[1], axis=1, kind="stable")[:, :k]
        return np.take_along_axis(both[0], order, 1), np.take_along_axis(both[1], order, 1)

    def _exact(self, queries: np.ndarray, k: int, start: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same over the rows from `start` on, each compared; fewer columns where there are fewer rows."""
        import torch

        from everlearn.metrics.retrieval import first_largest

        vectors = self.generation.vectors
        k = min(k, int(alive[start:].sum()))
        found = []
        for asked in torch.from_numpy(np.ascontiguousarray(queries, np.float32)).split(QUERIES):
            best, at = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.long)
            for begin in range(start, len(vectors) if k else start, BLOCK):
                rows = np.flatnonzero(alive[begin : begin + BLOCK]) + begin
                if not len(rows):
                    continue
                whole = len(rows) == min(BLOCK, len(vectors) - begin)
                block = vectors[begin : begin + BLOCK] if whole else vectors[rows]
                scores = torch.cat([best, asked @ torch.from_numpy(np.array(block)).T], 1)
                where = torch.cat([at, torch.from_numpy(rows).expand(len(asked), -1)], 1)
                columns = first_largest(scores, min(k, scores.shape[1]))
                best, at = scores.gather(1, columns), where.gather(1, columns)
            found.append((at.numpy(), best.numpy()))
        return np.concatenate([rows for rows, _ in found]), np.concatenate([scores for _, scores in found])

    def _asked(self, structure: Any, queries: np.ndarray, k: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The answers of the structure; where it finds fewer than k, the rest are rows 0 with a score of -inf."""
        faiss = _faiss()
        told = self._settings()
        # The structure numbers its vectors as the rows are numbered; it skips those that do not count.
        bits = np.packbits(alive, bitorder="little")
        only = faiss.IDSelectorBitmap(bits)
        if self.generation.kind == "hnsw":
            how = faiss.SearchParametersHNSW(sel=only, efSearch=max(told["width"], k))
        else:
            how = faiss.SearchParametersIVF(sel=only, nprobe=told["probes"])
        scores, rows = structure.search(np.ascontiguousarray(queries, np.float32), k, params=how)
        return np.where(rows < 0, 0, rows), np.where(rows < 0, -np.inf, scores)

    def _settings(self) -> dict[str, Any]:
        return {**KINDS[self.generation.kind], **self.generation.settings}

    # -- the structure -------------------------------------------------------------------------
    def build(self) -> None:
        """Make the structure cover every row.

        Raises:
            EverlearnError: faiss is not installed.
            OSError: it cannot be written.
        """
        if self.generation.kind == "exact" or not self.generation.ids:
            return
        structure, covered = self._structure(mapped=False)
        rows = len(self.generation.ids)
        if structure is not None and covered == rows:
            return
        faiss = _faiss()
        if structure is None:
            structure, covered = self._new(faiss), 0
        for start in range(covered, rows, BLOCK):
            structure.add(np.ascontiguousarray(self.generation.vectors[start : start + BLOCK]))
        folder, name = self.generation.folder, f"nearby-{rows}.faiss"
        partial = folder / f".{name}.{os.getpid()}"
        try:
            faiss.write_index(structure, str(partial))
            flush_to_disk(partial)
            seal = {"file": name, "rows": rows, "bytes": partial.stat().st_size, "sha256": _sha256(partial)}
            os.replace(partial, folder / name)
        except RuntimeError as error:  # faiss has no errors of its own
            raise EverlearnError(f"{folder / name} cannot be written: make room and save again") from None
        finally:
            partial.unlink(missing_ok=True)
        write_whole(folder / SEAL, json.dumps(seal))
        for left in folder.glob("nearby-*.faiss"):
            if left.name != name:
                left.unlink()
        self._found = None

    def _new(self, faiss: Any) -> Any:
        told, dimension, rows = self._settings(), self.generation.stamp.dimension, len(self.generation.ids)
        if self.generation.kind == "hnsw":
            graph = faiss.IndexHNSWFlat(dimension, told["links"], faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = told["effort"]
            return graph
        lists = min(told["lists"] or max(1, round(4 * rows**0.5)), rows)
        clusters = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, lists, faiss.METRIC_INNER_PRODUCT)
        clusters.cp.min_points_per_centroid = 1
        sample = np.random.default_rng(0).permutation(rows)[: TRAINED_ON * lists]
        clusters.train(np.ascontiguousarray(self.generation.vectors[np.sort(sample)]))
        return clusters

    def _structure(self, mapped: bool = True) -> tuple[Any, int]:
        """The structure and the rows that it covers; None and 0 where there is none.

        Raises:
            DataError: its file is damaged.
        """
        seal_file = self.generation.folder / SEAL
        if self.generation.kind == "exact" or not seal_file.exists():
            return None, 0
        if self._found is None or not mapped:
            faiss = _faiss()
            seal = valid(from_json(read_bytes(seal_file, 4096), seal_file, REMEDY), NearbyFile, seal_file, REMEDY)
            file = self.generation.folder / seal["file"]
            if (
                seal["rows"] > len(self.generation.ids)
                or not file.exists()
                or (file.stat().st_size != seal["bytes"] or _sha256(file) != seal["sha256"])
            ):
                raise DataError(f"{file} is damaged or missing: delete {seal_file}, then `everlearn index save`")
            flags = (faiss.IO_FLAG_MMAP if self.generation.kind == "ivf" else faiss.IO_FLAG_MMAP_IFC) if mapped else 0
            found = faiss.read_index(str(file), flags), seal["rows"]
            if not mapped:
                return found
            self._found = found
        return self._found


def _sha256(file: Any) -> str:
    with regular(file) as opened:
        digest = hashlib.sha256()
        while part := opened.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise EverlearnError("an index of the kind hnsw or ivf needs faiss; install it with `pip install "
                             "everlearn[retrieval]`") from None  # fmt: skip
    return faiss
