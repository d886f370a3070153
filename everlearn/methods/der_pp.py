"""DER++: old examples are replayed with their labels and with the scores they once got (Buzzega et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.der import DER
from everlearn.methods.er import Replayed
from everlearn.settings import Strength
from everlearn.streams.stream import Examples


class DERpp(DER):
    """Dark Experience for General Continual Learning: a Strong, Simple Baseline. Buzzega, Boschini, Porrello, Abati &
    Calderara, NeurIPS 2020, https://arxiv.org/abs/2004.07211

    `der`, and in every step beta times the cross-entropy of a second draw from the memory, which does not depend on the
    first. The cross-entropy is over all classes: it also teaches the scores that old examples get for classes learned
    after them, which `der` leaves free. The departures are those of `der`.

    Args:
        backbone: a pre-trained encoder.
        alpha: weight of the kept scores; 0 leaves them out.
        beta: weight of the cross-entropy of old examples; 0 leaves it out.
        settings: those of `er`.

    Relations: with alpha=0 and beta=1 it is `er`; with beta=0 it is `der`; with both 0 it is `finetune`.

    >>> from everlearn import backbones
    >>> method = DERpp(backbones.load("tiny"), beta=1.0)
    >>> method.alpha, method.beta
    (0.3, 1.0)
    """

    tags = Tags(family="replay", trains="backbone")

    def __init__(self, backbone: Backbone, *, alpha: Strength = 0.3, beta: Strength = 0.5, **settings: Any) -> None:
        super().__init__(backbone, alpha=alpha, **settings)
        self.beta = beta

    def replays(self, batch: Examples) -> Iterator[Replayed]:
        yield from super().replays(batch)
        yield from self.drawn(batch, self.losses, self.beta)
