"""The stamp of an index: what embedded its documents, so that another encoder is refused and never silently wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np

from everlearn.errors import EverlearnError, shown

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.backbones.backbone import Backbone, Role


class Embeds(Protocol):
    """What is asked of a method."""

    backbone: Backbone

    def embed(self, inputs: Sequence[Any], role: Role | None = None) -> Tensor:
        """(n, width)."""

    def document_space(self) -> str:
        """A hash of all that determines the embedding of a document."""


class Learned(Protocol):
    """What holds a method, as a loaded model does."""

    @property
    def method(self) -> Embeds:
        """What embeds."""


Encoder: TypeAlias = "Learned | Embeds | Backbone"
"""What can embed queries and documents: a loaded model, a method or a backbone."""


@dataclass(frozen=True)
class Stamp:
    """What determines the embedding of a document.

    Args:
        space: a hash of all of it (`Method.document_space`); two indexes can be compared exactly where it is equal.
        encoder: the name of the backbone, and what follows are for people and for messages.
        dimension: numbers of an embedding.
        similarity: how queries and documents are compared, `cosine` or `dot`.
        pooling: how the states of a text's tokens become one embedding.
        prompt: what is put before a document.
        precision: of the matrix products.

    >>> from everlearn import backbones
    >>> stamp = stamp_of(backbones.load("tiny"))
    >>> stamp.dimension, stamp.similarity, Stamp.of_record(stamp.record) == stamp
    (32, 'cosine', True)
    """

    space: str
    encoder: str
    dimension: int
    similarity: Literal["cosine", "dot"] = "cosine"
    pooling: str = ""
    prompt: str = ""
    precision: str = "float32"

    @property
    def normalised(self) -> bool:
        """Whether embeddings have length 1 in the index."""
        return self.similarity == "cosine"

    @property
    def record(self) -> dict[str, Any]:
        """The stamp as plain JSON."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Stamp:
        """The stamp that `record` was made of."""
        return cls(**record)

    def differs_from(self, other: Stamp) -> str:
        """In what two stamps differ, for a message."""
        mine, theirs = self.record, other.record
        told = [name for name in mine if name != "space" and mine[name] != theirs[name]]
        parts = [f"{name} {theirs[name] or 'none'}, not {mine[name] or 'none'}" for name in told]
        return "; ".join(parts) or f"other weights of {self.encoder}"


def method_of(encoder: Encoder) -> Any:
    """The method or backbone behind a model; a method or backbone itself."""
    return getattr(encoder, "method", encoder)


def stamp_of(encoder: Encoder) -> Stamp:
    """The stamp that the documents of an encoder have.

    Raises:
        EverlearnError: it is no encoder, or its similarity is neither the cosine nor the dot product.

    >>> from everlearn import backbones, methods
    >>> tiny = backbones.load("tiny")
    >>> stamp_of(tiny) == stamp_of(methods.get("frozen")(tiny))
    True
    """
    asked = method_of(encoder)
    backbone = getattr(asked, "backbone", asked)
    if not hasattr(backbone, "similarity"):
        raise EverlearnError(f"{shown(encoder)} is no encoder: give a loaded model, a method or a backbone, or the "
                             "stamp of the embeddings")  # fmt: skip
    if backbone.similarity not in ("cosine", "dot"):
        raise EverlearnError(f"backbone '{backbone.name}' compares by {backbone.similarity}, and an index by the "
                             "cosine or the dot product: take another backbone")  # fmt: skip
    if asked is backbone:
        with backbone.reading("document"):
            space = backbone.identity()
    else:
        space = asked.document_space()
    pooling, prompts = backbone.settings.get("pooling", ""), getattr(backbone, "prompts", {})
    pooled = pooling if isinstance(pooling, str) else ", ".join(pooling)
    return Stamp(space, backbone.name, backbone.width, backbone.similarity, pooled, prompts.get("document") or "",
                 backbone.precision)  # fmt: skip


def embedded(encoder: Encoder, texts: Sequence[Any], role: Literal["query", "document"]) -> np.ndarray:
    """Embeddings (n, dimension) of queries or documents, float32.

    >>> from everlearn import backbones
    >>> embedded(backbones.load("tiny"), ["a cup of tea"], "document").shape
    (1, 32)
    """
    import torch

    asked = method_of(encoder)
    with torch.no_grad():
        if hasattr(asked, "embed"):
            found = asked.embed(list(texts), role)
        else:
            with asked.reading(role):
                found = asked.encode(list(texts))
    return found.float().cpu().numpy()
