"""ZSCL: both towers are trained, and the answers of the untouched pair are kept (Zheng et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from everlearn.method import Method, Tags
from everlearn.optimizer_step import OptimizerStep
from everlearn.schedules import cosine
from everlearn.seeds import derived_seed
from everlearn.settings import Count, Factor, Natural, Rate, Seed, Share, Strength
from everlearn.state import Stateful
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
        self.every, self.smoothing = every, smoothing
        self.file, self.reference_size = reference, reference_size
        self.head, self.kept = ZeroShot(backbone.width), TaskWeights()
        backbone.requires_grad_(True)
        self._first = [weight.detach().clone() for weight in backbone.parameters()] if strength else []
        self._reference: Reference | None = None

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.kept.begin(self.weights, anchor=self.pull > 0, mean=self.every > 0)

    def batches(self, task: Task) -> Sequence[Examples]:
        if self.strength:
            images, sentences = list(task.train.inputs), self.pair.sentences(task.class_names)
            if self.file:
                images, sentences = self._of_file()
            with self._initially():
                seen, read = (normalize(self.backbone.encode(part)) for part in (images, sentences))
            self._reference = Reference(images, sentences, seen, read)
        return super().batches(task)

    def losses(self, batch: Examples) -> Tensor:
        own = torch.tensor(self.task.classes, device=self.backbone.device)
        scores = self._compare(self.features(batch.inputs), [self.task.class_names[k] for k in own.tolist()])
        labels = (self.labels(batch)[:, None] == own).int().argmax(1)
        self._answered(batch, scores, labels)
        return cross_entropy(scores, labels, reduction="none", label_smoothing=self.smoothing)

    def loss(self, batch: Examples) -> Tensor:
        loss = super().loss(batch)
        if self._reference is not None:
            loss = loss + self.strength * self._drift(self._reference)
        return loss + self.pull * self.kept.distance(self.weights) if self.pull else loss

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        loss = super().step(batch, optimizer_step)
        self.kept.steps += 1
        if self.every and not self.kept.steps % self.every:
            self.kept.add(self.weights)
        return loss

    def end_task(self, task: Task) -> None:
        if self.every:
            if self.kept.steps % self.every:
                self.kept.add(self.weights)
            self.kept.write_mean(self.weights)
        self.kept.clear()
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
    def weights(self) -> list[nn.Parameter]:
        """All weights of both encoders."""
        return list(self.backbone.parameters())

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
        now = [weight.detach().clone() for weight in self.weights]
        _write(self.weights, self._first)
        try:
            yield
        finally:
            _write(self.weights, now)


class Reference(NamedTuple):
    """Images and sentences, with the features that the first pair gives for them, (n, width) of length 1."""

    images: list[Input]
    sentences: list[str]
    seen: Tensor
    read: Tensor


class TaskWeights(Stateful):
    """Weights while a task is learned: as they were before it, and the running mean of what they have been since.
    Between tasks it holds nothing.

    >>> weight, kept = [nn.Parameter(torch.tensor([0.0]))], TaskWeights()
    >>> kept.begin(weight, anchor=True, mean=True)
    >>> kept.add([torch.tensor([3.0])])
    >>> kept.add([torch.tensor([6.0])])
    >>> kept.mean, kept.distance([torch.tensor([3.0])])
    (tensor([3.]), tensor(9.))
    """

    anchor: Tensor
    mean: Tensor
    steps: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.empty(0))
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("count", torch.tensor(0))  # weights in the mean

    def begin(self, weights: Sequence[Tensor], *, anchor: bool, mean: bool) -> None:
        """A task begins with these weights, which are kept as the anchor, the first of the mean, or both."""
        self.clear()
        flat = _flat(weights) if anchor or mean else torch.empty(0)
        self.anchor, self.mean = flat if anchor else flat[:0], flat.clone() if mean else flat[:0]
        self.count.fill_(int(mean))

    def add(self, weights: Sequence[Tensor]) -> None:
        """These weights enter the mean."""
        self.count += 1
        self.mean += (_flat(weights) - self.mean) / self.count

    def distance(self, weights: Sequence[Tensor]) -> Tensor:
        """The squared distance of the weights from those before the task, a scalar."""
        before = self.anchor.split([weight.numel() for weight in weights])
        return torch.stack([(weight.flatten() - old).square().sum()
                            for weight, old in zip(weights, before, strict=True)]).sum()  # fmt: skip

    def write_mean(self, weights: Sequence[Tensor]) -> None:
        """Let these weights be the mean."""
        _write(weights, self.mean.split([weight.numel() for weight in weights]))

    def clear(self) -> None:
        """The task is over."""
        self.anchor, self.mean = self.anchor.new_empty(0), self.mean.new_empty(0)
        self.steps.zero_()
        self.count.zero_()


def _flat(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in weights])


@torch.no_grad()
def _write(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value.view_as(weight))
