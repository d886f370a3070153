"""Documents in a table of LanceDB (the extra lancedb), for those whose other tools read it.

The table `documents` has the columns id, vector and number, which says in which order documents were added. LanceDB
makes each change whole or not at all. It compares with every vector, unless you have made an index of its own on the
table. Of documents with equal similarity at the last place it gives any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from everlearn.errors import DataError, EverlearnError, one_line, printable
from everlearn.files import flush_to_disk
from everlearn.retrieval.generation import REMEDY, Generation
from everlearn.retrieval.stamp import Stamp

TABLE = "documents"
QUERIES = 64  # that are asked at once


class LanceGeneration(Generation):
    """Documents in a table of LanceDB.

    Args:
        folder: of the generation, which is the database.

    Raises:
        EverlearnError: lancedb is not installed, or the table is missing, damaged or of another form.
    """

    removed = 0.0  # LanceDB leaves them out itself

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        lancedb = _lancedb()
        with one_line(folder, REMEDY):
            self._table = lancedb.connect(str(folder)).open_table(TABLE)
            if self._table.schema != _schema(self.stamp):
                raise DataError(f"{folder} has a table with other columns than those of everlearn: {REMEDY}")
            known = self._table.search().select(["number", "id"]).to_arrow().sort_by("number")
            self._ids = dict(zip(known["number"].to_pylist(), known["id"].to_pylist(), strict=True))
        self._numbers = {id: number for number, id in self._ids.items()}
        if len(self._numbers) < known.num_rows or None in self._numbers:
            raise DataError(f"{folder} has a document without an id of its own: {REMEDY}")

    @staticmethod
    def begin(folder: Path, stamp: Stamp) -> None:
        with _writing(folder):
            _lancedb().connect(str(folder)).create_table(TABLE, schema=_schema(stamp))

    # -- what it holds -------------------------------------------------------------------------
    @property
    def ids(self) -> list[str]:  # type: ignore[override]
        """In the order in which they were added."""
        return list(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, id: object) -> bool:
        return id in self._numbers

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        if not ids:
            return np.empty((0, self.stamp.dimension), np.float32)
        asked = [self._numbers[id] for id in ids]
        with self._reading():
            found = self._table.search().where(_among(asked)).select(["number", "vector"]).to_arrow()
            place = {number: row for row, number in enumerate(found["number"].to_pylist())}
            return _matrix(found["vector"], self.stamp)[[place[number] for number in asked]]

    def nearest(self, queries: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        ids, scores = [], np.empty((len(queries), k), np.float32)
        with self._reading():
            for start in range(0, len(queries), QUERIES):
                part = queries[start : start + QUERIES]
                found = self._found(part, k, any_index=True)
                if len(found) < len(part) * k:  # an index of LanceDB looks at a part of the vectors only
                    found = self._found(part, k, any_index=False)
                rows = found.reshape(len(part), k)
                ids += [[self._ids[number] for number in row] for row in rows["number"].tolist()]
                scores[start : start + len(part)] = rows["score"]
        return ids, scores

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with one_line(self.folder, REMEDY):
            try:
                yield
            except Exception:
                if self.folder.exists():
                    raise
                raise DataError(f"{self.folder} was replaced by a newer generation: load the index again") from None

    def _found(self, queries: np.ndarray, k: int, *, any_index: bool) -> np.ndarray:
        """For each query k rows at most, in order: query, number, score."""
        asked = self._table.search(list(queries), query_type="vector").distance_type("dot").limit(k)
        asked = asked if any_index else asked.bypass_vector_index()
        found = asked.select(["number", "_distance"]).to_arrow()
        rows = np.empty(found.num_rows, [("query", np.int64), ("number", np.int64), ("score", np.float32)])
        rows["query"] = found["query_index"].to_numpy() if "query_index" in found.column_names else 0
        rows["number"], rows["score"] = found["number"].to_numpy(), 1 - found["_distance"].to_numpy()
        return rows[np.lexsort((rows["number"], -rows["score"], rows["query"]))]

    # -- changes -------------------------------------------------------------------------------
    def append(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        import pyarrow as pa

        first = max(self._ids, default=-1) + 1
        numbers = range(first, first + len(ids))
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns = [pa.array(numbers, pa.int64()), pa.array(ids, pa.string()),
                   pa.FixedSizeListArray.from_arrays(flat, self.stamp.dimension)]  # fmt: skip
        with _writing(self.folder):
            self._table.add(pa.Table.from_arrays(columns, schema=_schema(self.stamp)))
        self._ids.update(zip(numbers, ids, strict=True))
        self._numbers.update(zip(ids, numbers, strict=True))

    def remove(self, ids: Sequence[str]) -> None:
        with _writing(self.folder):
            self._table.delete(_among([self._numbers[id] for id in ids]))
        for id in ids:
            del self._ids[self._numbers.pop(id)]

    def recover(self) -> None:
        """LanceDB leaves nothing half."""

    def flush(self) -> None:
        for path in (*self.folder.rglob("*"), self.folder):
            flush_to_disk(path)

    def make_fast(self) -> None:
        with _writing(self.folder):
            self._table.optimize()

    def check(self) -> None:
        """Read all vectors; LanceDB keeps no checksums, so that only what cannot be read or is not finite is found."""
        with self._reading():
            for batch in self._table.search().select(["vector"]).to_batches():
                if not np.isfinite(_matrix(batch["vector"], self.stamp)).all():
                    raise DataError(f"{self.folder} has a vector that is not finite: {REMEDY}")


def _schema(stamp: Stamp) -> Any:
    import pyarrow as pa

    vector = pa.list_(pa.float32(), stamp.dimension)
    return pa.schema([("number", pa.int64()), ("id", pa.string()), ("vector", vector)])


def _matrix(column: Any, stamp: Stamp) -> np.ndarray:
    whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    matrix: np.ndarray = whole.flatten().to_numpy().reshape(-1, stamp.dimension)
    return matrix


def _among(numbers: Sequence[int]) -> str:
    return f"number IN ({', '.join(map(str, numbers))})"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within this context errors of LanceDB, which has no class of its own for them, become one line."""
    try:
        yield
    except Exception as error:
        raise EverlearnError(f"{folder} cannot be written ({printable(error)}), and the index is as before: check the "
                             "room and the permissions, and try again") from error  # fmt: skip


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError:
        raise EverlearnError("an index of the kind lance needs LanceDB: install it with `pip install "
                             "'everlearn[lancedb]'`, or make one of another kind") from None  # fmt: skip
    return lancedb
