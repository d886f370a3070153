"""ZSCL: both towers are trained, and the answers of the untouched pair are kept (Zheng et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from everlearn.backbones.backbone import Backbone
from everlearn.backbones.image_text import ImageText, as_pair
from everlearn.errors import EverlearnError
from everlearn.heads.zero_shot import ZeroShot
from everlearn.losses import distillation
from everlearn.memory.before import Before
from everlearn.merge import ema_step
from everlearn.method import Method, Tags
from everlearn.optimizer_step import OptimizerStep
from everlearn.schedules import cosine
from everlearn.seeds import derived_seed
from everlearn.settings import Count, Factor, Natural, Rate, Seed, Share, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class ZSCL(Method):
    """Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models.
    Zheng, Ma, Wang, Qin, Yue & You, ICCV 2023, https://arxiv.org/abs/2303.06628

    Train all weights of an image encoder and a text encoder on each task, by cross-entropy between images and the
    names of the task's classes. Three things keep what the pair could do before: on reference images and reference
    texts it is to answer as the pair did before the first task; its weights stay near those before this task; and what
    remains of a task is the running mean of the weights while it was learned.

    The reference images and texts are those of `reference`, best a varied set that has nothing to do with the tasks
    (the paper takes images of ImageNet and captions of Conceptual Captions). Without it they are the images of the
    present task and the sentences about all classes so far, which needs no other data and holds less.

    Between tasks nothing is stored beside the weights. While a task is learned there are three more copies of
    them: those before the first task, which no checkpoint holds because they are loaded again, those before this task,
    and the mean. The features that the first pair gives for the reference come from the feature store.

    Departures: present texts are compared with the first images as well as present images with the first texts (the
    released code does the latter alone, which does not hold the text encoder); the last step of a task is in the mean,
    so that a task of fewer steps than `every` is learned too; the rate does not rise over the first 100 steps, which
    many tasks here do not have, and AdamW has its usual weight decay of 0.01 (released: 0).

    Args:
        backbone: a pair of an image encoder and a text encoder.
        strength: weight of the answers on the reference, in each direction.
        temperature: of the softmax over these answers.
        pull: weight of the squared distance of the weights from those before the task.
        every: steps between two weights that enter the mean; 0 for the last weights instead of the mean.
        smoothing: share of the label that is spread over all classes of the task.
        reference: a data set of images as `--stream` takes it, such as a file; its classes give the texts. It must be
            there while tasks are learned.
        reference_size: images of the reference that are used, drawn by the seed.
        epochs: passes over each task; the paper has 1,000 steps a task.
        batch_size: examples per step, and images and texts of the reference.
        lr: learning rate (AdamW); it falls to zero along a cosine.
        seed: of the order of examples and of the reference.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: the backbone is no pair, or the reference has no images.

    Relations: with strength, pull and every 0 this is plain fine-tuning of both encoders; `lwf` and `ewc` hold answers
    and weights of the task before.

    >>> from everlearn.testing import tiny_pair
    >>> ZSCL(tiny_pair(), every=10).backbone.is_frozen
    False
    """

    tags = Tags(family="mixture", trains="backbone", inputs=("image",), needs=("class names", "two towers"))
    schedule = staticmethod(cosine)

    def __init__(
        self, backbone: Backbone, *, strength: Strength = 1.0, temperature: Factor = 2.0, pull: Strength = 1.0,
        every: Natural = 100, smoothing: Share = 0.2, reference: str | None = None, reference_size: Count = 1000,
        epochs: Count = 5, batch_size: Count = 64, lr: Rate = 1e-5, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(as_pair(backbone), epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.strength, self.temperature, self.pull = strength, temperature, pull
        self.every, self.smoothing, self.steps = every, smoothing, 0
        self.file, self.reference_size = reference, reference_size
        self.head = ZeroShot(backbone.width)
        self.before, self.mean = Before(), Before()
        backbone.requires_grad_(True)
        self._first = [weight.detach().clone() for weight in backbone.parameters()] if strength else []
        self._reference: Reference | None = None

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if self.pull:
            self.before.keep(self.weights)
        if self.every:
            self.mean.keep(self.weights)  # the first of those that it is the mean of

    def batches(self, task: Task) -> Sequence[Examples]:
        if self.strength:
            images, sentences = list(task.train.inputs), self.pair.sentences(task.class_names)
            if self.file:
                images, sentences = self._of_file()
            with self._initially():
                seen, read = (normalize(self.backbone.encode(part)) for part in (images, sentences))
            self._reference = Reference(images, sentences, seen, read)
        batches = super().batches(task)
        self.steps = len(batches)
        return batches

    def losses(self, batch: Examples) -> Tensor:
        own = torch.tensor(self.task.classes, device=self.backbone.device)
        scores = self._compare(self.features(batch.inputs), [self.task.class_names[k] for k in own.tolist()])
        labels = (self.labels(batch)[:, None] == own).int().argmax(1)
        self._answered(batch, scores, labels)
        return cross_entropy(scores, labels, reduction="none", label_smoothing=self.smoothing)

    def loss(self, batch: Examples) -> Tensor:
        loss = super().loss(batch)
        return loss if self._reference is None else loss + self.strength * self._drift(self._reference)

    def hold(self, optimizer_step: OptimizerStep) -> Tensor | float:
        return optimizer_step.add_penalty(self.pull, self.weights, self.before.weights()) if self.pull else 0.0

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        loss = super().step(batch, optimizer_step)
        done = optimizer_step.number + 1
        if self.every and (done % self.every == 0 or done == self.steps):
            others = -(-done // self.every)  # weights that are in the mean already
            ema_step(self.mean.weights(), self.weights, others / (others + 1))
        return loss

    def end_task(self, task: Task) -> None:
        if self.every:
            _write(self.weights.values(), self.mean.weights().values())
        self.before.clear()
        self.mean.clear()
        self._reference = None
        self.head.set(self.pair.class_features(task.class_names, self.backbone.infer))

    def scores(self, inputs: Sequence[Input]) -> Tensor:
        return self._compare(self.features(inputs), self.task.class_names)

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        return self.pair.scale * self.head(self.embed(inputs))

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self._compare(self.embed(inputs), self.task.class_names, self.backbone.infer)

    @property
    def pair(self) -> ImageText:
        """The backbone."""
        return as_pair(self.backbone)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """All weights of both encoders, by name."""
        return dict(self.backbone.named_parameters())

    def _compare(
        self, features: Tensor, names: Sequence[str], encode: Callable[[Sequence[Input]], Tensor] | None = None
    ) -> Tensor:
        """(n, names): scores of (n, width) image features, with the names read by the present text encoder."""
        texts = self.pair.class_features(names, encode or self.backbone)
        return self.pair.scale * normalize(features) @ texts.T

    def _drift(self, reference: Reference) -> Tensor:
        """How far the present answers on a few images and texts of the reference are from the first ones, a scalar."""
        rows, columns = (torch.randperm(len(part))[: self.batch_size].tolist()
                         for part in (reference.images, reference.sentences))  # fmt: skip
        seen, read = reference.seen[rows], self.pair.scale * reference.read[columns]
        now_seen = normalize(self.backbone([reference.images[row] for row in rows]))
        now_read = self.pair.scale * normalize(self.backbone([reference.sentences[column] for column in columns]))
        first = seen @ read.T
        of_images = distillation(now_seen @ read.T, first, self.temperature).mean()
        return of_images + distillation(now_read @ seen.T, first.T, self.temperature).mean()

    def _of_file(self) -> tuple[list[Input], list[str]]:
        """Images and sentences of the reference data set."""
        from everlearn import streams

        assert self.file is not None
        task = streams.load(self.file, kind="class-incremental", tasks=1)[0]
        if task.input != "image" or task.goal != "classes":
            raise EverlearnError(f"method.reference: {self.file} holds no images of named classes: give a data set "
                                 "that does, or leave it out")  # fmt: skip
        drawn = torch.Generator().manual_seed(derived_seed(self.seed))
        rows = torch.randperm(len(task.train), generator=drawn)[: self.reference_size]
        return list(task.train[rows].inputs), self.pair.sentences(task.class_names)

    @contextmanager
    def _initially(self) -> Iterator[None]:
        """Inside the block the weights are those before the first task."""
        weights = self.weights.values()
        now = [weight.detach().clone() for weight in weights]
        _write(weights, self._first)
        try:
            yield
        finally:
            _write(weights, now)


class Reference(NamedTuple):
    """Images and sentences, with the features that the first pair gives for them, (n, width) of length 1."""

    images: list[Input]
    sentences: list[str]
    seen: Tensor
    read: Tensor


@torch.no_grad()
def _write(weights: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
