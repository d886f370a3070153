"""Bridges: closed forms on maps that are known, judged on texts that they were not fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.errors import EverlearnError
from everlearn.retrieval.bridge import STRENGTHS, Bridge, fitted, mean_shift, procrustes, ridge


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def turn(wide: int, narrow: int, seed: int = 1) -> np.ndarray:
    """(wide, narrow) with orthonormal columns."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(wide, narrow)))[0]


@pytest.fixture
def old() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(300, 12)))


def test_mean_shift_takes_a_shift_back_on_other_texts(old: np.ndarray) -> None:
    shift = np.linspace(-1, 1, 12)
    bridge = mean_shift(old[:200] + shift, old[:200])
    assert np.abs(bridge.apply(old[200:] + shift) - old[200:]).max() < 1e-9


def test_procrustes_recovers_a_rotation_to_1e_6(old: np.ndarray) -> None:
    new = old @ turn(12, 12).T
    bridge = procrustes(new[:200], old[:200])
    assert np.abs(bridge.matrix - turn(12, 12)).max() < 1e-6
    assert np.abs(bridge.apply(new[200:]) - old[200:]).max() < 1e-6


def test_procrustes_between_dimensions(old: np.ndarray) -> None:
    wide = old @ turn(20, 12).T  # (n, 20): the same embeddings in a larger space
    assert np.abs(procrustes(wide[:200], old[:200]).apply(wide[200:]) - old[200:]).max() < 1e-6
    narrow = old @ turn(12, 8)
    bridge = procrustes(narrow[:200], old[:200])
    assert bridge.dimensions == (8, 12)
    assert np.abs(bridge.matrix @ bridge.matrix.T - np.eye(8)).max() < 1e-9  # lengths stay
    # A shorter embedding ends where the part of the old one ends that it still knows.
    known = old[200:] @ turn(12, 8) @ turn(12, 8).T
    assert np.abs(bridge.apply(narrow[200:]) - known).max() < 0.3
    assert np.abs(bridge.apply(narrow[200:]) - known).mean() < np.abs(old[200:] - known).mean() / 4


def test_ridge_recovers_an_affine_map_between_dimensions(old: np.ndarray) -> None:
    map_, shift = np.random.default_rng(2).normal(size=(12, 7)), np.arange(7.0)
    bridge = ridge(old[:200], old[:200] @ map_ + shift)
    assert np.abs(bridge.apply(old[200:]) - (old[200:] @ map_ + shift)).max() < 1e-3


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_ridge_chooses_as_leaving_out_one_pair_after_another_does(scale: float) -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(25, 15)) * scale
    y = x @ random.normal(size=(15, 4)) / scale + 3 * random.normal(size=(25, 4))

    def left_out(strength: float) -> float:
        error = 0.0
        for row in range(25):
            rest = np.arange(25) != row
            # The penalty is that of all pairs; only the fit is without the one that is left out.
            penalty = strength * np.trace((x - x.mean(0)).T @ (x - x.mean(0))) / 15
            centre, target = x[rest].mean(0), y[rest].mean(0)
            a, b = x[rest] - centre, y[rest] - target
            map_ = np.linalg.solve(a.T @ a + penalty * np.eye(15), a.T @ b)
            error += ((y[row] - target - (x[row] - centre) @ map_) ** 2).sum()
        return error

    best = min(STRENGTHS, key=left_out)
    assert best not in (STRENGTHS[0], STRENGTHS[-1])  # so that the choice is one
    centred = x - x.mean(0)
    gram = centred.T @ centred
    expected = np.linalg.solve(gram + best * np.trace(gram) / 15 * np.eye(15), centred.T @ (y - y.mean(0)))
    assert np.allclose(ridge(x, y).matrix, expected, atol=1e-9, rtol=1e-6)


def test_ridge_of_embeddings_that_are_all_the_same_is_the_mean() -> None:
    old = np.random.default_rng(0).normal(size=(5, 3))
    assert np.allclose(ridge(np.ones((5, 4)), old).apply(np.ones((1, 4))), old.mean(0))


def test_a_high_cosine_is_no_proof(old: np.ndarray) -> None:
    """The bridge that sends every query to the mean document is near all of them, where they lie in a cone, and finds
    nothing; this is why a bridge is accepted by what it finds."""
    documents = unit(old + 3)
    mean = Bridge(np.zeros((12, 12)), documents.mean(0))
    cosine = (unit(mean.apply(documents)) * documents).sum(1)
    assert cosine.mean() > 0.95
    first = (mean.apply(documents) @ documents.T).argmax(1)
    assert (first == np.arange(len(documents))).mean() < 0.01


def test_which_bridges_the_dimensions_allow(old: np.ndarray) -> None:
    queries = old[:50]
    assert list(fitted(queries, queries, old, old)) == ["mean shift", "procrustes", "ridge"]
    wide = turn(20, 12).T
    assert list(fitted(queries @ wide, queries, old @ wide, old)) == ["procrustes", "ridge"]
    with pytest.raises(EverlearnError, match="20 and of 12 numbers"):
        mean_shift(queries @ wide, queries)


def test_the_mean_shift_is_that_of_queries() -> None:
    random = np.random.default_rng(0)
    queries, documents = random.normal(size=(20, 4)), random.normal(size=(100, 4))
    bridges = fitted(queries + 1, queries, documents + 5, documents)
    assert np.allclose(bridges["mean shift"].shift, -1)
