"""Bridges: maps from the query embeddings of a new encoder into the space of an old index.

Each is fitted on the embeddings of the same texts by both encoders, and accepted only by what it finds on other, held
out queries: a high cosine to the old embeddings is no proof, since the mean vector reaches one as well.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from everlearn.errors import DataError, EverlearnError, one_line
from everlearn.files import read_bytes, write_whole
from everlearn.retrieval.stamp import Stamp
from everlearn.schemas.retrieval import StampRecord
from everlearn.schemas.values import valid
from everlearn.strict import from_json

STRENGTHS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge penalty, in units of the mean variance of the new embeddings."""

TINY = 1e-300  # where all new embeddings are the same
REMEDY = "delete it, and fit the bridge again with `everlearn migrate`"
MOST = 2**28


@dataclass(frozen=True)
class Bridge:
    """q ↦ q · matrix + shift.

    Args:
        matrix: (d_new, d_old).
        shift: (d_old,).

    >>> Bridge(np.eye(2), np.array([1.0, 0.0])).apply(np.array([[0.0, 2.0]]))
    array([[1., 2.]])
    """

    matrix: np.ndarray
    shift: np.ndarray

    @property
    def dimensions(self) -> tuple[int, int]:
        """Of the new and of the old embeddings."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def apply(self, queries: np.ndarray) -> np.ndarray:
        """(n, d_old) of queries (n, d_new)."""
        return queries @ self.matrix + self.shift


def mean_shift(new: np.ndarray, old: np.ndarray) -> Bridge:
    """What the embeddings have moved in the mean is taken back (Goswami et al., 2025, Query Drift Compensation,
    https://arxiv.org/abs/2506.00037).

    Args:
        new, old: (n, d) of the same texts, by the new and the old encoder.

    Raises:
        EverlearnError: the two have different dimensions.

    >>> old = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> mean_shift(old + [0.5, 0.0], old).shift.tolist()
    [-0.5, 0.0]
    """
    if new.shape[1] != old.shape[1]:
        raise EverlearnError(f"embeddings of {new.shape[1]} and of {old.shape[1]} numbers have no difference: fit "
                             "procrustes or ridge")  # fmt: skip
    return Bridge(np.eye(new.shape[1]), (old - new).mean(0))


def procrustes(new: np.ndarray, old: np.ndarray) -> Bridge:
    """The rotation (d_new, d_old) that brings the new embeddings nearest to the old ones (Schönemann, 1966,
    https://doi.org/10.1007/BF02289451). Where the dimensions differ, it is as if zeros were added to the shorter ones.

    Args:
        new: (n, d_new) of n texts, by the new encoder.
        old: (n, d_old) of the same texts, by the old one.

    >>> turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> old = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> np.allclose(procrustes(old @ turn.T, old).matrix, turn)
    True
    """
    left, _, right = np.linalg.svd(new.astype(np.float64).T @ old, full_matrices=False)
    return Bridge(left @ right, np.zeros(old.shape[1]))


def ridge(new: np.ndarray, old: np.ndarray) -> Bridge:
    """The linear map with a shift and the least squared error, with the penalty of `STRENGTHS` whose error on pairs
    left out one by one is least (Allen, 1974, https://doi.org/10.1080/00401706.1974.10489157).

    Args:
        new: (n, d_new) of n texts, by the new encoder.
        old: (n, d_old) of the same texts, by the old one.

    >>> random = np.random.default_rng(0)
    >>> new, matrix = random.normal(size=(50, 3)), random.normal(size=(3, 2))
    >>> bool(np.abs(ridge(new, new @ matrix + 1).matrix - matrix).max() < 1e-2)
    True
    """
    x, y = new.astype(np.float64), old.astype(np.float64)
    centre, target = x.mean(0), y.mean(0)
    x, y = x - centre, y - target
    values, vectors = np.linalg.eigh(x.T @ x)
    turned, products = x @ vectors, vectors.T @ (x.T @ y)
    errors, maps = [], []
    for strength in STRENGTHS:
        damped = 1 / (values.clip(0) + strength * values.clip(0).mean() + TINY)
        maps.append(vectors @ (damped[:, None] * products))
        leverage = (turned**2 * damped).sum(1) + 1 / len(x)
        errors.append((((y - x @ maps[-1]) / (1 - leverage.clip(max=1 - 1e-9))[:, None]) ** 2).sum())
    best = maps[int(np.argmin(errors))]
    return Bridge(best, target - centre @ best)


def fitted(
    new_queries: np.ndarray, old_queries: np.ndarray, new_documents: np.ndarray, old_documents: np.ndarray
) -> dict[str, Bridge]:
    """Every bridge from the new to the old embeddings that the dimensions allow, by name.

    Queries and documents move differently, so the mean shift is that of the queries (n, d), as in its paper. The two
    others have many more numbers to find, and are fitted on documents (m, d) as well. Embeddings that are compared by
    the cosine have length 1 here.
    """
    new, old = np.concatenate([new_queries, new_documents]), np.concatenate([old_queries, old_documents])
    bridges = {"procrustes": procrustes(new, old), "ridge": ridge(new, old)}
    if new.shape[1] == old.shape[1]:
        bridges = {"mean shift": mean_shift(new_queries, old_queries), **bridges}
    return bridges


def check_bridge(bridge: Bridge, start: Stamp, end: Stamp) -> None:
    """Raise an EverlearnError unless the bridge leads from embeddings of `start` to those of `end`: an index with
    another one beside it could not be opened again.

    >>> stamp = Stamp("space", "encoder", 2)
    >>> check_bridge(Bridge(np.eye(2), np.zeros(3)), stamp, stamp)
    Traceback (most recent call last):
    everlearn.errors.EverlearnError: the shift of the bridge has the shape (3,) instead of (2,): fit it again
    """
    if bridge.matrix.shape != (start.dimension, end.dimension):
        leads = " to ".join(map(str, bridge.matrix.shape))
        raise EverlearnError(f"the bridge leads from {leads} numbers, and the index needs {start.dimension} to "
                             f"{end.dimension}: fit it for these encoders")  # fmt: skip
    if bridge.shift.shape != (end.dimension,):
        raise EverlearnError(f"the shift of the bridge has the shape {bridge.shift.shape} instead of "
                             f"({end.dimension},): fit it again")  # fmt: skip
    with np.errstate(over="ignore"):
        if not all(np.isfinite(part.astype(np.float32)).all() for part in (bridge.matrix, bridge.shift)):
            raise EverlearnError("the bridge has numbers that are not finite: fit it again, on embeddings that are")


# -- beside the index ------------------------------------------------------------------------------
def write_bridge(folder: Path, stamp: Stamp, bridge: Bridge) -> None:
    """Write a bridge from the space of `stamp`, completely or not at all."""
    from safetensors.numpy import save

    tensors = {"matrix": np.ascontiguousarray(bridge.matrix, "<f4"), "shift": np.ascontiguousarray(bridge.shift, "<f4")}
    name = hashlib.sha256(stamp.space.encode()).hexdigest()[:32]  # a space may be called anything, also ../space
    write_whole(folder / f"bridge-{name}.safetensors", save(tensors, {"stamp": json.dumps(stamp.record)}))


def read_bridges(folder: Path, stamp: Stamp) -> dict[str, Bridge]:
    """The bridges to the space of `stamp`, by the space that they come from.

    Raises:
        DataError: a file is damaged, or leads elsewhere.
    """
    return dict(_read_bridge(file, stamp.dimension) for file in sorted(folder.glob("bridge-*.safetensors")))


def _read_bridge(file: Path, dimension: int) -> tuple[str, Bridge]:
    from safetensors.numpy import load

    data = read_bytes(file, MOST)
    with one_line(file, REMEDY):
        tensors = load(data)
        # safetensors gives the metadata of a file only; it stands in JSON after the eight bytes of its length.
        told = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["stamp"]
        origin = Stamp.of_record(valid(from_json(told, file, REMEDY), StampRecord, file, REMEDY))
        bridge = Bridge(tensors["matrix"], tensors["shift"])
        if bridge.matrix.shape != (origin.dimension, dimension) or bridge.shift.shape != (dimension,):
            raise DataError(f"{file} leads to other embeddings than those of the index: {REMEDY}")
        if not all(part.dtype == np.float32 and np.isfinite(part).all() for part in tensors.values()):
            raise DataError(f"{file} holds numbers that are not finite, or of another kind: {REMEDY}")
    return origin.space, bridge
