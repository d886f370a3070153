"""What an index accepts: ids, and embeddings that fit its stamp."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np

from everlearn.errors import EverlearnError, printable, shown
from everlearn.retrieval.stamp import Stamp
from everlearn.streams import inputs
from everlearn.strict import SURROGATES

LONGEST_ID = 10_000


def check_new(ids: Sequence[Any], there: Container[str]) -> None:
    """Raise an EverlearnError if an id is not usable, is there already, or is given twice."""
    for id in ids:
        if not isinstance(id, str) or not 0 < len(id) <= LONGEST_ID or SURROGATES.search(id):
            raise EverlearnError(f"the id {shown(id)} is not usable: give a text of 1 to {LONGEST_ID:,} characters")
        if id in there:
            raise EverlearnError(f"the id '{printable(id)}' is in the index already: remove it first, or give the "
                                 "document another id")  # fmt: skip
    _check_different(ids)


def check_known(ids: Sequence[Any], there: Container[str]) -> None:
    """Raise an EverlearnError if an id is not there."""
    for id in ids:
        if not isinstance(id, str) or id not in there:  # a list has no place in a dictionary
            raise EverlearnError(f"the id {shown(id)} is not in the index: give ids of its documents")


def check_removed(ids: Sequence[Any], there: Container[str]) -> None:
    """Raise an EverlearnError if an id is not there, or is given twice."""
    check_known(ids, there)
    _check_different(ids)


def _check_different(ids: Sequence[str]) -> None:
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise EverlearnError(f"the id '{printable(twice)}' is given twice: give each once")


def listed(texts: Any, what: str) -> list[Any]:
    """Texts as a list; a single text is refused, whose letters would each be one."""
    if isinstance(texts, str | bytes):
        raise EverlearnError(f"the {what} are a single text: give a list of texts")
    if not isinstance(texts, Iterable):
        raise EverlearnError(f"the {what} are {shown(texts, 80)}: give a list of texts")
    return list(texts)


def rows(given: Any, by: object, what: str) -> Any:
    """What an encoder embeds, as a list of texts, or, where `by` is the stamp of one, the embeddings as they are.

    Raises:
        EverlearnError: it is no list, or something in it is no text.
    """
    if not isinstance(by, Stamp):
        return inputs.listed(listed(given, what))
    if not hasattr(given, "__len__"):
        raise EverlearnError(f"the {what} are {shown(given, 80)}: give their embeddings, one row for each")
    return given


def embeddings(given: Any, n: int, stamp: Stamp, what: str) -> np.ndarray:
    """(n, dimension) float32.

    Raises:
        EverlearnError: they have another shape, or are no numbers.
    """
    try:
        vectors = np.asarray(given, np.float32) if n else np.empty((0, stamp.dimension), np.float32)
    except (TypeError, ValueError):
        raise EverlearnError(f"the {what} are not rows of numbers: to give texts, say which encoder reads them, with "
                             "by=encoder") from None  # fmt: skip
    if vectors.shape != (n, stamp.dimension):
        raise EverlearnError(f"the {what} embeddings have the shape {vectors.shape}, and the stamp says "
                             f"({n}, {stamp.dimension}): take the encoder of that stamp")  # fmt: skip
    return vectors


def comparable(vectors: np.ndarray, stamp: Stamp, what: str) -> np.ndarray:
    """Embeddings (n, dimension) whose dot products are the similarities of the stamp: of length 1 for the cosine.

    Raises:
        EverlearnError: an embedding is not finite, or is zero where its length must be 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unfit = ~np.isfinite(lengths[:, 0]) | ((lengths[:, 0] == 0) & stamp.normalised)
    if unfit.any():
        raise EverlearnError(f"the embedding of {what} {int(unfit.argmax()) + 1} is not finite or is zero: leave it "
                             "out, or mend the encoder")  # fmt: skip
    return vectors / lengths if stamp.normalised else vectors
