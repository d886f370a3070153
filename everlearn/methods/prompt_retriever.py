"""A prompt pool for dense retrieval: queries choose prompts, and the index of documents stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from everlearn.backbones.backbone import Backbone, Role
from everlearn.backbones.digests import digest
from everlearn.errors import EverlearnError
from everlearn.memory.selection import Selection
from everlearn.method import Method, Tags
from everlearn.peft.prompt import PromptTokens
from everlearn.seeds import seeded
from everlearn.settings import Count, Rate, Seed, Size, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class PromptRetriever(Method):
    """The prompt pool of Learning to Prompt (Wang, Zhang, Lee et al., CVPR 2022, https://arxiv.org/abs/2112.08654)
    for a dense retriever.

    The embedding of a query by the untouched frozen encoder chooses the prompts whose keys are nearest by the cosine.
    They join the tokens of the query, and the encoder pools the query's own tokens as ever. The loss is the ranking of
    the query's document among those of the batch, plus a pull of the chosen keys to the query, so that the keys learn.

    Documents are read by the untouched encoder. So an index that it has made stays right whatever is learned, and no
    document is ever encoded again. With `side="both"` documents choose prompts too, and every update makes the
    index stale.

    Args:
        backbone: a pre-trained text encoder, frozen.
        pool_size: prompts in the pool.
        length: tokens per prompt.
        selected: prompts per query; at most pool_size.
        pull: weight of the keys' distance to the query.
        spread: prompts start as normal numbers of this standard deviation.
        side: which texts get prompts, "query" or "both".
        epochs: passes over each domain.
        batch_size: pairs per step.
        lr: learning rate (AdamW without weight decay), of prompts and keys.
        seed: of the pool and the order of pairs.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: more prompts selected than there are.

    Relations: `l2p` classifies with such a pool.

    >>> from everlearn import backbones
    >>> tuple(PromptRetriever(backbones.load("tiny"), pool_size=6, length=3).prompts.shape)
    (6, 3, 32)
    """

    tags = Tags(family="prompt", trains="peft", goals=("ranking",), inputs=("text",), needs=("last layer",))
    clip = 1.0

    def __init__(
        self, backbone: Backbone, *, pool_size: Size = 100, length: Size = 20, selected: Size = 5,
        pull: Strength = 0.1, spread: Rate = 0.02, side: Literal["query", "both"] = "query", epochs: Count = 5,
        batch_size: Count = 32, lr: Rate = 1e-3, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        if selected > pool_size:
            raise EverlearnError(f"method.selected: {selected} prompts cannot be chosen from a pool of {pool_size}: "
                                 "give at most pool_size")  # fmt: skip
        self.selected, self.strength, self.side = selected, pull, side
        with seeded(seed):
            self.prompts = nn.Parameter(spread * torch.randn(pool_size, length, backbone.hidden_width))
            self.keys = nn.Parameter(torch.randn(pool_size, backbone.width))
        self.chosen = Selection()
        self.inserted = PromptTokens()
        backbone.attach(self.inserted, backbone.tokens)

    def param_groups(self) -> list[dict[str, Any]]:
        # Weight decay would shrink the prompts and keys that no query has chosen, step by step.
        return [{**group, "weight_decay": 0.0} for group in super().param_groups()]

    def untouched(self, texts: Sequence[Input], role: Role) -> Tensor:
        """(n, width) of the encoder without prompts, from the feature store."""
        with self.backbone.reading(role):
            return self.backbone.encode(texts)

    def choose(self, queries: Tensor) -> Tensor:
        """(n, selected): the prompts whose keys are most similar to the untouched embeddings (n, width)."""
        return self.cosines(queries).detach().topk(self.selected, dim=1).indices

    def cosines(self, queries: Tensor) -> Tensor:
        """(n, pool_size) of untouched embeddings and keys."""
        return normalize(queries) @ normalize(self.keys).T

    def prompted(self, texts: Sequence[Input], choice: Tensor, role: Role) -> Tensor:
        """(n, width): the encoder's own pooling of the texts' tokens, which have attended to the chosen prompts."""
        with self.inserted.given(self.prompts[choice].flatten(1, 2)), self.backbone.reading(role):
            return self.backbone.pool(self.backbone.hidden(self.backbone.prepare(texts)))

    def has_prompts(self, role: Role) -> bool:
        """Whether texts of this role get prompts."""
        return role == "query" or self.side == "both"

    def features(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        role = role or "query"
        untouched = self.untouched(inputs, role)
        return self.prompted(inputs, self.choose(untouched), role) if self.has_prompts(role) else untouched

    def losses(self, batch: Examples) -> Tensor:
        losses = super().losses(batch)
        asked = self.untouched(batch.inputs, "query")
        return losses + self.strength * (1 - self.cosines(asked).gather(1, self.choose(asked))).sum(1)

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        role = role or "query"
        untouched = self.untouched(inputs, role)
        if not self.has_prompts(role):
            return untouched
        choice = self.choose(untouched)
        return self.backbone.infer(inputs, lambda batch, rows: self.prompted(batch, choice[rows], role))

    def document_space(self) -> str:
        space = super().document_space()  # of the untouched encoder, since prompts are given only for a moment
        if self.side == "query":
            return space
        return sha256((space + digest(self.prompts) + digest(self.keys)).encode()).hexdigest()[:32]

    def end_task(self, task: Task) -> None:
        self.chosen.record(self.choose(self.untouched(task.train.inputs, "query")), self.keys)

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        return {"own prompts": self.chosen.own(self.choose(self.untouched(inputs, "query")), task)}

    def diagnostics(self) -> dict[str, Any]:
        return {"prompt selection": self.chosen.diagnostics()}
