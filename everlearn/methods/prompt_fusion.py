"""PromptFusion: learned class texts and image prompts with a head answer in a learned mixture (Chen et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from everlearn.backbones.backbone import Backbone
from everlearn.backbones.image_text import as_pair
from everlearn.heads.zero_shot import ZeroShot
from everlearn.losses import cross_entropy
from everlearn.memory.memory import Memory
from everlearn.memory.policies import Balanced
from everlearn.method import Method, Tags
from everlearn.peft.context import Context
from everlearn.peft.unified import insert
from everlearn.schedules import cosine
from everlearn.seeds import seeded
from everlearn.settings import Count, Natural, Rate, Seed, Size
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class PromptFusion(Method):
    """PromptFusion: Decoupling Stability and Plasticity for Continual Learning.
    Chen, Wu, Han, Jia & Jiang, ECCV 2024, https://arxiv.org/abs/2303.07223

    Two modules share a frozen pair of encoders. The stabiliser compares an image with a text of each class, whose name
    follows vectors that are learned with the class and stay as they are afterwards (CoOp). The booster is one set of
    prompts in the image encoder with a linear head, trained on every task (VPT). The answer is (1 - λ) times the
    scores of the stabiliser plus λ times those of the booster, with λ learned.

    Some old examples are kept and learned again with each task. From the second task on, the loss of an example is
    weighed by a learned number of its class: σ(α) of a new class, and t/2 · 1/σ(β) of an old one, so that the few old
    examples count more.

    The stabiliser's image features come from the feature store, and so, in effect, do the texts of old classes:
    they are kept as features of length 1.

    Departures: the stabiliser reads images without prompts of its own (the released code has some there), both modules
    share one image encoder, and the learned numbers belong to classes (in the released code to places in a batch).
    The variant Lite, which spares the booster for some images, is left out.

    Args:
        backbone: a pair of an image encoder and a text encoder, frozen.
        context: learned vectors before the name of each class.
        length: prompt tokens of each block of the image encoder.
        memory_size: examples kept, equally many of each class.
        epochs: passes over each task and the memory.
        batch_size: examples per step.
        lr: learning rate (AdamW, weight decay 1e-4); it falls to zero along a cosine.
        head_lr: learning rate of the booster's head.
        seed: of vectors, prompts, head, order of examples and memory.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: the backbone is no pair, or its text encoder reads no placeholders.

    Relations: `vpt` with memory is the booster alone, `frozen` the stabiliser with nothing learned.

    >>> from everlearn.testing import tiny_pair
    >>> method = PromptFusion(tiny_pair(), context=4)
    >>> round(method.share.item(), 2), len(method.deltas)
    (0.73, 2)
    """

    tags = Tags(family="mixture", trains="peft", inputs=("image",), needs=("class names", "two towers"))
    schedule = staticmethod(cosine)
    clip = 1.0

    def __init__(
        self, backbone: Backbone, *, context: Size = 16, length: Size = 10, memory_size: Natural = 2000,
        epochs: Count = 3, batch_size: Count = 32, lr: Rate = 2e-3, head_lr: Rate = 1e-2, seed: Seed = 0,
        **settings: Any,
    ) -> None:  # fmt: skip
        pair = as_pair(backbone)
        super().__init__(pair, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.head_lr, self.scale, self.context_length = head_lr, pair.scale, context
        self.placeholders, start = self.reader.placeholders(context)
        self.context = Context(start)
        self.reader.attach(self.context, self.reader.words)
        with seeded(seed):
            self.deltas = insert(backbone, "deep_prompt", length=length)
        self.vectors, self.texts = nn.ParameterList(), ZeroShot(backbone.width)
        self.mixture, self.weights = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(0))
        self.memory = Memory(memory_size, policy=Balanced(), seed=seed)

    @property
    def reader(self) -> Backbone:
        """The text encoder."""
        return as_pair(self.backbone).tower([""])

    @property
    def share(self) -> Tensor:
        """λ, the share of the booster in an answer, a scalar in [0, 1]."""
        return self.mixture.sigmoid()

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        device, width = self.backbone.device, self.reader.words.out_width
        for _ in range(len(self.vectors), len(task.class_names)):
            self.vectors.append(nn.Parameter(0.01 * torch.randn(self.context_length, width, device=device)))
        for label, vectors in enumerate(self.vectors):
            vectors.requires_grad_(label in task.classes)
        self.texts.grow(task.class_names)
        self.weights = nn.Parameter(torch.ones(len(task.class_names), device=device))

    def param_groups(self) -> list[dict[str, Any]]:
        return [{**group, "weight_decay": 1e-4} for group in super().param_groups()]

    def batches(self, task: Task) -> Sequence[Examples]:
        return self.shuffled(Examples.concatenate([self.memory.examples(), task.train]), task)

    def losses(self, batch: Examples) -> Tensor:
        labels, scores = self.labels(batch), self.scores(batch.inputs)
        self._answered(batch, scores, labels)
        losses = cross_entropy(scores, labels)
        return losses * self.importance()[labels] if self.task.index else losses

    def importance(self) -> Tensor:
        """(classes,): by how much the loss of an example of each class counts in this task."""
        share = self.weights.sigmoid()
        new = torch.zeros_like(share, dtype=torch.bool)
        new[list(self.task.classes)] = True
        return torch.where(new, share, self.task.index / 2 / share)

    def end_task(self, task: Task) -> None:
        self.texts.set(self._texts().index_copy(0, self._own, self._read_alone()))
        self.memory.add(task.train)

    def scores(self, inputs: Sequence[Input]) -> Tensor:
        texts = self._texts().index_copy(0, self._own, self._read(self.task.classes))
        stable = self.scale * normalize(self._untouched(inputs)) @ texts.T
        return self.mixed(stable, self.head(self.features(inputs)))

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        return self.mixed(self.stable(inputs), self.head(self.embed(inputs)))

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        texts = self._texts().index_copy(0, self._own, self._read_alone())
        return self.mixed(self.scale * normalize(self._untouched(inputs)) @ texts.T, self.head(self.embed(inputs)))

    def mixed(self, stable: Tensor, boosted: Tensor) -> Tensor:
        """(n, classes): the scores of stabiliser and booster, each (n, classes), in one."""
        return (1 - self.share) * stable + self.share * boosted

    def stable(self, inputs: Sequence[Input]) -> Tensor:
        """(n, classes): the scores of the stabiliser alone."""
        return self.scale * self.texts(self._untouched(inputs))

    def diagnostics(self) -> dict[str, Any]:
        return {"share of the booster": round(self.share.item(), 4)}

    @property
    def _own(self) -> Tensor:
        return torch.tensor(self.task.classes, device=self.backbone.device)

    def _texts(self) -> Tensor:
        """(classes, width): the texts of all classes as they were after their own task."""
        return self.texts.embeddings.clone()

    def _untouched(self, inputs: Sequence[Input]) -> Tensor:
        """(n, width) of the pair without prompts, from the feature store."""
        with self.backbone.pretrained():
            return self.backbone.encode(inputs)

    def _read(self, labels: Sequence[int]) -> Tensor:
        """(labels, width) of length 1: the texts of these classes with their vectors, with gradient."""
        sentences = [f"{self.placeholders} {self.task.class_names[k].replace('_', ' ')}." for k in labels]
        with self.context.given(torch.stack([self.vectors[k] for k in labels])):
            return normalize(self.reader(sentences))

    def _read_alone(self) -> Tensor:
        """The same of the present task's classes, without gradient."""
        with self.reader.inference():
            return torch.cat([self._read([label]) for label in self.task.classes]).float()
