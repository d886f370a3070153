"""L²R: old documents enter the loss with the embeddings that they have in the index (Cai et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.backbones.backbone import Backbone
from everlearn.losses import ranking_alignment
from everlearn.memory.drift_log import DriftLog
from everlearn.memory.memory import Memory
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.metrics.retrieval import comparable
from everlearn.settings import Count, Natural, Strength
from everlearn.streams.stream import Examples, Task
from everlearn.teacher import FrozenEncoder

SUPERIORITY, DIVERSITY = 0.6, 0.4
"""What counts when negatives are chosen: how far behind the positive, and how unlike each other."""


class L2R(Finetune):
    """L²R: Lifelong Learning for First-stage Retrieval with Backward-Compatible Representations. Cai, Bi, Fan, Guo,
    Chen & Cheng, CIKM 2023, https://arxiv.org/abs/2308.11512

    A memory keeps pairs of earlier domains with negatives, and the embeddings that these documents have in the index.
    In each step, old pairs join the new ones, and all queries are compared with all documents: the new documents as the
    model embeds them now, the old ones as they were embedded. Besides the ranking loss, the ranking by these mixed
    embeddings is held to the ranking that the model would give if it embedded the old documents anew. So new queries
    fit the old index, and no document is encoded twice.

    Of the candidates that the model before the domain ranks high for a query, those are taken as negatives that are
    far behind the positive (weight 0.6) and unlike each other (0.4), both standardised over the candidates.

    Departures: in the paper the queries stay the same and each session brings documents alone; here each domain brings
    pairs. New documents are therefore negatives of old queries because they are in the same batch, the negatives that
    the memory keeps for a query are those of its own domain, and they are chosen once a domain instead of in each step.

    Args:
        backbone: a pre-trained encoder.
        align: weight of the ranking alignment.
        memory_size: most pairs kept; None for no such limit.
        memory_bytes: most bytes of pairs kept; None for no such limit.
        replay_batch_size: pairs drawn per step.
        negatives: chosen for each pair, of new pairs and old ones; 0 leaves those of the batch, and those that the data
            bring for new pairs.
        candidates: among which they are chosen: the documents nearest to the query (`everlearn.retrieval.negatives`).
            The other settings are those of `finetune`; the paper's learning rate, 1e-6, is for larger data.

    Relations: `er` embeds the old documents anew; `qdc` moves the queries instead of training them for the old index.

    >>> from everlearn import backbones
    >>> L2R(backbones.load("tiny"), memory_size=10).memory.limits
    (10, None)
    """

    tags = Tags(family="replay", trains="backbone", goals=("ranking",), inputs=("text",), index="kept")
    before: FrozenEncoder
    """The model as it was before this domain; there only where negatives are chosen."""

    def __init__(
        self, backbone: Backbone, *, align: Strength = 1.0, memory_size: Natural | None = 500,
        memory_bytes: Natural | None = None, replay_batch_size: Count = 32, negatives: Natural = 2,
        candidates: Count = 7, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, **settings)
        self.align, self.replay_batch_size = align, replay_batch_size
        self.negatives, self.candidates = negatives, candidates
        self.memory = Memory(memory_size, bytes=memory_bytes, seed=self.seed)
        self.spaces = DriftLog(0)  # which it has been in; queries for them need no shift

    def begin_task(self, task: Task) -> None:
        if self.negatives:
            self.before = FrozenEncoder(self)
        super().begin_task(task)

    def batches(self, task: Task) -> Sequence[Examples]:
        return self.shuffled(self.supported(task), task)

    def supported(self, task: Task) -> Examples:
        """The training pairs with the negatives chosen for them by the model before this domain."""
        if not self.negatives:
            return task.train
        from everlearn.retrieval.negatives import mined

        pairs = mined(self.before, task.train, most=self.candidates)
        assert pairs.positives is not None
        assert pairs.negatives is not None
        texts = list(dict.fromkeys(pairs.positives))  # the candidates are the positives of other queries
        row = {text: i for i, text in enumerate(texts)}
        similarity = self.backbone.similarity
        queries = comparable(self.before.embed(pairs.inputs, "query"), similarity)
        documents = comparable(self.before.embed(texts, "document"), similarity)
        chosen = []
        for query, positive, own in zip(queries, pairs.positives, pairs.negatives, strict=True):
            candidates = documents[[row[text] for text in own]]
            best = supports(query, documents[row[positive]], candidates, self.negatives)
            chosen.append([own[i] for i in best])
        return replace(pairs, negatives=chosen)

    def loss(self, batch: Examples) -> Tensor:
        if not len(self.memory):
            return super().loss(batch)
        old = self.memory.sample(self.replay_batch_size, alike=True)
        both = Examples.concatenate([batch, old])
        queries, documents = self._by_parts(both.inputs, "query"), self._by_parts(both.documents, "document")
        negatives = [len(part.documents) - len(part) for part in (batch, old)]
        counts = torch.tensor([len(batch), len(old), *negatives])  # of `both`: positives, then negatives
        is_old = torch.tensor([False, True, False, True]).repeat_interleave(counts)
        mixed = documents.clone()
        mixed[is_old.to(mixed.device)] = self._as_kept(old).to(mixed)
        similarity = self.backbone.similarity
        losses = self.ranking_losses(queries, mixed, both.documents, both)
        return (losses + self.align * ranking_alignment(queries, mixed, documents, similarity)).mean()

    def _as_kept(self, old: Examples) -> Tensor:
        """The kept embeddings of the positives, and after them of the negatives."""
        documents = old.columns["documents"]
        negatives = [rows[1 : 1 + len(own)] for rows, own in zip(documents, old.negatives or (), strict=False)]
        return torch.cat([documents[:, 0], *negatives])

    def end_task(self, task: Task) -> None:
        pairs = self.supported(task)
        if not self.negatives:  # those that the data bring may be any number, and the memory has room for none
            pairs = replace(pairs, negatives=None)
        assert pairs.positives is not None
        own = [[positive, *texts] for positive, texts in
               zip(pairs.positives, pairs.negatives or [()] * len(pairs), strict=True)]  # fmt: skip
        texts = list(dict.fromkeys(text for texts in own for text in texts))
        row = {text: i for i, text in enumerate(texts)}
        embedded = comparable(self.embed(texts, "document"), self.backbone.similarity)
        documents = embedded.new_zeros(len(pairs), 1 + self.negatives, embedded.shape[1])
        for into, texts in zip(documents, own, strict=True):
            into[: len(texts)] = embedded[[row[text] for text in texts]]
        self.memory.add(pairs, documents=documents)
        self.spaces.record(self.document_space(), torch.empty(0))

    def reaches(self, space: str) -> bool:
        return super().reaches(space) or self.spaces.since(space) is not None


def supports(query: Tensor, positive: Tensor, candidates: Tensor, most: int) -> list[int]:
    """The rows of up to `most` candidates (n, width): those that the positive (width,) is far ahead of, along the query
    (width,), and that are unlike the others. All vectors are comparable by their dot products.

    >>> candidates = torch.tensor([[0.9, 0.4], [0.9, 0.4], [0.5, -0.8]])
    >>> supports(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), candidates, most=1)
    [2]
    """
    if len(candidates) <= most:
        return list(range(len(candidates)))
    units = normalize(candidates, dim=1)
    ahead, alike = ((positive - candidates) @ query).abs(), (units @ units.T).sum(1)
    scores = SUPERIORITY * _standardised(ahead) - DIVERSITY * _standardised(alike)
    return scores.argsort(descending=True, stable=True)[:most].tolist()


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp(min=1e-8)
