"""Soft sequences: vectors that stand where an encoder's embedded tokens stand, and what is trained on them.

Li & Li (Data Distillation for Text Classification, 2021, https://arxiv.org/abs/2104.08448) learn matrices of
embeddings in the place of texts. Here they replace the output of the backbone's site `tokens`, behind the first token
(CLS), which stays; so nothing of the encoder is copied, and position and type are part of what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from everlearn.backbones.attention import PlainAttention
from everlearn.backbones.backbone import Backbone, outputs
from everlearn.distillation.bilevel import Loss, Soft, Weights
from everlearn.errors import EverlearnError
from everlearn.heads.linear import Linear
from everlearn.losses import multiple_negatives_ranking
from everlearn.peft.prompt import PromptTokens
from everlearn.peft.unified import DeltaSet, train_part
from everlearn.seeds import derived_seed, seeded
from everlearn.streams.inputs import Input

NEW = ("deltas.", "head.")
"""How the names of weights begin that are drawn anew for each start; those of the encoder begin as pre-trained."""


def _first(prepared: dict[str, Tensor], tokens: int, known: int) -> dict[str, Tensor]:
    """The input of the encoder, cut to so many of its `known` tokens."""
    return {name: tensor[:, : tensor.shape[1] - known + tokens] for name, tensor in prepared.items()}


def embedded(backbone: Backbone, texts: Sequence[str], length: int) -> Tensor:
    """The first `length` tokens of each text behind CLS as they enter the first block, (n, length, width). A shorter
    text is repeated until it is long enough.

    Raises:
        EverlearnError: the encoder reads fewer tokens, or no texts.

    >>> from everlearn import backbones
    >>> embedded(backbones.load("tiny"), ["a cup of tea"], 6).shape
    torch.Size([1, 6, 32])
    """
    if "text" not in backbone.reads:
        raise EverlearnError(f"soft sequences stand for texts, which the backbone '{backbone.name}' does not read: "
                             "give --kind features")  # fmt: skip
    prepared = backbone.prepare([" ".join([text] * length) for text in texts])
    known = backbone.mask(prepared).shape[1]
    if known < length + 1 or not bool(backbone.mask(prepared)[:, : length + 1].all()):
        raise EverlearnError(f"the backbone '{backbone.name}' reads fewer than {length + 1} tokens: give a smaller "
                             "--length")  # fmt: skip
    with backbone.inference(), outputs([backbone.tokens.leave]) as states:
        backbone.hidden(_first(prepared, length + 1, known))
    return states[0][:, 1:].float()


def features_of(backbone: Backbone, sequences: Tensor) -> Tensor:
    """Features (n, width) of sequences (n, length, width), with gradient to them and to what is trained.

    >>> from everlearn import backbones
    >>> tiny = backbones.load("tiny")
    >>> torch.allclose(features_of(tiny, embedded(tiny, ["one two three"], 3)), tiny(["one two three"]), atol=1e-6)
    True
    """
    length = sequences.shape[1]
    prepared = backbone.prepare([" ".join(["a"] * length)])
    template = _first(prepared, length + 1, backbone.mask(prepared).shape[1])
    place = PromptTokens(replaces=True)
    backbone.attach(place, backbone.tokens)
    try:
        with place.given(sequences):
            return backbone.pool(backbone.hidden({name: t.expand(len(sequences), -1) for name, t in template.items()}))
    finally:
        backbone.detach(place)


class Learner(nn.Module):
    """An encoder that reads soft sequences and texts, what is inserted into it, and a head.

    Args:
        backbone: it keeps its weights; `functional_call` puts others in their place.
        train: what is trained besides the head: "head" (nothing), "full", or an insertion, as `train_part`.
        classes: of the head; none where the goal is ranking.
        seed: of what is inserted.

    >>> from everlearn import backbones
    >>> learner = Learner(backbones.load("tiny"), "lora", classes=3)
    >>> learner(torch.zeros(2, 4, 32)).shape, learner(["tea", "a sofa"]).shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    def __init__(self, backbone: Backbone, train: str = "head", *, classes: int | None, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.deltas: DeltaSet = train_part(backbone, train, seed=seed)
        self.head: nn.Module = nn.Identity() if classes is None else Linear(backbone.width)
        if isinstance(self.head, Linear):
            self.head.grow(classes or 0)

    def forward(self, inputs: Tensor | Sequence[Input]) -> Tensor:
        """Scores of the head, or features where there is none: (n, classes or width)."""
        return self.head(self.features(inputs))

    def features(self, inputs: Tensor | Sequence[Input]) -> Tensor:
        """Features (n, width) of texts, or of sequences (n, length, width)."""
        return features_of(self.backbone, inputs) if isinstance(inputs, Tensor) else self.backbone(inputs)

    def start(self, seed: int) -> Weights:
        """What is trained, detached: the encoder's weights as they are, a new head, and new values of what is inserted,
        both drawn from the seed."""
        return {name: (drawn(tensor, derived_seed(seed, number)) if name.startswith(NEW) else tensor.detach().clone())
                .requires_grad_(True) for number, (name, tensor) in enumerate(self.trained())}  # fmt: skip

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that training changes, by name."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad and p.numel())

    def close(self) -> None:
        """Take everything off the backbone, and freeze it as it was."""
        self.deltas.detach(self.backbone)
        self.backbone.requires_grad_(False)


def drawn(like: Tensor, seed: int) -> Tensor:
    """New values of the spread that these have; what is zero, as the second matrix of LoRA, stays zero.

    >>> drawn(torch.zeros(2), 0).tolist(), drawn(torch.ones(2, 2), 0).shape
    ([0.0, 0.0], torch.Size([2, 2]))
    """
    with seeded(seed):
        return torch.randn_like(like) * like.detach().square().mean().sqrt()


@contextmanager
def differentiable_twice(backbone: Backbone) -> Iterator[None]:
    """Inside the `with` statement the encoder computes in float32 and its attention has a second derivative, which
    torch's fused one lacks."""
    with backbone.full_precision(), PlainAttention():
        yield


class OnHead:
    """A head on the frozen encoder is trained on the soft sequences. Their features do not depend on the head, so they
    are computed once for all steps, and only those of some sequences anew in each iteration: block-wise descent. The
    features of the other blocks are as they were when their turn came; Adam has moved these sequences a little since.
    Step 0 computes all of them.

    Args:
        features: (n, width) of the real examples. labels: (n,).
        at_once: sequences in a block.
    """

    def __init__(self, learner: Learner, features: Tensor, labels: Tensor, *, at_once: int = 256) -> None:
        self.learner, self.features, self.labels, self.at_once = learner, features, labels, at_once
        self.examples = len(labels)
        self.known: Tensor | None = None

    def start(self, seed: int) -> Weights:
        return self.learner.start(seed)

    def inner(self, soft: Soft, step: int) -> Loss:
        sequences = soft.sequences["inputs"]
        blocks = list(torch.arange(len(sequences)).split(self.at_once))
        if self.known is None or step == 0:
            with torch.no_grad():
                self.known = torch.cat([self.learner.features(sequences[block]) for block in blocks])
        block = blocks[step % len(blocks)]
        new = self.learner.features(sequences[block])
        self.known = self.known.index_copy(0, block, new.detach())
        features = self.known.index_copy(0, block, new)
        return lambda weights: cross_entropy(self.scores(weights, features), soft.labels())

    def outer(self, weights: Weights, rows: Tensor) -> Tensor:
        return cross_entropy(self.scores(weights, self.features[rows]), self.labels[rows])

    def scores(self, weights: Weights, features: Tensor) -> Tensor:
        """Scores (n, classes) of the head with these weights for features (n, width)."""
        own = {name.removeprefix("head."): tensor for name, tensor in weights.items()}
        scores: Tensor = functional_call(self.learner.head, own, (features,))
        return scores


class OnEncoder:
    """The head and the encoder, or what is inserted into it, are trained on the soft sequences.

    Args:
        texts: n real texts. labels: (n,).
    """

    def __init__(self, learner: Learner, texts: Sequence[Input], labels: Tensor) -> None:
        self.learner, self.texts, self.labels, self.examples = learner, texts, labels, len(labels)

    def start(self, seed: int) -> Weights:
        return self.learner.start(seed)

    def inner(self, soft: Soft, step: int) -> Loss:
        return lambda weights: cross_entropy(called(self.learner, weights, soft.sequences["inputs"]), soft.labels())

    def outer(self, weights: Weights, rows: Tensor) -> Tensor:
        return cross_entropy(called(self.learner, weights, [self.texts[row] for row in rows.tolist()]),
                             self.labels[rows])  # fmt: skip


class OnPairs:
    """The encoder, or what is inserted into it, is trained to rank on soft queries and their soft or real documents.

    Args:
        queries: n real texts. documents: the texts that answer them.
        given: the texts of the documents of the soft queries; None where the documents are soft too.
    """

    def __init__(
        self, learner: Learner, queries: Sequence[Input], documents: Sequence[str], given: Sequence[str] | None = None
    ) -> None:
        self.learner, self.queries, self.documents, self.given = learner, queries, documents, given
        self.examples = len(queries)

    def start(self, seed: int) -> Weights:
        return self.learner.start(seed)

    def inner(self, soft: Soft, step: int) -> Loss:
        documents: Any = self.given if self.given is not None else soft.sequences["documents"]
        return lambda weights: self._loss(weights, soft.sequences["queries"], documents)

    def outer(self, weights: Weights, rows: Tensor) -> Tensor:
        texts = [self.documents[row] for row in rows.tolist()]
        return self._loss(weights, [self.queries[row] for row in rows.tolist()], texts, texts)

    def _loss(self, weights: Weights, queries: Any, documents: Any, texts: Sequence[str] | None = None) -> Tensor:
        with self.learner.backbone.reading("query"):
            asked = called(self.learner, weights, queries)
        with self.learner.backbone.reading("document"):
            given = called(self.learner, weights, documents)
        return multiple_negatives_ranking(asked, given, texts, self.learner.backbone.similarity).mean()


def called(learner: Learner, weights: Weights, inputs: Tensor | Sequence[Input]) -> Tensor:
    """The learner's output (n, classes or width) with these weights in the place of its own."""
    found: Tensor = functional_call(learner, weights, (inputs,))
    return found
