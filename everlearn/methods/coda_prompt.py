"""CODA-Prompt: a prompt is a weighted sum of components (Smith et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import LambdaLR

from everlearn.backbones.backbone import Backbone
from everlearn.heads.linear import append_rows
from everlearn.losses import sparsemax
from everlearn.method import Tags
from everlearn.methods.prompted import Prompted
from everlearn.peft.prefix import KeysValues
from everlearn.settings import Count, EvenSize, Rate, Seed, Size, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class CODAPrompt(Prompted):
    """CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual
    Learning. Smith, Karlinsky, Gutta et al., CVPR 2023, https://arxiv.org/abs/2211.13218

    Component m has the weight alpha_m = cos(q ∘ A_m, K_m), with q the frozen feature. The prompt of a block
    is sum alpha_m P_m; its first half joins the keys of attention and its second half the values. Every task
    adds components that are orthogonal to all before (Gram-Schmidt), and trains only these.

    Args:
        backbone: a pre-trained encoder, frozen.
        components: components per task (the paper: 100 over all tasks).
        length: tokens of a prompt, half keys and half values; an even number.
        blocks: how many blocks, from the first, get a prompt.
        attention: "dense" is the paper's; "topk" keeps the `kept` largest weights of each example; "sparsemax"
            projects √width times the weights onto the simplex, which leaves most of them at zero.
        kept: weights that "topk" keeps.
        orthogonality: mu of the paper, the weight of mean((B Bᵀ - I)²) for P, K and A; the released code leaves it
            out, because components start orthogonal.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the components (Adam; it falls as in the released code, see `quarter_cosine`).
        head_lr: learning rate of the head, for features of norm 1; it is divided by their norm. With None it is `lr`.
        seed: of the components, the head and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Relations: `l2p` and `dual_prompt` choose prompts; this one takes a weighted sum of all.

    >>> from everlearn import backbones
    >>> CODAPrompt(backbones.load("tiny"), components=4, blocks=5).blocks
    2
    """

    tags = Tags(family="prompt", trains="peft", needs=("last layer",))
    Optimizer = torch.optim.Adam
    reported = "components of the largest weights"

    def __init__(
        self, backbone: Backbone, *, components: Size = 10, length: EvenSize = 8, blocks: Count = 5,
        attention: Literal["dense", "topk", "sparsemax"] = "dense", kept: Count = 5, orthogonality: Strength = 0.1,
        epochs: Count = 20, batch_size: Count = 128, lr: Rate = 0.001, head_lr: Rate | None = 0.05,
        seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.components, self.attention, self.kept, self.orthogonality = components, attention, kept, orthogonality
        self.blocks, self.head_lr = min(blocks, backbone.depth), head_lr
        self.prompts = nn.Parameter(torch.empty(0, self.blocks, length, backbone.hidden_width))
        self.keys = nn.Parameter(torch.empty(0, self.blocks, backbone.width))
        self.focus = nn.Parameter(torch.empty(0, self.blocks, backbone.width))
        self.schedule = partial(quarter_cosine, epochs=epochs)
        self.inserted = nn.ModuleList(
            [backbone.attach(KeysValues(), backbone.block(index).heads) for index in range(self.blocks)]
        )

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.old = len(self.keys)
        self.prompts, self.keys, self.focus = (
            append_rows(p, orthogonal_rows(p.detach(), self.components)) for p in (self.prompts, self.keys, self.focus)
        )

    def weights(self, queries: Tensor) -> Tensor:
        """alpha (n, components, blocks) of queries (n, width)."""
        keys, focus = normalize(self._held(self.keys), dim=-1), self._held(self.focus)
        # q ∘ A is never built: (q ∘ A) · K = q · (A ∘ K), and its square length is q² · A².
        along = torch.einsum("nd,mbd->nmb", queries, focus * keys)
        alpha = along / torch.einsum("nd,mbd->nmb", queries.square(), focus.square()).clamp_min(1e-24).sqrt()
        if self.attention == "sparsemax":
            return sparsemax(alpha * queries.shape[1] ** 0.5, dim=1)  # cosines of random directions are 1/√d
        if self.attention == "topk" and alpha.shape[1] > self.kept:
            least = alpha.topk(self.kept, dim=1).values[:, -1:]
            return alpha.masked_fill(alpha < least, 0.0)
        return alpha

    def choose(self, queries: Tensor, learning: bool = False) -> Tensor:
        return queries  # every component takes part, weighted by the query

    def prompted(self, inputs: Sequence[Input], choice: Tensor) -> Tensor:
        """Features (n, width) with the prompts of each query."""
        prompts = torch.einsum("nmb,mbld->nbld", self.weights(choice), self._held(self.prompts))
        with ExitStack() as stack:
            for inserted, prompt in zip(self.inserted, prompts.unbind(1), strict=True):
                stack.enter_context(cast(KeysValues, inserted).given(*prompt.chunk(2, dim=1)))
            return self.backbone(inputs)

    def _held(self, parameter: Tensor) -> Tensor:
        """The components, those of earlier tasks without gradient."""
        return torch.cat([parameter[: self.old].detach(), parameter[self.old :]])

    def loss(self, batch: Examples) -> Tensor:
        loss = super().loss(batch)
        if self.orthogonality:
            parts = (self._held(p).transpose(0, 1).flatten(2) for p in (self.prompts, self.keys, self.focus))
            loss = loss + self.orthogonality * sum((_gram_error(part) for part in parts), torch.zeros(()))
        return loss

    def largest(self, inputs: Sequence[Input]) -> Tensor:
        """The components of each example's `kept` largest weights, (n, kept), for the report."""
        return self.weights(self.backbone.encode(inputs)).mean(2).topk(min(self.kept, len(self.keys))).indices

    def end_task(self, task: Task) -> None:
        self.chosen.record(self.largest(task.train.inputs), self.keys.flatten(1))

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        return {"own components": self.chosen.own(self.largest(inputs), task)}


def quarter_cosine(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> LambdaLR:
    """The schedule of the released code: the learning rate stays as it is for two epochs, and then falls
    along a quarter of a cosine, once per epoch. On an online stream the one pass has as many parts."""
    last = max(1, epochs - 1)
    return LambdaLR(
        optimizer, lambda step: math.cos(0.495 * math.pi * max(0, step * epochs // max(1, steps) - 1) / last)
    )


def orthogonal_rows(old: Tensor, count: int) -> Tensor:
    """`count` new rows beside `old` (rows, blocks, …): in each block of length 1 and orthogonal to all
    rows before, as long as the space has room; beyond that directions at random."""
    rows, size = old.flatten(2).double(), math.prod(old.shape[2:])
    made = torch.empty(count, old.shape[1], size, dtype=torch.float64, device=old.device)
    for block in range(old.shape[1]):
        spanned = torch.linalg.qr(rows[:, block].T)[0].T
        for index in range(count):
            row = torch.randn(size, dtype=torch.float64).to(rows.device)
            if len(spanned) < size:
                for _ in range(2):  # twice: once leaves rounding of the size of what was taken away
                    row = row - (spanned @ row) @ spanned
                spanned = torch.cat([spanned, normalize(row, dim=0)[None]])
            made[index, block] = normalize(row, dim=0)
    return made.reshape(count, *old.shape[1:]).to(old.dtype)


def _gram_error(rows: Tensor) -> Tensor:
    """mean((B Bᵀ - I)²) of (blocks, rows, size), summed over blocks."""
    gram = rows @ rows.transpose(1, 2)
    return (gram - torch.eye(gram.shape[1], device=gram.device)).square().mean((1, 2)).sum()
