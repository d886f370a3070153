"""SLCA: a slow backbone, a fast head, and a head re-trained on Gaussian features (Zhang et al., 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from everlearn import losses
from everlearn.backbones.backbone import Backbone
from everlearn.memory.gaussians import Gaussians
from everlearn.method import Method, Tags
from everlearn.state import grown
from everlearn.streams.stream import Examples, Task

ALIGNMENT_BATCH = 256
BLOCK = 256  # columns of the features drawn together
JITTER = 1e-4  # added to every variance
TEMPERATURE = 0.1  # of the normalised scores


class SLCA(Method):
    """SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model.
    Zhang, Wang, Kang, Chen & Wei, ICCV 2023, https://arxiv.org/abs/2303.05118

    Train the whole encoder on each task, but far slower than the head, with cross-entropy over the
    task's own classes. Then keep a Gaussian of each new class's features, and re-train the head
    alone on features drawn from the Gaussians of all classes, so that tasks learned apart compare.
    The Gaussians of old classes stay as they were, although the encoder has moved a little: their
    means are drawn in the more, the older they are. Their Cholesky factors stay in memory, 4 `width`²
    bytes a class, and are not saved.

    Departure: the head is aligned after the first task too, and goes on aligned (the published code goes
    on with the head as it was trained).

    Args:
        backbone: a pre-trained encoder; all of it is trained.
        epochs: passes over each task.
        batch_size: examples a step.
        lr: learning rate of the head, also while it is aligned (SGD, momentum 0.9, weight decay 5e-4).
        slowdown: how many times slower the backbone learns.
        alignment_epochs: passes over the drawn features; they are drawn afresh in each.
        samples: features drawn for each class in an epoch.
        seed: of the order of examples, the new rows of the head and the drawn features.

    Relations: `finetune` without the Gaussians; `lda` and `fecam` predict by the Gaussians themselves.

    >>> from everlearn import backbones
    >>> SLCA(backbones.load("tiny"), epochs=1).slowdown
    100.0
    """

    tags = Tags(family="representation", trains="backbone", needs_boundaries=True)
    Optimizer = torch.optim.SGD
    schedule = "step"
    since: Tensor
    factors: Tensor
    factored: Tensor

    def __init__(
        self, backbone: Backbone, *, epochs: int = 20, batch_size: int = 128, lr: float = 0.01,
        slowdown: float = 100.0, alignment_epochs: int = 5, samples: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.slowdown, self.alignment_epochs, self.samples = slowdown, alignment_epochs, samples
        self.memory = Gaussians(backbone.width)
        self.register_buffer("since", torch.zeros(0, dtype=torch.long))  # the last task that had each class
        # What follows from the Gaussians is not saved, but made again where it is missing.
        self.register_buffer("factors", torch.zeros(0, backbone.width, backbone.width), persistent=False)
        self.register_buffer("factored", torch.zeros(0, dtype=torch.long), persistent=False)  # of how many examples
        backbone.requires_grad_(True)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.memory.grow(len(task.class_names))
        for name in ("since", "factors", "factored"):
            setattr(self, name, grown(getattr(self, name), len(task.class_names)))
        self.since[list(task.classes)] = task.index

    def param_groups(self) -> list[dict[str, Any]]:
        rule = {"momentum": 0.9, "weight_decay": 5e-4}
        slow = {"params": list(self.backbone.parameters()), "lr": self.lr / self.slowdown, **rule}
        return [slow, {"params": list(self.head.parameters()), **rule}]

    def loss(self, batch: Examples) -> Tensor:
        scores = self.head(self.backbone(batch.inputs))
        return losses.cross_entropy(scores, self.labels(batch), classes=self.task.classes)

    def end_task(self, task: Task) -> None:
        self.memory.add(self.embed(task.train.inputs), self.labels(task.train))
        self.align()

    def align(self) -> None:
        """Train the head, and nothing else, on features drawn from the Gaussians of all classes."""
        optimizer = torch.optim.SGD(self.head.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, self.alignment_epochs))
        tasks = one_hot(self.since.unique(return_inverse=True)[1]).float()
        for features, labels in self.drawn():
            order = torch.randperm(len(labels)).to(labels.device)
            for rows in order.split(ALIGNMENT_BATCH):
                optimizer.zero_grad()
                self.alignment_loss(features.index_select(0, rows), labels[rows], tasks).backward()
                optimizer.step()
            schedule.step()

    @torch.no_grad()
    def factor(self) -> None:
        """Keep the Cholesky factor of each class's covariance, each made once: when it has new examples."""
        changed = (self.factored != self.memory.counts).nonzero()[:, 0]
        covariances = self.memory.covariances(changed)
        covariances.diagonal(dim1=1, dim2=2).add_(JITTER)
        factors, failed = torch.linalg.cholesky_ex(covariances.float())
        if failed.any():  # nearly singular: float32 has lost what float64 still has
            factors[failed > 0] = torch.linalg.cholesky(covariances[failed > 0]).float()
        self.factors[changed] = factors
        self.factored = self.memory.counts.clone()

    def means(self) -> Tensor:
        """(classes, width) float32, drawn in by age."""
        age = 0.9 + 0.1 * (self.since + 1) / (self.task.index + 1)
        return (self.memory.means * age[:, None]).float()

    def drawn(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each epoch `samples` features of every class that has examples, with their labels: one batched
        product, in the place of the epoch before's."""
        self.factor()
        present = self.memory.counts.nonzero()[:, 0]
        means = self.means()[present]
        factors = self.factors if len(present) == len(self.factors) else self.factors[present]
        labels = present.repeat_interleave(self.samples)
        noise = means.new_empty(len(present), self.samples, means.shape[1])
        features = torch.empty_like(noise)
        for _ in range(self.alignment_epochs):
            noise.normal_()
            for start in range(0, means.shape[1], BLOCK):
                end = start + BLOCK  # beyond it these rows of the factors are zero: a third of the work is saved
                rows = factors[:, start:end, :end]
                torch.baddbmm(means[:, None, start:end], noise[:, :, :end], rows.mT, out=features[:, :, start:end])
            yield features.flatten(0, 1), labels

    def alignment_loss(self, features: Tensor, labels: Tensor, tasks: Tensor) -> Tensor:
        """Cross-entropy of scores divided by their norm within a task, averaged over tasks, so that the
        head cannot lower it by growing. `tasks` (classes, tasks) is 1 where a class is a task's."""
        scores = self.head(features)
        norm = (scores.square() @ tasks + 1e-14).sqrt().mean(1, keepdim=True)
        return cross_entropy(scores / (TEMPERATURE * norm), labels)
