"""SLCA: a slow backbone, a fast head, and a head re-trained on Gaussian features (Zhang et al., 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from everlearn.backbones.backbone import Backbone
from everlearn.memory.gaussian_replay import GaussianReplay
from everlearn.method import Method, Tags
from everlearn.peft.unified import train_part
from everlearn.settings import Count, LargeSize, Natural, Rate, Seed
from everlearn.state import grown
from everlearn.streams.stream import Task

ALIGNMENT_BATCH = 256
MOMENTUM = 0.9
TEMPERATURE = 0.1  # of the normalised scores
STEEPEST = 0.3  # the largest norm of the head's gradient in the alignment, as a share of the norm of the features


def last_tenth(optimizer: torch.optim.Optimizer, steps: int) -> MultiStepLR:
    """The learning rate is divided by ten for the last tenth of the steps."""
    return MultiStepLR(optimizer, [max(1, steps * 9 // 10)], gamma=0.1)


class SLCA(Method):
    """SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model.
    Zhang, Wang, Kang, Chen & Wei, ICCV 2023, https://arxiv.org/abs/2303.05118

    Train the whole encoder on each task, but far slower than the head, with cross-entropy over the
    task's own classes. Then keep a Gaussian of each new class's features, and re-train the head
    alone on features drawn from the Gaussians of all classes, so that tasks learned apart compare.
    The Gaussians of old classes stay as they were, although the encoder has moved a little; the older a
    class is, the more its mean is shrunk towards zero.

    Departures: the head is aligned after the first task too, and training continues from the aligned head
    (the published code continues from the head as it was before alignment). The published rate of the head, 0.01, is
    for a ViT, whose features have a norm of about 55: `head_lr` says the same for any encoder. The head has no weight
    decay; the published one takes 0.000005 of a weight in a step. While the head is aligned, the norm of its gradient
    is limited to 0.3 of that of the features, which rows of usual size do not reach.

    Args:
        backbone: a pre-trained encoder.
        train: what is trained slowly: "full" (every weight, as published) or an insertion.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the encoder (SGD, momentum 0.9, weight decay 5e-4).
        head_lr: learning rate of the head for features of norm 1, also while it is aligned (SGD, momentum 0.9). It is
            divided by the square of their norm, because a step of SGD changes a score by the rate times the squared
            size of the features.
        alignment_epochs: passes over the drawn features; they are drawn afresh in each.
        samples: features drawn for each class in an epoch.
        seed: of the insertion, the order of examples, the new rows of the head and the drawn features.
        settings: order and rescore, as of every method that trains (`Method`).

    Relations: `finetune` without the Gaussians; `lda` and `fecam` predict by the Gaussians themselves.

    >>> from everlearn import backbones
    >>> SLCA(backbones.load("tiny"), epochs=1).head_lr
    30.0
    """

    tags = Tags(family="representation", trains="backbone")
    Optimizer = torch.optim.SGD
    schedule = staticmethod(last_tenth)
    masked = aligned = True
    last_task: Tensor

    def __init__(
        self, backbone: Backbone, *, train: str = "full", epochs: Count = 20, batch_size: Count = 128, lr: Rate = 1e-4,
        head_lr: Rate = 30.0, alignment_epochs: Natural = 5, samples: LargeSize = 256, seed: Seed = 0,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.head_lr, self.alignment_epochs, self.samples = head_lr, alignment_epochs, samples
        self.memory = GaussianReplay(backbone.width)
        self.register_buffer("last_task", torch.zeros(0, dtype=torch.long))  # the last task that had each class
        self.deltas = train_part(backbone, train, seed=seed)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.memory.grow(len(task.class_names))
        self.last_task = grown(self.last_task, len(task.class_names))
        self.last_task[list(task.classes)] = task.index

    def param_groups(self) -> list[dict[str, Any]]:
        slow = [p for p in (*self.backbone.parameters(), *self.deltas.parameters()) if p.requires_grad]
        encoder = [{"params": slow, "momentum": MOMENTUM, "weight_decay": 5e-4}] if slow else []
        return [*encoder, self.head_group()]

    def head_group(self) -> dict[str, Any]:
        """The head, for an optimizer: while the encoder learns, and while the head is aligned."""
        return {"params": list(self.head.parameters()), "lr": self.head_rate, "momentum": MOMENTUM}

    def end_task(self, task: Task) -> None:
        if not len(task.train):
            return  # the head is aligned already
        features = self.embed(task.train.inputs)
        self.memory.add(features, self.labels(task.train))
        self.feature_norm = float(features.norm(dim=1).mean())
        self.align()

    def align(self) -> None:
        """Train the head, and nothing else, on features drawn from the Gaussians of all classes.

        The loss does not change with the size of a row, so a row near zero has a huge gradient. It is limited to what
        rows of usual size have in their first steps."""
        optimizer = torch.optim.SGD([self.head_group()], lr=self.lr, fused=True)
        schedule = CosineAnnealingLR(optimizer, T_max=max(1, self.alignment_epochs))
        tasks = one_hot(self.last_task.unique(return_inverse=True)[1]).float()
        age = 0.9 + 0.1 * (self.last_task + 1) / (self.task.index + 1)
        for features, labels in self.memory.drawn(self.samples, times=self.alignment_epochs, shrink=age):
            order = torch.randperm(len(labels)).to(labels.device)
            for rows in order.split(ALIGNMENT_BATCH):
                optimizer.zero_grad()
                self.alignment_loss(features.index_select(0, rows), labels[rows], tasks).backward()
                clip_grad_norm_(self.head.parameters(), STEEPEST * self.feature_norm)
                optimizer.step()
            schedule.step()

    def alignment_loss(self, features: Tensor, labels: Tensor, tasks: Tensor) -> Tensor:
        """Cross-entropy of scores divided by their norm within a task, averaged over tasks, so that the
        head cannot lower it by growing. `tasks` (classes, tasks) is 1 where a class is a task's."""
        scores = self.head(features)
        norm = (scores.square() @ tasks + 1e-14).sqrt().mean(1, keepdim=True)
        return cross_entropy(scores / (TEMPERATURE * norm), labels)
