"""Side by side: several encoders read each input, and their features are joined."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.backbone import Backbone, Hidden
from everlearn.backbones.several import Several
from everlearn.errors import EverlearnError
from everlearn.peft.delta import Delta
from everlearn.streams.inputs import Input


class SideBySide(Several):
    """The features of all its encoders, one after another, for methods that learn from features.

    Each encoder's features are normalised to length 1 first. Without that the encoder with the longest features would
    decide alone, in cosines as in ridge regression: those of a sentence encoder have length 1, those of a ViT some 30.
    Each encoder stores its features under its own identity, so those that another run has stored are found again.

    It has no sites, because an insertion is made for one encoder, and no states of a last layer.

    Args:
        encoders: two or more that read inputs of the same kind.

    Raises:
        EverlearnError: no kind of input is read by all of them; or a site or the last layer is asked for.

    >>> from everlearn import backbones
    >>> both = SideBySide([backbones.load("tiny"), backbones.load("tiny@layers=2")])
    >>> features = both.encode(["a cup of tea"])
    >>> both.name, tuple(features.shape), round(float(features.norm() ** 2), 4)
    ('tiny+tiny@layers=2', (1, 96), 2.0)
    """

    def __init__(self, encoders: Sequence[Backbone]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(encoders)
        self.name = "+".join(encoder.name for encoder in encoders)
        self.reads = tuple(kind for kind in encoders[0].reads if all(kind in other.reads for other in encoders))
        if not self.reads:
            told = ", ".join(f"'{encoder.name}' reads {' and '.join(encoder.reads)}" for encoder in encoders)
            raise EverlearnError(f"backbone '{self.name}': {told}: join encoders that read the same kind of input")
        self.width = sum(encoder.width for encoder in encoders)
        self.precision = " and ".join(dict.fromkeys(encoder.precision for encoder in encoders))  # for a report
        self.settings = {"side by side": [encoder.settings for encoder in encoders]}
        self.eval()

    @property
    def _parts(self) -> list[Backbone]:
        """What each input goes to; one of them may be a pair of two encoders, of which only one reads the input."""
        return [cast(Backbone, part) for part in self.parts]

    def encoders(self) -> list[Backbone]:
        return [encoder for part in self._parts for encoder in part.encoders()]

    # -- features ------------------------------------------------------------------------------
    def read(self, inputs: Sequence[Input]) -> torch.Tensor:
        return self._joined(lambda encoder: encoder(inputs))

    def encode(self, inputs: Sequence[Input]) -> torch.Tensor:
        return self._joined(lambda encoder: encoder.encode(inputs))

    def _joined(self, features: Callable[[Backbone], torch.Tensor]) -> torch.Tensor:
        return torch.cat([F.normalize(features(part), dim=1) for part in self._parts], dim=1)

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        return [max(each) for each in zip(*(part.lengths(inputs) for part in self._parts), strict=True)]

    @contextmanager
    def inference(self) -> Iterator[None]:
        with ExitStack() as stack:
            for encoder in self.encoders():
                stack.enter_context(encoder.inference())
            yield

    def requires_grad_(self, requires_grad: bool = True) -> SideBySide:
        for encoder in self.encoders():  # each is asked itself: it may not be loaded yet
            encoder.requires_grad_(requires_grad)
        return self

    # -- what it is ----------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        return self.encoders()[0].device

    @property
    def active(self) -> list[Delta]:
        return [delta for encoder in self.encoders() for delta in encoder.active]

    def identity(self) -> str:
        joined = " ".join(["side by side", *(encoder.identity() for encoder in self.encoders())])
        return hashlib.sha256(joined.encode()).hexdigest()[:32]

    # -- what only one encoder has -------------------------------------------------------------
    def _refuse(self, *args: Any) -> NoReturn:
        """Not here: each encoder has its own."""
        raise EverlearnError(f"backbone '{self.name}' joins the features of {len(self.parts)} encoders, and the method "
                             "needs the inside of one: name one encoder with --backbone, or take a method that learns "
                             "from features, such as logistic, lda, klda or ranpac")  # fmt: skip

    depth = tokens = hidden_width = property(_refuse)  # type: ignore[assignment]
    block = blocks_of = last_norm = prepare = mask = pool = take_layers = _refuse  # type: ignore[assignment]

    def hidden(self, prepared: Any) -> Hidden:
        self._refuse()
