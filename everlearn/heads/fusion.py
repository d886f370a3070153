"""Fusion: projections of every task, and one attention over an image, the texts and the prototypes of classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, normalize


class Fusion(nn.Module):
    """Projections of every task, context prompts of every task, and one self-attention: what PROOF trains (Zhou et al.,
    2025, https://arxiv.org/abs/2305.19270).

    Args:
        width: of the features.
        prompts: context prompts of a task.

    >>> fusion = Fusion(8, prompts=2)
    >>> fusion.grow()
    >>> image, texts, prototypes = fusion(torch.ones(5, 8), torch.ones(3, 8), torch.ones(3, 8))
    >>> image.shape, texts.shape
    (torch.Size([5, 8]), torch.Size([5, 3, 8]))
    """

    def __init__(self, width: int, prompts: int) -> None:
        super().__init__()
        self.width, self.prompts = width, prompts
        self.images, self.texts, self.contexts = nn.ModuleList(), nn.ModuleList(), nn.ParameterList()
        self.attention = nn.MultiheadAttention(width, 1, dropout=0.1, batch_first=True)
        self.dropout, self.norm = nn.Dropout(0.1), nn.LayerNorm(width)

    def grow(self, *, texts_stay_trained: bool = False) -> None:
        """Freeze what belongs to earlier tasks, and add what belongs to a new one."""
        for old in (self.images, self.contexts, *(() if texts_stay_trained else (self.texts,))):
            old.requires_grad_(False)
        self.images.append(nn.Linear(self.width, self.width))
        self.texts.append(nn.Linear(self.width, self.width))
        self.contexts.append(nn.Parameter(torch.randn(self.prompts, self.width)))
        self.to(self.norm.weight.device)

    @property
    def context(self) -> Tensor:
        """(rows, width): the context prompts of all tasks."""
        return torch.cat(list(self.contexts))

    def project(self, features: Tensor, of: str) -> Tensor:
        """(n, width) of length 1: the sum of the projections of all tasks.

        Args:
            features: (n, width).
            of: images or texts.
        """
        projections: Any = getattr(self, of)
        return normalize(torch.stack([projection(features) for projection in projections]).sum(0))

    def forward(self, images: Tensor, texts: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each of n images is read together with all texts, prototypes and prompts.

        Args:
            images: (n, width). texts, prototypes: (classes, width).

        Returns:
            The images (n, width), and the texts and the prototypes as each image sees them, (n, classes, width).
        """
        classes = torch.cat([texts, prototypes])
        of_images, of_classes = self.attended(images, classes)
        images = self.norm(images + self.dropout(of_images))
        seen = self.norm(classes + self.dropout(of_classes))
        return images, seen[:, : len(texts)], seen[:, len(texts) :]

    def attended(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """What the self-attention over an image, all texts and prototypes, and the prompts gives for each of n images.

        The sequences differ in their image alone. So what the other tokens take from each other is computed once for
        all images; an image changes only the share that it has itself.

        Args:
            images: (n, width). classes: (m, width) texts and prototypes.

        Returns:
            For the images (n, width), and for the texts and prototypes of each image (n, m, width).
        """
        n, m, layer = len(images), len(classes), self.attention
        tokens = torch.cat([images, classes, self.context])
        queries, keys, values = linear(tokens, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=1)
        queries = queries / self.width**0.5

        def dropped(shares: Tensor) -> Tensor:
            return dropout(shares, layer.dropout, self.training)

        own = (queries[:n] * keys[:n]).sum(1, keepdim=True)
        shares = dropped(torch.cat([own, queries[:n] @ keys[n:].T], dim=1).softmax(1))
        of_images = shares[:, :1] * values[:n] + shares[:, 1:] @ values[n:]
        among = queries[n : n + m] @ keys[n:].T
        of_others = linear(dropped(among.softmax(1)) @ values[n:], layer.out_proj.weight)
        share = (keys[:n] @ queries[n : n + m].T - among.logsumexp(1)).sigmoid()  # (n, m), of its image
        of_image = linear(values[:n], layer.out_proj.weight)[:, None]
        of_classes = (1 - share)[..., None] * of_others + dropped(share)[..., None] * of_image
        return layer.out_proj(of_images), of_classes + layer.out_proj.bias
