"""Interpolation: the weights before a task and after it are averaged (Wortsman et al., 2022; Xiao et al., 2024)."""

from __future__ import annotations

from typing import Any, Literal

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.memory.before import Before
from everlearn.memory.memory import Memory
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.metrics.retrieval import comparable
from everlearn.settings import Natural, Share
from everlearn.streams.stream import Examples, Task

WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""The weights of the new model that are tried."""


class Interpolate(Finetune):
    """Robust Fine-Tuning of Zero-Shot Models. Wortsman, Ilharco, Kim et al., CVPR 2022,
    https://arxiv.org/abs/2109.01903; for retrievers, LM-Cocktail. Xiao, Liu, Zhang & Xing, ACL Findings 2024,
    https://arxiv.org/abs/2311.13534

    After each domain every trained weight becomes w · new + (1 - w) · old, where old is its value before the domain.

    With `weight="auto"`, w is the one of `WEIGHTS` with the highest mean reciprocal rank on held-out pairs: half of
    it on the validation pairs of the domain, half on the kept ones of the domains before.

    Args:
        backbone: a pre-trained encoder.
        weight: w, or "auto", which needs a stream with validation pairs.
        kept: validation pairs of earlier domains that are kept for "auto". The other settings are those of `finetune`.

    Raises:
        EverlearnError: when a domain ends, "auto" and no validation pairs.

    Relations: with weight 1 it is `finetune`.

    >>> from everlearn import backbones
    >>> Interpolate(backbones.load("tiny"), weight=0.5, epochs=1).weight
    0.5
    """

    tags = Tags(family="regularisation", trains="backbone", goals=("ranking",), inputs=("text",))

    def __init__(
        self, backbone: Backbone, *, weight: Share | Literal["auto"] = 0.7, kept: Natural = 500, **settings: Any
    ) -> None:
        super().__init__(backbone, **settings)
        self.weight = weight
        self.before, self.held_out = Before(), Memory(kept, seed=self.seed)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.before.keep(self.trained())

    def end_task(self, task: Task) -> None:
        after = {name: parameter.detach().clone() for name, parameter in self.trained().items()}
        weight = self._chosen(task, after) if self.weight == "auto" else self.weight
        self._mix(after, weight)
        self.before.clear()
        if len(task.validation):
            self.held_out.add(task.validation)

    def _chosen(self, task: Task, after: dict[str, torch.Tensor]) -> float:
        if not len(task.validation):
            raise EverlearnError(f"method.weight: auto needs validation pairs, and '{task.name}' has none: give "
                                 "--stream.validation 0.1, or a weight")  # fmt: skip
        parts = [task.validation, *([self.held_out.examples()] if len(self.held_out) else [])]
        scores = {}
        for weight in WEIGHTS:
            self._mix(after, weight)
            scores[weight] = sum(self._mean_reciprocal_rank(part) for part in parts) / len(parts)
        return max(scores, key=scores.__getitem__)

    @torch.no_grad()
    def _mix(self, after: dict[str, torch.Tensor], weight: float) -> None:
        before = self.before.weights()
        for name, parameter in self.trained().items():
            parameter.copy_(torch.lerp(before[name], after[name], weight))

    @torch.no_grad()
    def _mean_reciprocal_rank(self, pairs: Examples) -> float:
        """Of each query's document among the documents of all these pairs. One with an equal score ranks before it, or
        weights that give all documents the same embedding, or none that is finite, would have the best mean."""
        assert pairs.positives is not None
        texts = list(dict.fromkeys(pairs.positives))
        row = {text: number for number, text in enumerate(texts)}
        similarity = self.backbone.similarity
        queries, documents = self.embed(pairs.inputs, "query"), self.embed(texts, "document")
        scores = comparable(queries, similarity) @ comparable(documents, similarity).T
        right = torch.tensor([row[text] for text in pairs.positives], device=scores.device)
        ranks = len(texts) - (scores < scores.gather(1, right[:, None])).sum(1)
        return float((1 / ranks).mean())
