"""The model as it was before a task: its encoder, by which texts are embedded, or a teacher for the new model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from everlearn.backbones.backbone import Role
from everlearn.methods.finetune import Finetune
from everlearn.streams.inputs import Input


class FrozenEncoder(nn.Module):
    """A frozen copy of the encoder and insertion of a method, as they are now, for the time in which a task is learned.

    >>> from everlearn import backbones
    >>> encoder = FrozenEncoder(Finetune(backbones.load("tiny"), train="lora"))
    >>> encoder.backbone.is_frozen, encoder.embed(["tea please"], "query").shape
    (True, torch.Size([1, 32]))
    """

    is_helper = True
    """Dropped when the task is learned: `Method.drop_helpers`."""

    def __init__(self, method: Finetune) -> None:
        super().__init__()
        self.side = method.side
        # Together: the insertion is attached to the encoder.
        self.backbone, self.deltas = copy.deepcopy((method.backbone, method.deltas))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[Input], role: Role | None = None) -> Tensor:
        """(n, width) as the method embedded texts of this role; computed once, then from the feature store."""
        with self._reading(role):
            return self.backbone.encode(texts)

    def document_space(self) -> str:
        """A hash of all that determines the embedding of a document, as the method gave it."""
        with self._reading("document"):
            return self.backbone.identity()

    @contextmanager
    def _reading(self, role: Role | None) -> Iterator[None]:
        """Inside the block, texts are read as the method reads those of this role."""
        is_untouched = role == "document" and self.side == "query"
        with self.backbone.pretrained() if is_untouched else nullcontext(), self.backbone.reading(role):
            yield


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
