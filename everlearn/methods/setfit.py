"""SetFit: pairs of a few examples tune the encoder; logistic regression on its features (Tunstall et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.optim.lr_scheduler import LambdaLR

from everlearn.backbones.backbone import Backbone
from everlearn.batches import Batches
from everlearn.heads.logistic import Logistic as Head
from everlearn.memory.memory import Memory
from everlearn.memory.policies import Balanced
from everlearn.method import Method, Tags
from everlearn.peft.unified import rate_for, train_part
from everlearn.seeds import derived_seed
from everlearn.settings import Count, Factor, Rate, Seed
from everlearn.streams.stream import Examples, Task

WARM_UP = 0.1
"""Of the steps of a task, so many have a rising learning rate."""


def up_and_down(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rate rises from zero for the first tenth of the steps, and falls to zero in the others."""
    rising = max(1, round(WARM_UP * steps))
    return LambdaLR(optimizer, lambda k: min(k / rising, (steps - k) / max(1, steps - rising)))


class SetFit(Method):
    """Efficient Few-Shot Learning Without Prompts. Tunstall, Reimers, Jo, Bates, Korat, Wasserblat & Pereg, 2022,
    https://arxiv.org/abs/2209.11055

    For a sentence encoder and a few examples of each class. Two examples of one class should have features of cosine
    1, two of different classes of cosine 0; the loss is the squared difference. The encoder learns this on pairs: each
    example stands in `pairs` pairs with examples of its class, and in as many with examples of others. Then logistic
    regression is fitted to the features of the tuned encoder.

    Classes may be added, which the original cannot do. A few examples of each class are kept, and a new task has
    pairs of new examples with new and old ones, and as many pairs that start from old examples, so that a task costs
    at most twice what its own examples do. The head is fitted anew to the tuned features of old and new examples. An
    old class has fewer of them than a new one, which its intercept would learn: the logarithm of the number of examples
    is therefore taken from each from the second task on, so that all classes are then equally likely before an example
    is read.

    Departures: a positive pair has two different examples, except where a class has one; the encoder has no dropout
    while it learns; and C is 30, as in `logistic`, where the authors' package has 1.

    Args:
        backbone: a pre-trained encoder; for texts one that was trained to embed sentences.
        train: what is trained: "full" (every weight, as published), "head" (nothing but the head), or an insertion,
            such as "lora".
        pairs: R, the pairs of equal and the pairs of different class that each example starts.
        memory_per_class: examples that are kept for later tasks, of each class in the mean: a class that has fewer
            leaves its places to the others.
        epochs: passes over the pairs.
        batch_size: pairs per step.
        lr: learning rate of the encoder (AdamW), which rises for a tenth of the steps and falls to zero; by default
            2e-5 for every weight, as in the authors' package, and 1e-3 for an insertion.
        strength: C of the logistic regression.
        seed: of the insertion, the pairs and their order, and the choice of the examples that are kept.

    Relations: `logistic` is its head on the features of the encoder as it was; `er` and `joint` learn the classes by
    cross-entropy.

    >>> from everlearn import backbones, streams
    >>> from everlearn.engine import learn
    >>> method = SetFit(backbones.load("tiny"), pairs=2)
    >>> rows = [("tea please", "drink"), ("a cold juice", "drink"), ("a sofa", "seat"), ("two chairs", "seat")]
    >>> learn(method, streams.task_from([streams.Record(*row) for row in rows])).steps  # of 16 pairs: 4 · (2 + 2)
    1
    """

    tags = Tags(family="replay", trains="backbone",
                kinds=("class-incremental", "domain-incremental", "task-incremental", "old-then-new"))  # fmt: skip
    schedule = staticmethod(up_and_down)

    def __init__(
        self, backbone: Backbone, *, train: str = "full", pairs: Count = 20, memory_per_class: Count = 16,
        epochs: Count = 1, batch_size: Count = 16, lr: Rate | None = None, strength: Factor | Literal["auto"] = 30.0,
        seed: Seed = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=rate_for(train, lr, full=2e-5), seed=seed)
        self.pairs, self.memory_per_class = pairs, memory_per_class
        self.head = Head(backbone.width, strength=strength)
        self.memory = Memory(policy=Balanced(), seed=seed)
        self.deltas = train_part(backbone, train, seed=seed)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.memory.limits = (self.memory_per_class * len(task.class_names), None)

    def batches(self, task: Task) -> Sequence[Examples]:
        """Batches of 2n examples, in which example i and example n + i are a pair."""
        old, new = self.memory.examples(), task.train
        seed = derived_seed(self.seed, task.index)
        generator = torch.Generator().manual_seed(seed)
        replayed = torch.randperm(len(old), generator=generator)[: len(new)]
        examples = Examples.concatenate([old, new])
        anchors = torch.cat([replayed, torch.arange(len(old), len(examples))])
        rows = drawn_pairs(examples.labels, anchors, self.pairs, generator)
        pairs = Pairs(examples.inputs, examples.labels, examples.ids, rows=rows)
        lengths = torch.tensor(self.backbone.lengths(examples.inputs))[rows].amax(1).tolist()
        return Batches(pairs, self.epochs, self.batch_size, seed, lengths, task.augment)

    def losses(self, batch: Examples) -> Tensor:
        """(n,): of each pair."""
        one, other = self.features(batch.inputs).chunk(2)
        mine, theirs = self.labels(batch).chunk(2)
        return (cosine_similarity(one, other) - (mine == theirs).float()).square()

    def end_task(self, task: Task) -> None:
        examples = Examples.concatenate([self.memory.examples(), task.train])
        self.head.refit(self.embed(examples.inputs), self.labels(examples))
        if len(self.memory):
            # Few examples of old classes are kept, and all of new ones are here: that is no sign of what will be asked.
            prior = self.head.counts.clamp_min(1).log()
            self.head.offset += prior.mean() - prior
        self.memory.add(task.train)


