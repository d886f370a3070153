"""What is the same for every backbone that consists of several encoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from everlearn.backbones.backbone import Backbone, Role
from everlearn.peft.delta import only


class Several(Backbone):
    """A backbone of several encoders, each with weights, deltas and an identity of its own. Subclasses define
    `encoders`, and how the features of an input come from theirs."""

    @property
    def is_frozen(self) -> bool:
        return all(encoder.is_frozen for encoder in self.encoders())

    @contextmanager
    def reading(self, role: Role | None) -> Iterator[None]:
        with ExitStack() as stack:
            for encoder in self.encoders():
                stack.enter_context(encoder.reading(role))
            yield

    def pretrained(self) -> Any:
        return only([delta for encoder in self.encoders() for delta in encoder.attached], active=False)
