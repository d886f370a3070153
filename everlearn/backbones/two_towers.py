"""Two towers: two encoders side by side, each with weights, sites and an identity of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from everlearn.backbones.backbone import Backbone, Block, Hidden
from everlearn.backbones.several import Several
from everlearn.errors import EverlearnError
from everlearn.peft.delta import Delta, Site
from everlearn.streams.inputs import Input, kind


class TwoTowers(Several):
    """An input goes to the tower that reads its kind. The features of each tower are stored under the tower's own
    identity, so training one tower leaves those of the other in the feature store.

    The sites are those of the first tower, which the examples go to: what a method inserts, it inserts there.

    Args:
        towers: the encoders by name, the one that the examples go to first; `towers["image"].block(0)` is a site.

    Raises:
        EverlearnError: their features differ in size, or in how they are compared.

    >>> from everlearn import backbones
    >>> both = TwoTowers(image=backbones.load("tiny"), text=backbones.load("tiny"))
    >>> both.encode(["a cat"]).shape, len(both.encoders())
    (torch.Size([1, 32]), 2)
    """

    def __init__(self, **towers: Backbone) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.name = " and ".join(tower.name for tower in towers.values())
        self.reads = tuple(dict.fromkeys(kind for tower in towers.values() for kind in tower.reads))
        widths = {tower.width for tower in towers.values()}
        if len(widths) > 1:
            raise EverlearnError(f"two towers need features of one size, but {self.name} have {sorted(widths)}")
        similarities = {tower.similarity for tower in towers.values()}
        if len(similarities) > 1:
            raise EverlearnError(f"two towers need features that are compared in one way, but those of {self.name} are "
                                 f"compared by {' and '.join(sorted(similarities))}")  # fmt: skip
        self.width, self.similarity = widths.pop(), similarities.pop()
        self.settings = {name: tower.settings for name, tower in towers.items()}

    def tower(self, inputs: Sequence[Input]) -> Backbone:
        """The tower that reads these inputs."""
        towers = [cast(Backbone, tower) for tower in self.towers.values()]
        return next((tower for tower in towers if inputs and kind(inputs[0]) in tower.reads), towers[0])

    def read(self, inputs: Sequence[Input]) -> torch.Tensor:
        return self.tower(inputs)(inputs)

    def encode(self, inputs: Sequence[Input]) -> torch.Tensor:
        return self.tower(inputs).encode(inputs)

    def infer(
        self, inputs: Sequence[Input], compute: Callable[[list[Input], list[int]], torch.Tensor] | None = None,
        batch_size: int = 64,
    ) -> torch.Tensor:  # fmt: skip
        return self.tower(inputs).infer(inputs, compute, batch_size)

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        return self.tower(inputs).lengths(inputs)

    def take_layers(self, layers: int) -> None:
        if layers != 1:
            raise EverlearnError(f"backbone '{self.name}' compares the features of two encoders, whose last layers "
                                 "were trained for that: leave @layers= out, or name one encoder alone")  # fmt: skip

    # -- the first tower ---------------------------------------------------------------------------
    @property
    def first(self) -> Backbone:
        return cast(Backbone, next(iter(self.towers.values())))

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.first.depth

    @property
    def hidden_width(self) -> int:
        return self.first.hidden_width

    @property
    def tokens(self) -> Site:
        return self.first.tokens

    def block(self, index: int) -> Block:
        return self.first.block(index)

    def blocks_of(self) -> Sequence[nn.Module]:
        return self.first.blocks_of()

    def last_norm(self) -> nn.Module | None:
        return self.first.last_norm()

    def prepare(self, inputs: Sequence[Input]) -> Any:
        return self.first.prepare(inputs)

    def mask(self, prepared: Any) -> torch.Tensor:
        return self.first.mask(prepared)

    def hidden(self, prepared: Any) -> Hidden:
        return self.first.hidden(prepared)

    def pool(self, hidden: Hidden) -> torch.Tensor:
        return self.first.pool(hidden)

    def attach(self, delta: Delta, site: Site) -> Delta:
        return self.first.attach(delta, site)

    def detach(self, delta: Delta) -> None:
        self.first.detach(delta)

    # -- all of them -------------------------------------------------------------------------------
    def encoders(self) -> list[Backbone]:
        return [encoder for tower in self.towers.values() for encoder in cast(Backbone, tower).encoders()]

    def identity(self) -> str:
        joined = " ".join(encoder.identity() for encoder in self.encoders())
        return hashlib.sha256(joined.encode()).hexdigest()[:32]
