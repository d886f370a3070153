"""PromptFusion: learned class texts and image prompts with a head answer in a learned mixture (Chen et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax, kl_div, normalize

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
from everlearn.settings import Count, Natural, Rate, Seed, Share, Size
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task

WIDTH, TEMPERATURE = 100, 3.0  # of the gate of PromptFusion-Lite: its hidden layer, and that of its Gumbel noise
PRESSURE, STEADINESS = 0.3, 0.1  # weights of its two losses


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
    share one image encoder, and the learned numbers belong to classes (in the released code to places in a batch). The
    released settings for CIFAR-100 are 30 vectors, 30 prompt tokens and 5,000 examples, kept by herding; here there are
    fewer of each, and examples are kept by chance.

    With `boosted` below 1 this is PromptFusion-Lite. A gate, a small network on the stabiliser's features, then says
    for each image whether the booster answers with the stabiliser, or the stabiliser alone. The scores of both are
    added then, and there is no λ. While it learns, the gate draws its answer (Gumbel-softmax, straight through); two
    losses keep the share of boosted images near `boosted`, and its answers near those of the gate before the task. An
    image that the gate spares does not go through the encoder with prompts: its features come from the feature store.
    In the released code the gate also draws when it predicts, so that an image may be answered in two ways; here it
    takes the likelier answer. The measure "answered without booster" is the share of spared test images.

    Args:
        backbone: a pair of an image encoder and a text encoder, frozen.
        context: learned vectors before the name of each class.
        length: prompt tokens of each block of the image encoder.
        boosted: the share of images that the gate is to give to the booster (released: 0.4); at 1 there is no gate.
        memory_size: examples kept, equally many of each class.
        epochs: passes over each task and the memory.
        batch_size: examples per step.
        lr: learning rate (AdamW, weight decay 1e-4); it falls to zero along a cosine.
        head_lr: learning rate of the booster's head, for features of norm 1; it is divided by their norm.
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
    _drawn: Tensor
    """(n,): 1 where the gate gave an image of the last batch to the booster, with gradient."""

    def __init__(
        self, backbone: Backbone, *, context: Size = 16, length: Size = 10, boosted: Share = 1.0,
        memory_size: Natural = 2000, epochs: Count = 3, batch_size: Count = 32, lr: Rate = 2e-3, head_lr: Rate = 0.1,
        seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        pair = as_pair(backbone)
        super().__init__(pair, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.head_lr, self.scale, self.context_length = head_lr, pair.scale, context
        self.placeholders, start = self.reader.placeholders(context)
        self.context = Context(start)
        self.reader.attach(self.context, self.reader.words)
        with seeded(seed):
            self.deltas = insert(backbone, "deep_prompt", length=length)
            self.gate = Gate(backbone.width) if boosted < 1 else None
        self.boosted, self.before = boosted, deepcopy(self.gate)  # the gate before the task
        self.vectors, self.texts = nn.ParameterList(), ZeroShot(backbone.width)
        self.mixture = nn.Parameter(torch.ones(()), requires_grad=self.gate is None)
        self.weights = nn.Parameter(torch.ones(0))
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
        if self.gate is not None:
            self.before = deepcopy(self.gate).requires_grad_(False)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{**group, "weight_decay": 1e-4} for group in super().param_groups()]

    def batches(self, task: Task) -> Sequence[Examples]:
        return self.shuffled(Examples.concatenate([self.memory.examples(), task.train]), task)

    def loss(self, batch: Examples) -> Tensor:
        loss = super().loss(batch)
        if self.gate is None or self.before is None:
            return loss
        features = normalize(self._untouched(batch.inputs))
        loss = loss + PRESSURE * (self._drawn.mean() - self.boosted) ** 2
        if self.task.index:
            now, then = ((gate(features) / 2).log_softmax(1) for gate in (self.gate, self.before))
            loss = loss + STEADINESS * kl_div(now, then, reduction="batchmean", log_target=True)
        return loss

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
        features = normalize(self._untouched(inputs))
        stable, boosted = self.scale * features @ texts.T, self.head(self.features(inputs))
        if self.gate is None:
            return self.mixed(stable, boosted)
        self._drawn = gumbel_softmax(self.gate(features), TEMPERATURE, hard=True)[:, 0]
        return stable + self._drawn[:, None] * boosted

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        features = self._untouched(inputs)
        stable = self.scale * self.texts(features)
        if self.gate is None:
            return self.mixed(stable, self.head(self.embed(inputs)))
        rows = self._is_chosen(features).nonzero()[:, 0]
        return stable.index_add(0, rows, self.head(self.embed([inputs[row] for row in rows.tolist()])))

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        texts, features = self._texts().index_copy(0, self._own, self._read_alone()), self._untouched(inputs)
        stable, boosted = self.scale * normalize(features) @ texts.T, self.head(self.embed(inputs))
        if self.gate is None:
            return self.mixed(stable, boosted)
        return stable + self._is_chosen(features)[:, None] * boosted

    def is_boosted(self, inputs: Sequence[Input]) -> Tensor:
        """(n,) booleans: whether the booster answers too."""
        return self._is_chosen(self._untouched(inputs))

    def mixed(self, stable: Tensor, boosted: Tensor) -> Tensor:
        """(n, classes): the scores of stabiliser and booster, each (n, classes), in one."""
        return (1 - self.share) * stable + self.share * boosted

    def stable(self, inputs: Sequence[Input]) -> Tensor:
        """(n, classes): the scores of the stabiliser alone."""
        return self.scale * self.texts(self._untouched(inputs))

    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        if self.gate is None:
            return {}
        return {"answered without booster": 1 - self.is_boosted(inputs).float().mean().item()}

    def diagnostics(self) -> dict[str, Any]:
        return {"share of the booster": round(self.share.item(), 4)} if self.gate is None else {}

    def _is_chosen(self, features: Tensor) -> Tensor:
        """(n,) booleans: whether the gate gives images of these features (n, width) to the booster."""
        if self.gate is None:
            return torch.ones(len(features), dtype=torch.bool, device=features.device)
        with torch.no_grad():
            return self.gate(normalize(features)).argmax(1) == 0

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


class Gate(nn.Module):
    """Whether an image needs the booster, from its features as the stabiliser sees them.

    Args:
        width: of the features.

    >>> Gate(8)(torch.ones(3, 8)).shape
    torch.Size([3, 2])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.answer = nn.Linear(width, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features of length 1 -> (n, 2) scores: with the booster, and without."""
        scores: Tensor = self.answer(self.hidden(features).tanh())
        return scores