@dataclass(frozen=True)
class Pairs(Examples):
    """Pairs of examples, each pair one row of `rows` (n, 2). Taken are pairs: first what begins them, then the others.

    >>> pairs = Pairs(["a", "b", "c"], torch.tensor([0, 0, 1]), ["1", "2", "3"], rows=torch.tensor([[0, 1], [0, 2]]))
    >>> len(pairs), pairs[[1, 0]].inputs
    (2, ['a', 'a', 'c', 'b'])
    """

    rows: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.long))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Examples:
        return Examples(self.inputs, self.labels, self.ids)[self.rows[rows].T.flatten()]


def drawn_pairs(labels: Tensor, anchors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(n, 2) rows of pairs: from each anchor `count` to other examples of its class, then as many to other classes.

    The other example of a pair is drawn with replacement. Where there is one class, there are no pairs.

    Args:
        labels: (examples,). anchors: rows of the examples that start pairs.

    >>> pairs = drawn_pairs(torch.tensor([0, 1, 1]), torch.tensor([1]), 2, torch.Generator().manual_seed(0))
    >>> pairs.tolist()
    [[1, 2], [1, 2], [1, 0], [1, 0]]
    """
    by_class, sizes = labels.argsort(stable=True), labels.bincount()
    if int((sizes > 0).sum()) < 2:
        return torch.empty(0, 2, dtype=torch.long)
    place = by_class.argsort()
    anchor = anchors.repeat_interleave(count)
    size = sizes[labels[anchor]]
    first = sizes.cumsum(0)[labels[anchor]] - size  # the place of the first example of the anchor's class
    draw = torch.rand(2, len(anchor), dtype=torch.float64, generator=generator)
    further = 1 + (draw[0] * (size - 1)).long()  # round the class, but not as far as the anchor
    same = by_class[first + (place[anchor] - first + further) % size]
    other = by_class[(first + size + (draw[1] * (len(labels) - size)).long()) % len(labels)]
    return torch.stack([anchor.repeat(2), torch.cat([same, other])], dim=1)
