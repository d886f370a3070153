"""PROOF: projections of each task, summed, and one attention over image, texts and prototypes (Zhou et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from everlearn.backbones.backbone import Backbone
from everlearn.backbones.image_text import as_pair
from everlearn.heads.fusion import Fusion
from everlearn.heads.prototype import Prototype
from everlearn.heads.zero_shot import ZeroShot
from everlearn.memory.memory import Memory
from everlearn.memory.policies import Herded
from everlearn.method import Method, Tags
from everlearn.schedules import cosine
from everlearn.seeds import seeded
from everlearn.settings import Count, Natural, Rate, Seed, Size
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task

AT_ONCE = 64
"""Images that are fused together: each has texts and prototypes of its own then."""


class PROOF(Method):
    """Learning without Forgetting for Vision-Language Models. Zhou, Zhang, Wang, Ning, Ye, Zhan & Liu, TPAMI 2025,
    https://arxiv.org/abs/2305.19270

    The pair of encoders is frozen. Each task adds one projection for images and one for texts; those of all tasks are
    summed, and only those of the present task are trained. A class is known by its text and by its prototype, the mean
    of its images. One self-attention reads an image together with all texts, all prototypes and the context prompts of
    every task, so that each image sees texts and prototypes in its own light. Three scores of an image are added: with
    the projected texts, with the fused texts, and with the fused prototypes. Some old examples, chosen by herding, are
    kept and learned again with each task.

    Image and text features come from the feature store: each image, and each sentence, is encoded once in a run.

    Departures: the texts and prototypes of an image are not averaged over its batch, and the projections of old texts
    are frozen like those of old images (`paper_compat` asks for both as released). The scale of the contrastive loss
    stays that of the pair. Features have length 1 when they are projected, and projected ones when they are compared
    (in the released code neither holds for the images that are asked about). The attention among texts, prototypes and
    prompts is computed once for all images of a batch, so dropout leaves out the same part of it for all of them.

    Args:
        backbone: a pair of an image encoder and a text encoder, frozen.
        memory_size: examples kept, equally many of each class.
        prompts: context prompts of each task.
        paper_compat: average texts and prototypes over each batch, also when predicting, and train the projections of
            old texts, as released. The first makes an answer depend on the other images that are asked about.
        epochs: passes over each task and the memory.
        batch_size: examples per step.
        lr: learning rate (SGD, momentum 0.9, weight decay 0.05); it falls to zero along a cosine.
        seed: of the projections, prompts, order of examples and memory.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: the backbone is no pair.

    Relations: `simplecil` is the prototypes alone, `frozen` the texts alone, neither with anything trained.

    >>> from everlearn import streams
    >>> from everlearn.testing import tiny_pair
    >>> method = PROOF(tiny_pair(), prompts=2)
    >>> method.begin_task(streams.Task(0, "one", (0, 1), ("cat", "dog"), "image"))
    >>> len(method.fusion.images), method.fusion.context.shape
    (1, torch.Size([2, 32]))
    """

    tags = Tags(family="mixture", trains="head", inputs=("image",), needs=("class names", "two towers"))
    Optimizer = torch.optim.SGD
    schedule = staticmethod(cosine)

    def __init__(
        self, backbone: Backbone, *, memory_size: Natural = 2000, prompts: Size = 3, paper_compat: bool = False,
        epochs: Count = 5, batch_size: Count = 64, lr: Rate = 1e-3, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        pair = as_pair(backbone)
        super().__init__(pair, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.paper_compat, self.scale, self.memory_size = paper_compat, pair.scale, memory_size
        self.head, self.names = Prototype(backbone.width), ZeroShot(backbone.width)
        self.memory = Memory(memory_size, policy=Herded(), seed=seed)
        with seeded(seed):
            self.fusion = Fusion(backbone.width, prompts)
        self._means: Tensor | None = None  # while a task is learned, the means with those of its own classes

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.names.set(self.backbone.class_features(task.class_names))
        self.fusion.grow(texts_stay_trained=self.paper_compat)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{**group, "momentum": 0.9, "weight_decay": 0.05} for group in super().param_groups()]

    def batches(self, task: Task) -> Sequence[Examples]:
        known = Prototype(self.backbone.width).to(self.backbone.device)
        known.sums, known.counts = self.head.sums.clone(), self.head.counts.clone()
        known.class_names = self.head.class_names
        self._add(known, task)
        self._means = _means(known)
        return self.shuffled(Examples.concatenate([self.memory.examples(), task.train]), task)

    def loss(self, batch: Examples) -> Tensor:
        labels, images = self.labels(batch), normalize(self.features(batch.inputs))
        plain, by_text, by_prototype = self._three(images)
        self._answered(batch, plain + by_text + by_prototype, labels)
        # As CLIP is trained: which text of the batch belongs to which image, and the other way round.
        among, own = self.scale * plain[:, labels], torch.arange(len(labels), device=labels.device)
        contrast = (cross_entropy(among, own) + cross_entropy(among.T, own)) / 2
        return cross_entropy(by_text, labels) + cross_entropy(by_prototype, labels) + contrast

    def losses(self, batch: Examples) -> Tensor:
        return cross_entropy(self.scores(batch.inputs), self.labels(batch), reduction="none")

    def end_task(self, task: Task) -> None:
        self._add(self.head, task)
        self._means = None
        features = normalize(self.backbone.encode(task.train.inputs))
        self.memory.add(task.train, place=Herded.places(features, task.train.labels, self.memory_size))

    def scores(self, inputs: Sequence[Input]) -> Tensor:
        return torch.stack(self._three(normalize(self.features(inputs)))).sum(0)

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        features = normalize(self.embed(inputs))
        with torch.no_grad():
            return torch.cat([torch.stack(self._three(part)).sum(0) for part in features.split(AT_ONCE)])

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self.predict(inputs)

    def _add(self, head: Prototype, task: Task) -> None:
        head.add(normalize(self.backbone.encode(task.train.inputs)), self.labels(task.train))

    def _three(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of (n, width) features of images, each (n, classes): with texts, fused texts, fused prototypes."""
        images = self.fusion.project(images, "images")
        texts = self.fusion.project(self.names.embeddings, "texts")
        prototypes = self.fusion.project(_means(self.head) if self._means is None else self._means, "images")
        image, fused_texts, fused_prototypes = self.fusion(images, texts, prototypes)
        if self.paper_compat:
            fused_texts, fused_prototypes = (part.mean(0, keepdim=True) for part in (fused_texts, fused_prototypes))
        return (images @ texts.T, (image[:, None] * fused_texts).sum(2),
                (image[:, None] * fused_prototypes).sum(2))  # fmt: skip


def _means(head: Prototype) -> Tensor:
    """(classes, width): the mean of the features of each class."""
    return (head.sums / head.counts[:, None].clamp(min=1)).float()
