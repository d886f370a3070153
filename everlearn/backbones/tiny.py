"""A very small transformer with seeded random weights, for tests and for images when there are no weights.

It reads texts (words are hashed into a vocabulary) and images (4x4 patches of a 16x16 grey image). It needs
no download and no other library, and it has every site that large backbones have.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.backbone import Backbone, Block, Hidden
from everlearn.backbones.discover import find_block
from everlearn.peft.delta import Site
from everlearn.streams.images import decode
from everlearn.streams.inputs import Input, kind

VOCABULARY, WORDS, PATCH, SIDE = 512, 32, 4, 16


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        query, key, value = (
            layer(x).view(n, -1, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :].bool())
        return self.dense(mixed.transpose(1, 2).reshape(n, tokens, width))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class TinyBackbone(Backbone):
    """A two-block transformer of width 32 with seeded random weights, for texts and images.

    >>> tuple(TinyBackbone()(["hello world", "goodbye"]).shape)
    (2, 32)
    """

    name = "tiny"
    reads = ("text", "image")

    def __init__(self, *, width: int = 32, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        self.settings = {"words": WORDS, "vocabulary": VOCABULARY, "side": SIDE, "patch": PATCH, "pooling": "mean"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(VOCABULARY, width)
            self.patches = nn.Linear(PATCH * PATCH, width)
            self.positions = nn.Parameter(0.5 * torch.randn(1 + (SIDE // PATCH) ** 2, width))
            self.cls = nn.Parameter(torch.randn(width))
            self.embedded = nn.Identity()
            self.blocks = nn.ModuleList(_Block(width, 4) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
        self.requires_grad_(False).eval()

    def prepare(self, inputs: Sequence[Input]) -> dict[str, Any]:
        if kind(inputs[0]) == "text":
            rows = [[zlib.crc32(word.encode()) % VOCABULARY for word in str(x).split()[:WORDS]] for x in inputs]
            length = max(1, *map(len, rows))
            ids = torch.tensor([row + [-1] * (length - len(row)) for row in rows])
            return {"ids": ids.to(self.device)}
        return {"pixels": torch.stack([_pixels(item) for item in inputs]).to(self.device)}

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        patches = (SIDE // PATCH) ** 2
        return [1 + (min(len(item.split()), WORDS) if isinstance(item, str) else patches) for item in inputs]

    def mask(self, prepared: dict[str, Any]) -> torch.Tensor:
        known = prepared["ids"] >= 0 if "ids" in prepared else torch.ones_like(prepared["pixels"][:, :, 0])
        return F.pad(known.long(), (1, 0), value=1)  # the CLS token is the first

    def hidden(self, prepared: dict[str, Any]) -> Hidden:
        if "ids" in prepared:
            x = self.embedding(prepared["ids"].clamp(min=0))
        else:
            x = self.patches(prepared["pixels"]) + self.positions[1:]
        # x.shape[0], because len(x) is a plain number, and an exported file would read that many inputs only.
        x = torch.cat([(self.cls + self.positions[0]).expand(x.shape[0], 1, -1), x], dim=1)
        added = sum(delta.added_tokens for delta in self.active)
        mask = F.pad(self.mask(prepared), (0, added), value=1)
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x, mask)
        return Hidden(self.norm(x), mask, added)

    def pool(self, hidden: Hidden) -> torch.Tensor:
        length = hidden.states.shape[1] - hidden.prompts
        weights = hidden.mask[:, :length, None].to(hidden.states.dtype)
        return self.after((hidden.states[:, :length] * weights).sum(1) / weights.sum(1))

    @property
    def tokens(self) -> Site:
        return Site("tokens", self.embedded, self.embedded, self.hidden_width, self.hidden_width)

    @property
    def words(self) -> Site:
        return Site("words", self.embedding, self.embedding, self.hidden_width, self.hidden_width)

    def placeholders(self, length: int) -> tuple[str, int]:
        return " ".join(["x"] * length), 0  # the CLS token joins later

    def block(self, index: int) -> Block:
        return find_block(self.blocks[index], index, self.hidden_width)

    def blocks_of(self) -> Sequence[nn.Module]:
        return self.blocks  # type: ignore[return-value]

    def last_norm(self) -> nn.Module:
        return self.norm


def _pixels(item: Input) -> torch.Tensor:
    """An encoded image as an array (patches, pixels per patch) of grey values in [-1, 1]."""
    grey = np.asarray(decode(item).convert("L").resize((SIDE, SIDE), 2), dtype=np.float32)  # 2 is bilinear
    across = SIDE // PATCH
    patches = grey.reshape(across, PATCH, across, PATCH).transpose(0, 2, 1, 3).reshape(across**2, PATCH**2)
    return torch.from_numpy(patches) / 127.5 - 1
