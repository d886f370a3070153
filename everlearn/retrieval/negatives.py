"""Hard negatives: documents that a retriever takes for answers, and that are none.

They are mined by `mine_hard_negatives` of sentence-transformers, with the embeddings of our own encoder, which come
from the feature store where it is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import Any, cast

import torch
from torch import Tensor

from everlearn.errors import EverlearnError
from everlearn.metrics.retrieval import comparable
from everlearn.retrieval.stamp import Encoder, embedded, method_of
from everlearn.settings import Count, Natural, Share, checked
from everlearn.streams.stream import Examples


def mined(
    encoder: Encoder, pairs: Examples, corpus: Sequence[str] = (), *, first: int = 0, last: int = 100,
    margin: float = 0.05, most: int = 7,
) -> Examples:  # fmt: skip
    """The pairs, each with up to `most` negatives: the documents nearest to its query, from rank `first` to rank
    `last`, without its positives and without likely false negatives.

    Args:
        encoder: a model, a method or a backbone, which ranks the documents.
        pairs: queries with their positives.
        corpus: further documents; the positives of all pairs are always among them.
        first, last: the band of ranks. A low band is hard, a high one is easy.
        margin: a document is left out if its similarity is above (1 - margin) times that of the positive, since it may
            well be an answer that nobody has marked (Moreira et al., 2024, https://arxiv.org/abs/2407.15831).
        most: negatives of a query.

    Raises:
        EverlearnError: sentence-transformers is not installed, the band is empty, or the examples are no pairs.

    >>> from everlearn import backbones
    >>> queries, documents = ["a rose", "a lawn"], ["the rose is red", "the lawn is green"]
    >>> pairs = Examples(queries, torch.empty(0, dtype=torch.long), ["1", "2"], positives=documents)
    >>> mined(backbones.load("tiny"), pairs, most=1, margin=0.0).negatives
    [['the lawn is green'], ['the rose is red']]
    """
    for name, value, kind in (("first", first, Natural), ("last", last, Count), ("margin", margin, Share),
                              ("most", most, Count)):  # fmt: skip
        checked(name, value, kind)
    if pairs.positives is None:
        raise EverlearnError("negatives are mined for pairs of a query and a document, and these examples have classes")
    if first >= last:
        raise EverlearnError(f"the band from rank {first} to rank {last} is empty: give a last one above the first")
    try:
        from datasets import Dataset
        from sentence_transformers.util import mine_hard_negatives
    except ImportError:
        raise EverlearnError("mining negatives needs sentence-transformers and datasets; install them with `pip "
                             "install everlearn[retrieval,hub]`") from None  # fmt: skip
    documents = list(dict.fromkeys([*pairs.positives, *corpus]))
    last = min(last, len(documents))
    if first >= last or len(documents) < 2:  # there are not so many, or none but the positive
        return replace(pairs, negatives=[[] for _ in pairs.inputs])
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):  # what it shows, no argument turns off everywhere
        triplets = mine_hard_negatives(
            Dataset.from_dict({"anchor": list(pairs.inputs), "positive": list(pairs.positives)}),
            cast(Any, _Encoder(encoder)), corpus=documents, range_min=first, range_max=last,
            relative_margin=margin, num_negatives=min(most, last - first), output_format="triplet", verbose=False,
        )  # fmt: skip
    negatives: dict[tuple[str, str], list[str]] = {}
    for query, positive, negative in zip(triplets["anchor"], triplets["positive"], triplets["negative"], strict=True):
        negatives.setdefault((query, positive), []).append(negative)
    found = [
        negatives.get((str(query), positive), []) for query, positive in zip(pairs.inputs, pairs.positives, strict=True)
    ]
    return replace(pairs, negatives=found)


def near(encoder: Encoder, pairs: Examples, documents: Sequence[str], most: int = 30) -> Tensor:
    """(n, at most `most`) the documents nearest to each query, nearest first, as rows of `documents`; -1 where there
    are fewer. Its positives and likely false negatives are not among them, as in `mined`: a document that ranks above
    the positive, or just below it, is a wrong answer or one that nobody has marked, and it cannot be told which.

    Args:
        documents: the positives of all pairs, each once, and no others.

    >>> from everlearn import backbones
    >>> queries, documents = ["a rose", "a lawn"], ["the rose is red", "the lawn is green"]
    >>> pairs = Examples(queries, torch.empty(0, dtype=torch.long), ["1", "2"], positives=documents)
    >>> near(backbones.load("tiny"), pairs, documents).shape
    torch.Size([2, 2])
    """
    most = min(most, len(documents))
    found = mined(encoder, pairs, most=most).negatives
    assert found is not None
    row = {text: number for number, text in enumerate(documents)}
    return torch.tensor([[row[text] for text in own] + [-1] * (most - len(own)) for own in found])


class _Encoder:
    """What `mine_hard_negatives` asks of a SentenceTransformer."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        backbone = getattr(method_of(encoder), "backbone", method_of(encoder))
        self.kind, self.device = backbone.similarity, torch.device("cpu")

    def encode_query(self, texts: Sequence[str], **_: Any) -> Any:
        return embedded(self.encoder, texts, "query")

    def encode_document(self, texts: Sequence[str], **_: Any) -> Any:
        return embedded(self.encoder, texts, "document")

    def similarity(self, queries: Any, documents: Any) -> torch.Tensor:
        a, b = (comparable(torch.as_tensor(rows), self.kind) for rows in (queries, documents))
        return a @ b.T

    def similarity_pairwise(self, queries: Any, documents: Any) -> torch.Tensor:
        a, b = (comparable(torch.as_tensor(rows), self.kind) for rows in (queries, documents))
        return (a * b).sum(1)
