"""The model as it was before a task: its encoder, by which texts are embedded, or a teacher for the new model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from everlearn.methods.finetune import Finetune
from everlearn.streams.inputs import Input


class FrozenEncoder(nn.Module):
    """A frozen copy of the encoder and insertion of a method, as they are now.

    >>> from everlearn import backbones
    >>> FrozenEncoder(Finetune(backbones.load("tiny"), train="lora")).backbone.is_frozen
    True
    """

    def __init__(self, method: Finetune) -> None:
        super().__init__()
        # Together: the insertion is attached to the encoder.
        self.backbone, self.deltas = copy.deepcopy((method.backbone, method.deltas))
        self.requires_grad_(False).eval()


class Teacher(FrozenEncoder):
    """The same with the head: its features and scores are what the new model is held to.

    >>> from everlearn import backbones
    >>> method = Finetune(backbones.load("tiny"), train="lora")
    >>> Teacher(method).features(["tea please"], augmented=False).shape
    torch.Size([1, 32])
    """

    def __init__(self, method: Finetune) -> None:
        super().__init__(method)
        self.head = copy.deepcopy(method.head).requires_grad_(False).eval()

    @torch.no_grad()
    def features(self, inputs: Sequence[Input], augmented: bool) -> Tensor:
        """(n, width) features of n inputs: from the feature store, or computed where the inputs are random views, which
        do not come again."""
        return self.backbone.infer(inputs) if augmented else self.backbone.encode(inputs)

    @torch.no_grad()
    def scores(self, inputs: Sequence[Input], augmented: bool) -> Tensor:
        """(n, classes that it knows)."""
        return self.head(self.features(inputs, augmented))
