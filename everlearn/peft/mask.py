"""A binary mask on the weight of a layer: learned through real numbers, kept as one bit a weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.peft.weight import Reweighted
from everlearn.state import Stateful, check_saved


class Mask(Reweighted, Stateful):
    """The weight of the layer times a mask of zeros and ones. While it is learned, a weight has a score, and its mask
    is 1 where the score exceeds the threshold; the gradient of the mask is taken for that of the score, as if there
    were no threshold. `settle` keeps the bits and drops the scores.

    Args:
        shape: of the weight.
        score: the first value of every score.
        threshold: above which a weight is used.

    >>> from everlearn.peft.delta import Site
    >>> layer, mask = nn.Linear(4, 3), Mask((3, 4), score=0.01, threshold=0.005)
    >>> before, _ = layer(torch.ones(1, 4)), mask.attach(Site("layer", layer, layer, 4, 3))
    >>> mask.settle()
    >>> torch.equal(layer(torch.ones(1, 4)), before), mask.stored_bytes()
    (True, 2)
    """

    bits: Tensor

    def __init__(self, shape: tuple[int, ...], *, score: float, threshold: float) -> None:
        super().__init__()
        self.shape, self.threshold = tuple(shape), threshold
        self.scores = nn.Parameter(torch.full(self.shape, score))
        self.register_buffer("bits", torch.empty(0, dtype=torch.uint8))

    def mask(self) -> Tensor:
        """Zeros and ones, of the same shape as the weight."""
        if len(self.bits):
            return unpacked(self.bits, math.prod(self.shape)).view(self.shape)
        scores = self.scores.detach()
        hard = torch.gt(scores, self.threshold, out=torch.empty_like(scores))  # as numbers at once, which is faster
        return hard + (self.scores - scores)  # the second term is zero, and carries the gradient

    def weights(self) -> dict[str, Tensor]:
        assert self.site is not None and self.site.weight is not None
        return {"weight": self.site.weight * self.mask()}

    def settle(self) -> None:
        """Keep the mask as it is now, one bit a weight, and learn no further. A second time changes nothing."""
        if len(self.bits):
            return
        self.bits = packed((self.scores > self.threshold).flatten())
        self._drop_scores()

    def _drop_scores(self) -> None:
        self.scores = nn.Parameter(self.scores.new_empty(0), requires_grad=False)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """There are scores of the shape of the weight, or a bit for each weight, and not both."""
        is_settled = saved["bits"].numel() > 0
        check_saved("scores", saved["scores"], self.scores, (0,) if is_settled else self.shape)
        check_saved("bits", saved["bits"], self.bits, (-(-math.prod(self.shape) // 8),) if is_settled else (0,))
        super().check_saved({name: tensor for name, tensor in saved.items() if name not in ("scores", "bits")})

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "scores")
        if saved is not None and not saved.numel():
            self._drop_scores()
        super()._load_from_state_dict(state_dict, prefix, *rest)


def packed(mask: Tensor) -> Tensor:
    """Eight values of a Boolean mask (n,) in each byte, the first in the lowest bit.

    >>> packed(torch.tensor([True, False, True])).tolist()
    [5]
    """
    filled = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
    return (filled << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, size: int) -> Tensor:
    """The Boolean mask (size,) that `packed` was given.

    >>> unpacked(torch.tensor([5], dtype=torch.uint8), 3).tolist()
    [True, False, True]
    """
    return ((bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1).flatten()[:size].bool()
