"""The closed form: synthetic features whose ridge regression does well on all real features.

KIP (Nguyen, Chen & Lee, Dataset Meta-Learning from Kernel Ridge-Regression, ICLR 2021,
https://arxiv.org/abs/2011.00050) differentiates through the solution of kernel ridge regression, and FRePo (Zhou,
Nezhadarya & Ba, NeurIPS 2022, https://arxiv.org/abs/2206.00719) does so on the features of a network. Here the network
is a frozen encoder, so the solution and its gradient are exact, and a set takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from everlearn.distillation.subsets import centres, rows_by_class
from everlearn.progress import Progress
from everlearn.seeds import derived_seed


def ridge(rows: Tensor, targets: Tensor, strength: float) -> Tensor:
    """The weight (width, classes) of ridge regression, with gradient to the rows (n, width) and targets (n, classes).

    The smaller of the two equal systems is solved. λ is `strength` times the mean square of a row's length.

    >>> ridge(torch.eye(2), torch.eye(2), 1.0).round(decimals=3).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    n, width = rows.shape
    shift = strength * rows.square().sum(1).mean()
    if n < width:
        gram = rows @ rows.T + shift * torch.eye(n).to(rows)
        return rows.T @ torch.linalg.solve(gram, targets)
    moments = rows.T @ rows + shift * torch.eye(width).to(rows)
    return torch.linalg.solve(moments, rows.T @ targets)


def centred(labels: Tensor, classes: int) -> Tensor:
    """One-hot labels less their mean, (n, classes), as in KIP: the scores of no class are favoured."""
    return one_hot(labels, classes).double() - 1 / classes


def outer_loss(synthetic: Tensor, targets: Tensor, real: Tensor, wanted: Tensor, strength: float) -> Tensor:
    """The squared error, mean over real features, of the ridge regression of synthetic ones: a scalar.

    Args:
        synthetic: (m, width). targets: (m, classes). real: (n, width). wanted: (n, classes).
    """
    weight = ridge(normalize(synthetic, dim=1), targets, strength)
    return (real @ weight - wanted).square().sum(1).mean()


def distil_features(
    features: Tensor, labels: Tensor, classes: int, per_class: int, *, learn_labels: bool = False, steps: int = 150,
    lr: float = 0.003, strength: float = 0.1, batch_size: int = 2048, seed: int = 0, progress: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Synthetic features (m, width) of length 1, their labels (m,) and targets (m, classes), float32.

    They begin as the centres of k-means of each class. Computed in float64.

    Args:
        features: (n, width) of real examples. labels: (n,).
        learn_labels: whether the targets are those of `best_labels`; otherwise they are the labels.
        steps: of Adam. lr: its learning rate.
        strength: of the penalty of the ridge regression.
        batch_size: real examples in a step.

    >>> features = torch.cat([torch.randn(20, 4) + 3, torch.randn(20, 4) - 3])
    >>> made, labels, _ = distil_features(features, torch.arange(40) // 20, 2, 1, steps=5)
    >>> tuple(made.shape), labels.tolist()
    ((2, 4), [0, 1])
    """
    real, wanted = normalize(features.double(), dim=1), centred(labels, classes)
    parts = [centres(real[rows], min(per_class, len(rows)), seed) for rows in rows_by_class(labels)]
    own = torch.cat(
        [labels[rows[:1]].expand(len(part)) for rows, part in zip(rows_by_class(labels), parts, strict=True)]
    )
    synthetic, targets = normalize(torch.cat(parts), dim=1).requires_grad_(True), centred(own, classes)
    adam = torch.optim.Adam([synthetic], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    generator = torch.Generator().manual_seed(derived_seed(seed))
    with Progress(steps, "distilling features", progress) as bar:
        for _ in range(steps):
            batch = torch.randperm(len(real), generator=generator)[:batch_size]
            loss = outer_loss(synthetic, targets, real[batch], wanted[batch], strength)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
            bar.advance(text=f"loss {float(loss.detach()):.4f}")
    made = normalize(synthetic.detach(), dim=1)
    if learn_labels:
        targets = best_labels(made, real, wanted, strength)
    return made.float(), own, targets.float()


def best_labels(synthetic: Tensor, real: Tensor, wanted: Tensor, strength: float) -> Tensor:
    """The labels (m, classes) of synthetic features (m, width) whose ridge regression has the least squared error on
    the real ones: the scores are linear in them, so they are solved for (Nguyen, Chen & Lee, Dataset Meta-Learning from
    Kernel Ridge-Regression, ICLR 2021, https://arxiv.org/abs/2011.00050).

    Args:
        real: (n, width). wanted: (n, classes).

    >>> real = torch.eye(3).double()
    >>> labels = best_labels(real, real, real, strength=1.0)
    >>> torch.allclose(real @ ridge(real, labels, 1.0), real, atol=1e-6)
    True
    """
    smoother = ridge(synthetic, torch.eye(len(synthetic)).to(synthetic), strength)  # (width, m)
    moments = smoother.T @ (real.T @ real) @ smoother
    moments.diagonal().add_(1e-10 * moments.diagonal().mean())  # more labels than the scores need: take small ones
    return torch.linalg.solve(moments, smoother.T @ (real.T @ wanted))
