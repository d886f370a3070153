"""Losses as plain functions: scores in, one number per example out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from everlearn.metrics.retrieval import comparable


def cross_entropy(scores: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> Tensor:
    """(n,) cross-entropies; where `classes` is given, over these classes only.

    With the classes of the current task only, the scores of old classes, which have no examples now,
    are not pushed down.

    Args:
        scores: (n, classes). labels: (n,), each within `classes`, or the loss is infinite.

    >>> scores = torch.tensor([[100.0, 0.0, 0.0]])
    >>> cross_entropy(scores, torch.tensor([1]), classes=[1, 2])  # ln 2
    tensor([0.6931])
    """
    return functional.cross_entropy(scores if classes is None else within(scores, classes), labels, reduction="none")


def within(scores: Tensor, classes: Sequence[int]) -> Tensor:
    """The scores (n, classes), -inf for all classes but these.

    >>> within(torch.tensor([[5.0, 1.0, 2.0]]), [1, 2])
    tensor([[-inf, 1., 2.]])
    """
    outside = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
    outside[list(classes)] = False
    return scores.masked_fill(outside, float("-inf"))


def distillation(scores: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """(n,) T² · KL(softmax(teacher / T) ‖ softmax(scores / T)): 0 where they agree.

    T² keeps the gradient's size the same for every temperature (Hinton et al., 2015). A teacher that
    knows fewer classes is compared on those, which are the first columns of `scores`.

    Args:
        scores: (n, classes). teacher: (n, at most as many classes); no gradient reaches it.

    >>> distillation(torch.tensor([[2.0, 1.0, 9.0]]), torch.tensor([[2.0, 1.0]]))
    tensor([0.])
    """
    student = functional.log_softmax(scores[:, : teacher.shape[1]] / temperature, dim=1)
    target = functional.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, target, reduction="none", log_target=True).sum(1)


def multiple_negatives_ranking(
    queries: Tensor, documents: Tensor, texts: Sequence[str] | None = None, similarity: str = "cosine",
    asked: Sequence[Any] | None = None,
) -> Tensor:  # fmt: skip
    """(n,) cross-entropies of finding each query's document among all documents of the batch.

    Args:
        queries: (n, width).
        documents: (m, width), m ≥ n: document i answers query i; documents from n on answer no query.
        texts: the m documents' texts. Where given, a copy of the positive elsewhere in the batch is
            not counted as a negative.
        similarity: `cosine`, at an inverse temperature of 20, or `dot`, at 1.
        asked: the n queries themselves. Where given, the document of an equal query is not counted as a negative.

    Raises:
        EverlearnError: another similarity.

    >>> documents = torch.eye(2)[[0, 1, 0]]
    >>> multiple_negatives_ranking(documents[:2], documents, ["a", "b", "a"]).abs().round(decimals=4)
    tensor([0., 0.])
    """
    scores = ranking_scores(queries, documents, texts, similarity, asked)
    return functional.cross_entropy(scores, torch.arange(len(queries), device=scores.device), reduction="none")


def ranking_scores(
    queries: Tensor, documents: Tensor, texts: Sequence[str] | None = None, similarity: str = "cosine",
    asked: Sequence[Any] | None = None,
) -> Tensor:  # fmt: skip
    """(n, m) scores whose cross-entropies `multiple_negatives_ranking` gives; the arguments are its own. The score of a
    copy of the positive is −∞, and so is that of another positive of an equal query.

    >>> documents = torch.eye(2)[[0, 1, 0]]
    >>> ranking_scores(documents[:2], documents, ["a", "b", "a"]).tolist()
    [[20.0, 0.0, -inf], [0.0, 20.0, 0.0]]
    """
    scores = _similarities(queries, documents, similarity)
    n = len(queries)
    no_negatives = torch.zeros_like(scores, dtype=torch.bool)
    if texts is not None:
        no_negatives |= _equal(texts, n, scores.device)
    if asked is not None:
        no_negatives[:, :n] |= _equal(asked, n, scores.device)
    return scores.masked_fill(no_negatives.fill_diagonal_(False), float("-inf"))


def _equal(items: Sequence[Any], n: int, device: torch.device) -> Tensor:
    """(n, items): which items are equal to each of the first n."""
    number = {item: i for i, item in enumerate(items)}
    same = torch.tensor([number[item] for item in items], device=device)
    return same[:n, None] == same


def ranking_alignment(queries: Tensor, mixed: Tensor, documents: Tensor, similarity: str = "cosine") -> Tensor:
    """(n,) cross-entropies between two rankings of the same documents, by mixed embeddings and by new ones.

    Cai et al. (2023, https://arxiv.org/abs/2308.11512): where some documents keep embeddings of an earlier model, new
    queries are to rank them as if all documents were embedded anew. As in their code, the gradient reaches both
    rankings.

    Args:
        queries: (n, width). mixed: (m, width), of which some are old and constant. documents: (m, width), all new.
        similarity: as in `multiple_negatives_ranking`, with the same temperature.

    >>> documents = torch.eye(2)
    >>> apart = ranking_alignment(documents, documents.flip(0), documents)
    >>> bool((ranking_alignment(documents, documents, documents) < apart).all())
    True
    """
    by_mixed, by_new = (_similarities(queries, rows, similarity) for rows in (mixed, documents))
    return functional.cross_entropy(by_mixed, by_new.softmax(1), reduction="none")


def _similarities(queries: Tensor, documents: Tensor, similarity: str) -> Tensor:
    """(n, m) cosines, at an inverse temperature of 20, or dot products, at 1."""
    scale = 20.0 if similarity == "cosine" else 1.0
    return scale * comparable(queries, similarity) @ comparable(documents, similarity).T


def sparsemax(scores: Tensor, dim: int = -1) -> Tensor:
    """The nearest point of the simplex: weights ≥ 0 that sum to 1, most of them exactly 0.

    Martins & Astudillo (2016, https://arxiv.org/abs/1602.02068): max(z - tau, 0), tau such that the sum is 1.

    Args:
        scores: (…, n) with the weighed entries along `dim`; the result has the same shape.
        dim: the dimension whose weights sum to 1.

    >>> sparsemax(torch.tensor([1.0, 0.75, -1.0])).tolist()
    [0.625, 0.375, 0.0]
    """
    z = scores.transpose(dim, -1)
    ordered = z.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    sums = ordered.cumsum(-1) - 1
    support = (ordered * ranks > sums).sum(-1, keepdim=True)
    tau = sums.gather(-1, support - 1) / support
    return (z - tau).clamp(min=0).transpose(dim, -1)
