"""QDC: distillation of queries and documents, and queries that take back their drift (Goswami et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from everlearn.backbones.backbone import Backbone, Role
from everlearn.memory.drift_log import DriftLog
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.metrics.retrieval import comparable
from everlearn.settings import Natural, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task
from everlearn.teacher import FrozenEncoder


class QDC(Finetune):
    """Query Drift Compensation: Enabling Compatibility in Continual Learning of Retrieval Embedding Models. Goswami,
    Wang, Twardowski & van de Weijer, CoLLAs 2025, https://arxiv.org/abs/2506.00037

    The encoder is fine-tuned on each domain, while the embeddings of its queries and documents stay near those of the
    model before, by their cosine. The documents of earlier domains keep the embeddings that they have in the index.
    How far the queries have moved in the mean since then is measured on the training queries of each domain, and a
    query that searches an old index takes this back: f(q) - Σ δ, for embeddings of length 1.

    The first domain has a model before it too: the pre-trained one, whose index can be searched afterwards as well.

    Args:
        backbone: a pre-trained encoder.
        distill: weight of the cosine distance to the model before, of queries and of documents.
        compensate: whether queries take their drift back.
        negatives: hard negatives a pair, mined once with the model before each domain among the domain's documents
            (`everlearn.retrieval.negatives`); the paper has 7. The other settings are those of `finetune`.

    Relations: with `distill=0` and `compensate=False` it is `finetune` with a kept index; with `compensate=False`
    alone, distillation to the previous model.

    >>> from everlearn import backbones
    >>> len(QDC(backbones.load("tiny"), epochs=1).drift.spaces)
    0
    """

    tags = Tags(family="regularisation", trains="backbone", goals=("ranking",), inputs=("text",), index="kept")
    before: FrozenEncoder
    """The model as it was before this domain."""

    def __init__(
        self, backbone: Backbone, *, distill: Strength = 1.0, compensate: bool = True, negatives: Natural = 0,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, **settings)
        self.distill, self.compensate, self.negatives = distill, compensate, negatives
        self.drift = DriftLog(backbone.width)

    def begin_task(self, task: Task) -> None:
        self.before = FrozenEncoder(self)
        super().begin_task(task)

    def batches(self, task: Task) -> Sequence[Examples]:
        if not self.negatives:
            return super().batches(task)
        from everlearn.retrieval.negatives import mined

        return self.shuffled(mined(self.before, task.train, most=self.negatives), task)

    def losses(self, batch: Examples) -> Tensor:
        texts = batch.documents
        queries, documents = self._by_parts(batch.inputs, "query"), self._by_parts(texts, "document")
        losses = self.ranking_losses(queries, documents, texts, batch)
        if self.distill:
            queries_stay = cosine_similarity(queries, self.embedded_before(batch.inputs, "query"))
            documents_stay = cosine_similarity(documents, self.embedded_before(texts, "document"))  # negatives too
            losses = losses + self.distill * (2 - queries_stay - documents_stay.mean())
        return losses

    def embedded_before(self, texts: Sequence[Input], role: Role) -> Tensor:
        """(n, width) as the model before this domain embeds them; computed once, then from the feature store."""
        return self.before.embed(texts, role)

    def end_task(self, task: Task) -> None:
        queries = list(dict.fromkeys(task.train.inputs))
        then, now = self.embedded_before(queries, "query"), self.embed(queries, "query")
        if task.index == 0:  # the index of the untouched encoder may be searched too, which an insertion changes
            with self.before.backbone.pretrained():
                self._moved(self.embedded_before(queries, "query"), then)
        self._moved(then, now)

    def _moved(self, then: Tensor, now: Tensor) -> None:
        """Record that the model before, as it is switched now, had the embeddings `then` (n, width) of queries, and
        that they have moved to `now`."""
        similarity = self.backbone.similarity
        moved = comparable(now, similarity) - comparable(then, similarity)
        self.drift.record(self.before.document_space(), moved.mean(0))

    def reaches(self, space: str) -> bool:
        return super().reaches(space) or (self.compensate and self.drift.since(space) is not None)

    def queries_for(self, queries: Sequence[Input], space: str) -> Tensor:
        embedded = comparable(self.embed(queries, "query"), self.backbone.similarity)
        moved = self.drift.since(space) if self.compensate and space != self.document_space() else None
        return embedded if moved is None else embedded - moved
