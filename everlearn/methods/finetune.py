"""Sequential fine-tuning: every weight follows the newest task (the negative control)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from everlearn.backbones.backbone import Backbone, Role
from everlearn.errors import EverlearnError
from everlearn.method import Method, Tags
from everlearn.peft.unified import rate_for, train_part
from everlearn.settings import Count, Rate, Seed
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Task


class Finetune(Method):
    """Train the model on each task as it comes, with nothing against forgetting.

    McCloskey & Cohen (1989), https://doi.org/10.1016/S0079-7421(08)60536-8, called what follows
    catastrophic interference. Every method has to beat it.

    Args:
        backbone: a pre-trained encoder.
        train: what is trained besides the head: "full" (every weight), "head" (nothing else), or an
            insertion into the frozen encoder, such as "lora", "houlsby" or "lora(size=4)".
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of what is trained besides the head (AdamW); by default 5e-5 for every weight of
            the encoder and 1e-3 for an insertion.
        head_lr: learning rate of the head, which is new, for features of norm 1; it is divided by their norm.
        seed: of the insertion, the order of examples and the new rows of the head.
        side: where documents are ranked, whose embeddings change: of "both" queries and documents, or of the "query"
            alone. Then documents are read by the encoder without the insertion, and their index never changes.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: side="query", and every weight is trained, or the goal is classes.

    Relations: `er`, `gem`, `ewc` and `lwf` are this method with one defence each; `joint` is its bound; `lora`,
    `vpt` and `sequential` are its settings with an insertion.

    >>> from everlearn import backbones
    >>> Finetune(backbones.load("tiny"), epochs=1).backbone.is_frozen
    False
    """

    tags = Tags(family="baseline", trains="backbone", goals=("classes", "ranking"))

    def __init__(
        self, backbone: Backbone, *, train: str = "full", epochs: Count = 5, batch_size: Count = 32,
        lr: Rate | None = None, head_lr: Rate = 0.1, seed: Seed = 0, side: Literal["both", "query"] = "both",
        **settings: Any,
    ) -> None:  # fmt: skip
        lr = rate_for(train, lr)
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        if side == "query" and train in ("full", "head"):
            raise EverlearnError(f"method.side: query needs an insertion, and train={train} has none: give "
                                 "--method.train lora")  # fmt: skip
        self.head_lr, self.side = head_lr, side
        self.deltas = train_part(backbone, train, seed=seed)

    def begin_task(self, task: Task) -> None:
        if self.side == "query" and task.goal == "classes":
            raise EverlearnError("method.side: query is for documents that are ranked, and this stream has classes: "
                                 "leave it out")  # fmt: skip
        super().begin_task(task)

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        return self._untouched(inputs) if self._is_untouched(role) else super().embed(inputs, role)

    def document_space(self) -> str:
        if self.side == "both":
            return super().document_space()
        with self.backbone.pretrained():
            return super().document_space()

    def _by_parts(self, texts: Sequence[Input], role: Role) -> Tensor:
        return self._untouched(texts) if self._is_untouched(role) else super()._by_parts(texts, role)

    def _is_untouched(self, role: Role | None) -> bool:
        return role == "document" and self.side == "query"

    def _untouched(self, documents: Sequence[Input]) -> Tensor:
        """(n, width) of the pre-trained encoder, from the feature store."""
        with self.backbone.pretrained(), self.backbone.reading("document"):
            return self.backbone.encode(documents)
