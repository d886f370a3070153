"""The base class of all backbones: features, named sites, and an identity that says what computed the features."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.attention import PlainAttention
from everlearn.backbones.digests import Digests
from everlearn.backbones.identity import plain_state
from everlearn.batches import of_similar_length
from everlearn.errors import EverlearnError
from everlearn.features import ONE_AT_A_TIME, default_store
from everlearn.peft.delta import Delta, Site, only
from everlearn.streams.inputs import Input

Role = Literal["query", "document"]
"""What an input is where documents are ranked for a query."""


class Hidden(NamedTuple):
    """The output of the last layer: `states` (n, tokens, width) and `mask` (n, tokens), 1 for tokens, 0 for padding.

    If prompt tokens were appended, they are the last `prompts` columns.
    """

    states: torch.Tensor
    mask: torch.Tensor
    prompts: int


@dataclass(frozen=True)
class Block:
    """The sites of one transformer block.

    `attention` goes from the input of the attention layer to the output of its output projection. `heads` is the
    place where queries attend to keys and values. `operations` are all linear and normalisation layers.

    >>> from everlearn import backbones
    >>> block = backbones.load("tiny").block(0)
    >>> block.query.name, block.query.width, len(block.operations)
    ('block 0 query', 32, 8)
    """

    query: Site
    key: Site
    value: Site
    heads: Site
    attention: Site
    mlp: Site
    output: Site
    operations: tuple[Site, ...]


class Backbone(nn.Module):
    """A pre-trained encoder. It is frozen unless a method trains it.

    Subclasses define `prepare`, `mask`, `hidden`, `pool`, `tokens` and `block`, and set

    * `name`, as the user wrote it;
    * `reads`: the kinds of input that it reads, e.g. ``("text",)``;
    * `width`: the size of a feature;
    * `layers`: how many of the last layers give a feature, one after another; 1 unless `take_layers` was called;
    * `similarity`: how the features of queries and documents are compared, ``cosine`` or ``dot``;
    * `precision`: the precision of matrix products without gradients, ``float32`` or ``bfloat16``;
    * `training_precision`: the same with gradients. Weights, gradients and updates are always float32;
    * `settings`: everything else that determines the features (preprocessing, pooling), as plain JSON.

    Raises:
        EverlearnError: an input is of a kind that it does not read, or cannot be read.

    >>> from everlearn import backbones
    >>> tiny = backbones.load("tiny")
    >>> features = tiny.encode(["a cup of tea", "a sofa"])
    >>> tuple(features.shape), tiny.is_frozen
    ((2, 32), True)
    """

    name: str
    reads: tuple[str, ...]
    width: int
    depth: int
    layers = 1
    similarity = "cosine"
    precision = "float32"
    training_precision = "float32"
    settings: dict[str, Any]
    passed: ClassVar[int] = 0
    """How many examples have gone through an encoder in this process; an example counts once for each pass."""
    is_image_text = False
    """Whether it compares images with texts."""
    is_loaded = True
    """Whether its weights are in memory (see `remembered.py`)."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "hidden" in vars(cls):
            cls.hidden = _counted(cls.hidden)  # type: ignore[assignment, method-assign]

    def __init__(self) -> None:
        super().__init__()
        self.attached: list[Delta] = []
        self.after = nn.Sequential()  # what follows the pooling
        self._token_width: int | None = None  # where something after the pooling gives features another size
        self.origin: dict[str, str] = {}  # digests of the pre-trained tensors; empty until a method is built on it
        self._exact: dict[int, torch.Tensor] = {}  # in `inference`: the float32 weights, by parameter id
        self._digests = Digests()
        self._joint: list[Sequence[Input]] = []  # in `together`: what one pass reads,
        self._of_joint: list[torch.Tensor] = []  # and the features that it gave

    # -- defined by subclasses -----------------------------------------------------------------
    def prepare(self, inputs: Sequence[Input]) -> Any:
        """Convert raw inputs to the input of `hidden`: token ids or pixels. This is part of the backbone's identity."""
        raise NotImplementedError

    def mask(self, prepared: Any) -> torch.Tensor:
        """The mask of the embedded tokens without prompts, (n, tokens): 1 for tokens, 0 for padding."""
        raise NotImplementedError

    def hidden(self, prepared: Any) -> Hidden:
        """The output of the last layer."""
        raise NotImplementedError

    def pool(self, hidden: Hidden) -> torch.Tensor:
        """One feature per example, of shape (n, width)."""
        raise NotImplementedError

    @property
    def tokens(self) -> Site:
        """The site of the embedded sequence, before the first block."""
        raise NotImplementedError

    @property
    def words(self) -> Site:
        """The site of the embeddings of a text's tokens, before positions are added.

        Raises:
            EverlearnError: it reads no texts.
        """
        raise self._reads_no_texts()

    def placeholders(self, length: int) -> tuple[str, int]:
        """A text of `length` tokens in whose place vectors can be put, and the place of the first at `words`.

        Raises:
            EverlearnError: it reads no texts, or no text has this number of tokens.
        """
        raise self._reads_no_texts()

    def _reads_no_texts(self) -> EverlearnError:
        return EverlearnError(f"backbone '{self.name}' reads no texts, so no words can be replaced in them: give one "
                              "with a text encoder")  # fmt: skip

    def block(self, index: int) -> Block:
        """The sites of block `index`, counted from 0."""
        raise NotImplementedError

    def blocks_of(self) -> Sequence[nn.Module]:
        """The transformer blocks, first to last."""
        raise NotImplementedError

    def last_norm(self) -> nn.Module | None:
        """The normalisation between the last block and `hidden`, if there is one."""
        raise NotImplementedError

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        """The number of tokens of each input, by which batches are formed; 0 if it is not known."""
        return [0] * len(inputs)

    # -- used by methods -----------------------------------------------------------------------
    @property
    def hidden_width(self) -> int:
        """The size of a token's state, and so of prompts; a layer after the pooling can give features another size."""
        return self._token_width or self.width // self.layers

    def project(self, *layers: nn.Module, width: int) -> None:
        """Let these layers follow the pooling from now on; they give features (n, width).

        >>> from everlearn import backbones
        >>> tiny = backbones.load("tiny")
        >>> tiny.project(nn.Linear(32, 8), width=8)
        >>> tiny(["a cup of tea"]).shape, tiny.hidden_width
        (torch.Size([1, 8]), 32)
        """
        self._token_width = self.hidden_width
        self.after.extend(layers)
        self.after.requires_grad_(False).eval()
        self.width, self.settings["after"] = width, [str(layer) for layer in self.after]

    def class_features(
        self, names: Sequence[str], encode: Callable[[Sequence[Input]], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """(classes, width): what the encoder says of the names of classes, with which zero-shot scores compare.

        Args:
            encode: gives the features of texts; `encode` of the backbone by default.
        """
        return (encode or self.encode)([name.replace("_", " ") for name in names])

    def reading(self, role: Role | None) -> AbstractContextManager[None]:
        """Inside the `with` statement the inputs are queries or documents, which some encoders read after a prompt of
        their own; None for neither, as in classification."""
        return nullcontext()

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where its features are computed."""
        return next(self.parameters()).device

    @property
    def tokens_at_once(self) -> int:
        """How many tokens, padding included, are best computed together: on a CPU they should stay in its cache."""
        return 2048 if self.device.type == "cpu" else 32768

    def forward(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width) of the model in its current state, with gradients if anything is trained."""
        place = next((place for place, part in enumerate(self._joint) if part is inputs), None)
        if place is None or not torch.is_grad_enabled():
            return self.read(inputs)
        if not self._of_joint:
            features = self.read([item for part in self._joint for item in part])
            self._of_joint = list(features.split([len(part) for part in self._joint]))
        return self._of_joint[place]

    @contextmanager
    def together(self, *parts: Sequence[Input]) -> Iterator[None]:
        """Inside the `with` statement, where the weights must not change, one pass with gradients reads all parts: the
        first that `forward` is asked for. Passes apart take longer, because each computes gradients of all weights.

        >>> from everlearn import backbones
        >>> tiny, new, old = backbones.load("tiny"), ["a cup of tea"], ["a sofa", "a lamp"]
        >>> with tiny.together(new, old):
        ...     print(tiny(new).shape, tiny(old).shape)
        torch.Size([1, 32]) torch.Size([2, 32])
        """
        self._joint = list(parts)
        try:
            yield
        finally:
            self._joint, self._of_joint = [], []

    def read(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width) as of `forward`, from a pass of its own."""
        if self.layers == 1:
            return self.pool(self.hidden(self.prepare(inputs)))
        with outputs(self.blocks_of()[-self.layers : -1]) as states:
            hidden = self.hidden(self.prepare(inputs))
        norm = self.last_norm() or nn.Identity()
        pooled = [self.pool(hidden._replace(states=norm(layer).float())) for layer in states]
        return torch.cat([F.normalize(feature, dim=1) for feature in (*pooled, self.pool(hidden))], dim=1)

    def take_layers(self, layers: int) -> None:
        """Give the features of the last `layers` layers from now on, from one pass: each is pooled as the last one,
        normalised to length 1, and they follow one another, the last layer's last. `width` becomes as many times as
        large. Lower layers know more of the form of a text, which helps where classes are not topics.

        Raises:
            EverlearnError: there are fewer layers, or something after the pooling was trained for the last one.

        >>> from everlearn import backbones
        >>> backbones.load("tiny@layers=2")(["a cup of tea"]).shape
        torch.Size([1, 64])
        """
        if not 1 <= layers <= self.depth:
            raise EverlearnError(f"backbone '{self.name}' has {self.depth} layers: give a number from 1 to "
                                 f"{self.depth} after @layers=, not {layers}")  # fmt: skip
        if layers > 1 and (self.hidden_width != self.width or any(True for _ in self.after.parameters())):
            raise EverlearnError(f"backbone '{self.name}' goes on after its pooling with what was trained for the last "
                                 "layer alone: leave @layers= out")  # fmt: skip
        if layers > 1:
            self.settings["layers"] = layers
            self.layers, self.width, self.name = layers, layers * self.width, f"{self.name}@layers={layers}"

    def infer(
        self, inputs: Sequence[Input],
        compute: Callable[[list[Input], list[int]], torch.Tensor] | None = None, batch_size: int = 64,
    ) -> torch.Tensor:  # fmt: skip
        """Features (n, width) without gradients, computed in batches of similar length. Nothing is stored.

        Args:
            compute: a function from some inputs and their row numbers to features, or to a tensor of any one shape per
                input; `forward` by default.
            batch_size: the most inputs of a batch; of long texts there are fewer.
        """
        features: torch.Tensor | None = None
        with self.inference():
            for rows in of_similar_length(self.lengths(inputs), self.tokens_at_once, batch_size):
                batch = [inputs[row] for row in rows]
                found = (compute(batch, rows) if compute else self(batch)).float()
                if features is None:
                    features = found.new_empty(len(inputs), *found.shape[1:])
                features[rows] = found
        return torch.empty(len(inputs), self.width, device=self.device) if features is None else features

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Inside the `with` statement: evaluation mode, no gradients, `precision`. Afterwards all is restored."""
        with ONE_AT_A_TIME, self._inference():
            yield

    @contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        weights = [m.weight for m in self.modules() if isinstance(m, nn.Linear)] if self.precision != "float32" else []
        exact, outer = [weight.data for weight in weights], self._exact
        self._exact = {**{id(weight): data for weight, data in zip(weights, exact, strict=True)}, **outer}
        try:
            with torch.no_grad(), self.mixed_precision():
                for weight in weights:  # cast once here; autocast would cast again for every batch
                    weight.data = weight.data.bfloat16()
                yield
        finally:
            for weight, data in zip(weights, exact, strict=True):
                weight.data = data
            self._exact = outer
            self.train(was_training)

    @contextmanager
    def mixed_precision(self) -> Iterator[None]:
        """Inside the `with` statement, matrix products run in `precision`; with gradients in `training_precision`."""
        training = torch.is_grad_enabled()
        if (self.training_precision if training else self.precision) == "float32":
            yield
            return
        # On a CPU, the bfloat16 backward pass of torch's own attention is slower than the plain one.
        plain = PlainAttention() if training and self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16), plain:
            yield

    def encode(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width) of the frozen backbone, read from the feature store or computed and stored there."""
        return default_store().encode(self, inputs).to(self.device)

    def attach(self, delta: Delta, site: Site) -> Delta:
        """Put `delta` on `site`. The method owns the parameters of the delta; the backbone only refers to it."""
        delta.attach(site)
        self.attached.append(delta)
        return delta

    def detach(self, delta: Delta) -> None:
        """Take `delta` off its site."""
        delta.detach()
        self.attached = [other for other in self.attached if other is not delta]

    def pretrained(self) -> Any:
        """Inside the `with` statement no delta is active, so the backbone computes without any of them."""
        return only(self.attached, active=False)

    @property
    def active(self) -> list[Delta]:
        """The attached deltas that are switched on."""
        return [delta for delta in self.attached if delta.is_active]

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Inside the `with` statement, matrix products with gradients run in float32."""
        encoders = self.encoders()
        before = [encoder.training_precision for encoder in encoders]
        for encoder in encoders:
            encoder.training_precision = "float32"
        try:
            yield
        finally:
            for encoder, precision in zip(encoders, before, strict=True):
                encoder.training_precision = precision

    @property
    def is_frozen(self) -> bool:
        """Whether neither the backbone nor an active delta has trainable parameters."""
        modules: list[nn.Module] = [self, *self.active]
        return not any(p.requires_grad for module in modules for p in module.parameters())

    @property
    def rounding(self) -> float:
        """How far apart two features of one example may be, of the largest number in them: the other examples of a
        batch, and so the size of a matrix product, decide how it is rounded."""
        return 5e-3 if "bfloat16" in self.precision else 1e-4

    @property
    def first(self) -> Backbone:
        """What a method changes: the encoder itself, and of two towers the one that the examples go to."""
        return self

    def encoders(self) -> list[Backbone]:
        """The encoders that it consists of, each with an identity of its own; most backbones are one."""
        return [self]

    # -- identity ------------------------------------------------------------------------------
    def digests(self) -> dict[str, str]:
        """SHA-256 of every tensor, by name. A tensor is hashed again only if it was written to: torch counts the
        writes in its version, except those through `.data` and numpy, for which `doubt` has its content compared."""
        return self._digests.of(self, self._exact)

    def doubt(self) -> None:
        """Say that code has run which may have written to the weights through `.data` or numpy: the next `identity`
        compares the content of every tensor, of the active deltas too. It reads them once, at the speed of memory."""
        for encoder in self.encoders():
            encoder._digests.doubts += 1

    def identity(self) -> str:
        """A hash of all that determines a feature: weights, active deltas, preprocessing, pooling, precision."""
        used = self._digests.as_used
        deltas = [
            (delta.site_name, type(delta).__name__, used(delta, f"delta {number} "), plain_state(delta))
            for number, delta in enumerate(self.attached)
            if delta.is_active
        ]
        what = json.dumps([self.digests(), deltas, self.settings, self.precision], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:32]


def _counted(hidden: Callable[[Any, Any], Hidden]) -> Callable[[Any, Any], Hidden]:
    """`hidden`, which also counts the examples. Every pass goes through it, whatever a method does before and after."""

    @functools.wraps(hidden)
    def counted(self: Backbone, prepared: Any) -> Hidden:
        Backbone.passed += len(self.mask(prepared))
        return hidden(self, prepared)

    return counted


@contextmanager
def outputs(blocks: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Inside the `with` statement, the states (n, tokens, width) that the blocks give are added to the list."""
    states: list[torch.Tensor] = []

    def keep(block: nn.Module, inputs: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
