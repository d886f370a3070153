"""Bilevel distillation: the gradient of the loss on real data through the training steps on synthetic data.

Wang, Zhu, Torralba & Efros (2018, https://arxiv.org/abs/1811.10959) learn synthetic examples x and step sizes η such
that θ_T, T steps of gradient descent on x from θ_0, has a low loss on real data:

    θ_{k+1} = θ_k − η_k ∇_θ L_synthetic(θ_k; x),    minimise over x and η:  E_{θ_0} L_real(θ_T)

θ_0 is drawn anew in every iteration. The steps are unrolled and the graph is kept, so the gradient is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from everlearn.errors import EverlearnError
from everlearn.progress import Progress
from everlearn.seeds import derived_seed

Weights = dict[str, Tensor]
Loss = Callable[[Weights], Tensor]


def trained_on(loss: Loss, weights: Weights, rates: Tensor) -> Weights:
    """The weights after one step down the gradient of `loss` for each of the step sizes (steps,); the graph is kept, so
    they have a gradient to the step sizes and to whatever the loss depends on. The given weights do not change.

    Args:
        weights: tensors by name, each of which requires a gradient.

    >>> weight = torch.tensor(1.0, requires_grad=True)
    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> after = trained_on(lambda w: (w["w"] - x) ** 2, {"w": weight}, torch.tensor([0.25]))["w"]
    >>> after.item(), torch.autograd.grad(after, x)[0].item()  # halfway to x, and it moves with x by a half
    (2.0, 0.5)
    """
    for rate in rates:
        # Weights that the loss does not read, such as word embeddings that soft sequences pass by, stay as they are.
        gradients = torch.autograd.grad(loss(weights), list(weights.values()), create_graph=True, allow_unused=True,
                                        materialize_grads=True)  # fmt: skip
        weights = {name: w - rate * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    return weights


class Soft(nn.Module):
    """What is learned: sequences, step sizes and perhaps the labels.

    Step sizes are softplus of what is learned, so they stay positive. Labels are a softmax of it (Sucholutsky &
    Schonlau, 2019, https://arxiv.org/abs/1910.02551); without `learn_labels` they stay as given.

    Args:
        sequences: by name, each (m, length, width): "inputs", or "queries" and "documents".
        steps: how many steps of training on it. rate: the first step size.
        targets: (m, classes) labels, as logarithms of probabilities; none where the goal is ranking.

    >>> soft = Soft({"inputs": torch.zeros(2, 3, 4)}, steps=5, rate=0.5)
    >>> soft.rates().detach()
    tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self, sequences: dict[str, Tensor], *, steps: int, rate: float, targets: Tensor | None = None,
        learn_labels: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sequences = nn.ParameterDict({name: nn.Parameter(tensor.clone()) for name, tensor in sequences.items()})
        like = next(iter(sequences.values()))
        self.raw_rates = nn.Parameter(torch.full((steps,), rate).double().expm1().log().to(like))
        self.targets = None if targets is None else nn.Parameter(targets.clone(), requires_grad=learn_labels)

    def rates(self) -> Tensor:
        """The step sizes (steps,)."""
        return softplus(self.raw_rates)

    def labels(self) -> Tensor:
        """The labels as probabilities (m, classes)."""
        assert self.targets is not None
        return self.targets.softmax(1)


class Problem(Protocol):
    """Something to be trained on a soft set, and real data to measure it on."""

    examples: int
    """How many real examples there are."""

    def start(self, seed: int) -> Weights:
        """Weights to begin training with; each seed draws others."""

    def inner(self, soft: Soft, step: int) -> Loss:
        """The loss on the soft set, as a function of the weights."""

    def outer(self, weights: Weights, rows: Tensor) -> Tensor:
        """The mean loss on these rows of the real data, a scalar."""


def distil(
    problem: Problem, soft: Soft, *, steps: int, lr: float, batch_size: int, seed: int, progress: bool = False
) -> list[float]:  # fmt: skip
    """Learn the soft set, in place, with Adam (β 0.5 and 0.999, as Wang et al.); the outer loss of each step.

    Args:
        steps: each with its own start of training, and its own real examples.
        lr: learning rate; it falls to zero over the steps along a cosine.
        batch_size: real examples in a step.

    Raises:
        EverlearnError: the outer loss is not finite.
    """
    adam = torch.optim.Adam([p for p in soft.parameters() if p.requires_grad], lr=lr, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    losses = []
    with Progress(steps, "distilling soft sequences", progress) as bar:
        for step in range(steps):
            generator = torch.Generator().manual_seed(derived_seed(seed, step))
            rows = torch.randperm(problem.examples, generator=generator)[:batch_size]
            weights = trained_on(problem.inner(soft, step), problem.start(derived_seed(seed, step)), soft.rates())
            loss = problem.outer(weights, rows)
            if not torch.isfinite(loss):
                raise EverlearnError(f"the loss on real data is {loss.item()} after {step} steps of distillation: give "
                                     "a smaller --inner-rate or --rate")  # fmt: skip
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(soft.parameters(), 1.0)
            adam.step()
            schedule.step()
            losses.append(float(loss.detach()))
            bar.advance(text=f"loss {losses[-1]:.4f}")
    return losses
