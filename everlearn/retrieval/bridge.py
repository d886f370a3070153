"""Bridges: maps from the query embeddings of a new encoder into the space of an old index.

Each is fitted on the embeddings of the same texts by both encoders, and accepted only by what it finds on other, held
out queries: a high cosine to the old embeddings is no proof, since the mean vector reaches one as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from everlearn.errors import DataError, EverlearnError
from everlearn.files import read_bytes, write_whole
from everlearn.retrieval.stamp import Stamp
from everlearn.schemas import StampRecord, valid
from everlearn.strict import from_json

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge penalty, per pair."""

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


def unchanged(new: np.ndarray, old: np.ndarray) -> Bridge:
    """The bridge that changes nothing: new queries search the old index as they are.

    Raises:
        EverlearnError: the two have different dimensions.
    """
    if new.shape[1] != old.shape[1]:
        raise EverlearnError(f"embeddings of {new.shape[1]} numbers cannot search those of {old.shape[1]} as they are")
    return Bridge(np.eye(new.shape[1]), np.zeros(new.shape[1]))


def mean_shift(new: np.ndarray, old: np.ndarray) -> Bridge:
    """What the embeddings have moved in the mean is taken back (Goswami et al., 2025, Query Drift Compensation).

    Args:
        new, old: (n, d) of the same texts, by the new and the old encoder.

    >>> old = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> mean_shift(old + [0.5, 0.0], old).shift.tolist()
    [-0.5, 0.0]
    """
    return Bridge(unchanged(new, old).matrix, (old - new).mean(0))


def procrustes(new: np.ndarray, old: np.ndarray) -> Bridge:
    """The rotation (d_new, d_old) that brings the new embeddings nearest to the old ones (Schönemann, 1966,
    https://doi.org/10.1007/BF02289451). Where the dimensions differ, it maps between the subspaces.

    >>> turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> old = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> np.allclose(procrustes(old @ turn.T, old).matrix, turn)
    True
    """
    left, _, right = np.linalg.svd(new.astype(np.float64).T @ old, full_matrices=False)
    return Bridge(left @ right, np.zeros(old.shape[1]))


def ridge(new: np.ndarray, old: np.ndarray) -> Bridge:
    """The linear map with a shift and the least squared error, with the penalty of `STRENGTHS` that has the least
    leave-one-out error (Allen, 1974): one eigendecomposition serves all.

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
        damped = 1 / (values.clip(0) + strength * len(x))
        maps.append(vectors @ (damped[:, None] * products))
        leverage = (turned**2 * damped).sum(1) + 1 / len(x)
        errors.append((((y - x @ maps[-1]) / (1 - leverage.clip(max=1 - 1e-9))[:, None]) ** 2).sum())
    best = maps[int(np.argmin(errors))]
    return Bridge(best, target - centre @ best)


BRIDGES = {"unchanged": unchanged, "mean shift": mean_shift, "procrustes": procrustes, "ridge": ridge}
"""The ways to fit a bridge, the simplest first."""


def fitted(new: np.ndarray, old: np.ndarray) -> dict[str, Bridge]:
    """Every bridge that these embeddings (n, d) of the same texts allow; the first two need equal dimensions."""
    same = new.shape[1] == old.shape[1]
    return {name: fit(new, old) for name, fit in BRIDGES.items() if same or name in ("procrustes", "ridge")}


# -- beside the index ------------------------------------------------------------------------------
def write_bridge(folder: Path, stamp: Stamp, bridge: Bridge) -> None:
    """Write a bridge from the space of `stamp`, completely or not at all."""
    from safetensors.numpy import save

    tensors = {"matrix": np.ascontiguousarray(bridge.matrix, "<f4"), "shift": np.ascontiguousarray(bridge.shift, "<f4")}
    write_whole(folder / f"bridge-{stamp.space}.safetensors", save(tensors, {"stamp": json.dumps(stamp.record)}))


def read_bridges(folder: Path) -> dict[str, Bridge]:
    """The bridges of an index, by the space that they come from.

    Raises:
        DataError: a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    found = {}
    for file in sorted(folder.glob("bridge-*.safetensors")):
        data = read_bytes(file, MOST)
        try:
            tensors = load(data)
            told = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["stamp"]
            bridge = Bridge(tensors["matrix"], tensors["shift"])
            stamp = Stamp.of_record(valid(from_json(told, file, REMEDY), StampRecord, file, REMEDY))
            if bridge.matrix.shape != (stamp.dimension, len(bridge.shift)) or not np.isfinite(bridge.matrix).all():
                raise ValueError("the shapes do not fit, or a number is not finite")
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{file} is damaged ({error}): {REMEDY}") from None
        found[stamp.space] = bridge
    return found
