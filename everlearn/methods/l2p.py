"""L2P: a pool of prompts, chosen for each example by its frozen feature (Wang et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from everlearn.backbones.backbone import Backbone
from everlearn.losses import cross_entropy
from everlearn.method import Method, Tags, seeded
from everlearn.peft.prompt import PromptTokens
from everlearn.streams.stream import Examples


class L2P(Method):
    """Learning to Prompt for Continual Learning. Wang, Zhang, Lee et al., CVPR 2022,
    https://arxiv.org/abs/2112.08654

    The feature of the un-prompted frozen encoder is the query. The `selected` nearest keys by cosine
    bring their prompts, which join the embedded sequence; the mean of their outputs is classified.
    The loss is cross-entropy over the task's classes plus a pull of the chosen keys to the query.
    Queries come from the feature store: one encoding an example in a whole run.

    Departs from the released code where that leaks: prompts are chosen for each example, never by a
    vote of the batch.

    Args:
        backbone: a pre-trained encoder, frozen.
        pool_size: prompts in the pool, M of the paper.
        length: tokens a prompt.
        selected: prompts an example, N of the paper.
        pull: weight of the keys' distance to the query, lambda of the paper.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate (Adam), of prompts, keys and head.
        seed: of the pool, the head and the order of examples.

    Relations: `simplecil` uses the query alone; `lora` changes the encoder for every example alike.

    >>> from everlearn import backbones
    >>> tuple(L2P(backbones.load("tiny"), pool_size=6, length=3).prompts.shape)
    (6, 3, 32)
    """

    tags = Tags(family="prompt", trains="peft")
    Optimizer = torch.optim.Adam
    clip = 1.0

    def __init__(
        self, backbone: Backbone, *, pool_size: int = 10, length: int = 5, selected: int = 5, pull: float = 0.5,
        epochs: int = 5, batch_size: int = 16, lr: float = 0.001875, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.selected, self.pull = selected, pull
        with seeded(seed):
            self.prompts = nn.Parameter(torch.empty(pool_size, length, backbone.width).uniform_(-1, 1))
            self.keys = nn.Parameter(torch.empty(pool_size, backbone.width).uniform_(-1, 1))
        self.inserted = PromptTokens()
        backbone.attach(self.inserted, backbone.tokens)

    def select(self, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen prompts (n, selected) and their keys' cosines to the query (n, selected)."""
        cosines = nn.functional.normalize(self.backbone.encode(inputs)) @ nn.functional.normalize(self.keys).T
        nearest = cosines.topk(self.selected, dim=1)
        return nearest.indices, nearest.values

    def prompted(self, inputs: Any, chosen: torch.Tensor) -> torch.Tensor:
        """The mean output of the prompt tokens (n, width)."""
        tokens = self.prompts[chosen].flatten(1, 2)
        with self.inserted.given(tokens):
            hidden = self.backbone.hidden(self.backbone.prepare(inputs))
        return hidden.states[:, -hidden.prompts :].mean(1)

    def loss(self, batch: Examples) -> torch.Tensor:
        chosen, cosines = self.select(batch.inputs)
        scores = self.head(self.prompted(batch.inputs, chosen))
        masked = cross_entropy(scores, self.labels(batch), classes=self.task.classes)
        return masked + self.pull * (1 - cosines).sum(1).mean()

    def embed(self, inputs: Any) -> torch.Tensor:
        chosen = self.select(inputs)[0]
        return self.backbone.infer(inputs, lambda batch, rows: self.prompted(batch, chosen[rows]))
