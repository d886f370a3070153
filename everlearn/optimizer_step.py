"""OptimizerStep: from a loss to changed weights, with the checks that every method wants."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from everlearn.errors import EverlearnError
from everlearn.memory.per_parameter import PerParameter
from everlearn.streams.stream import Examples

OfWeights = PerParameter | Mapping[str, torch.Tensor]
"""A tensor for each parameter, of its shape, by its name."""


class OptimizerStep:
    """One step of the optimizer. Call it with the loss; or, to change gradients in between, call
    `backward(loss)` and then `apply()`. A penalty on the weights themselves is added in between by `add_penalty`.

    Args:
        optimizer: a class of optimizers. groups: the parameters. lr: the learning rate of groups without one.
        clip: the largest norm of the gradient, or None.

    Attributes:
        number: how many steps of the task came before this one; whoever takes the steps counts them.

    Raises:
        EverlearnError: the loss is NaN or infinite. Nothing is updated then.

    >>> weight = nn.Parameter(torch.ones(1))
    >>> step = OptimizerStep(torch.optim.SGD, [{"params": [weight]}], lr=0.5, clip=None)
    >>> step((3 * weight).sum())
    >>> weight.tolist()
    [-0.5]
    """

    def __init__(
        self, optimizer: type[torch.optim.Optimizer], groups: list[dict[str, Any]], lr: float, clip: float | None
    ) -> None:
        # Fused, where the optimizer can: one pass over the weights per step instead of ten.
        fused: dict[str, Any] = {"fused": True} if "fused" in inspect.signature(optimizer).parameters else {}
        self.optimizer = optimizer(groups, lr=lr, **fused)  # type: ignore[call-arg]
        self.clip = clip
        self.schedule: Any = None
        self.batch: Examples | None = None
        self.number = 0

    def __call__(self, loss: torch.Tensor) -> None:
        self.backward(loss)
        self.apply()

    def backward(self, loss: torch.Tensor, *, add: bool = False) -> None:
        """Set the gradients from the loss, a scalar; or add them to those that are there."""
        self._check(loss)
        if not add:
            self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    @torch.no_grad()
    def add_penalty(
        self, strength: float, parameters: Mapping[str, nn.Parameter], anchor: OfWeights,
        importance: OfWeights | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Add to the gradients those of strength · Σ importance · (parameter − anchor)², which keeps important weights
        near their old values (EWC, SI, MAS, L2-SP).

        As a part of the loss it would keep a graph as large as the model beside the activations of the batch. Here it
        takes one tensor of the size of one parameter, after `backward`, when the activations are gone.

        A parameter whose term is zero gets no gradient, and not one of zero, with which the optimizer would let it
        decay: a weight that the loss does not reach stays as it is.

        Args:
            parameters: by name; those without an anchor are free.
            anchor: the values to stay near, by name.
            importance: of the same shapes; 1 everywhere by default.

        Returns:
            The penalty, a scalar.

        Raises:
            EverlearnError: the penalty is NaN or infinite.

        >>> weight = nn.Parameter(torch.tensor([2.0, 2.0]))
        >>> step = OptimizerStep(torch.optim.SGD, [{"params": [weight]}], lr=0.5, clip=None)
        >>> held = {"anchor": {"w": torch.zeros(2)}, "importance": {"w": torch.tensor([1.0, 0.5])}}
        >>> step.add_penalty(2.0, {"w": weight}, **held), weight.grad
        (tensor(12.), tensor([8., 4.]))
        """
        penalty = torch.zeros((), device=next(iter(parameters.values())).device)
        for name, parameter in parameters.items():
            if name not in anchor:
                continue
            drift = parameter - anchor[name]
            gradient = torch.zeros_like(drift) if parameter.grad is None else parameter.grad
            if importance is None:
                gradient.add_(drift, alpha=2 * strength)
                term = strength * drift.square_().sum()
            else:
                gradient.addcmul_(drift, importance[name], value=2 * strength)
                term = strength * torch.dot(drift.square_().flatten(), importance[name].flatten())
            penalty += term
            if parameter.grad is None and term != 0:
                parameter.grad = gradient
        self._check(penalty)
        return penalty

    def apply(self) -> None:
        """Change the weights by the gradients, and the learning rate as the schedule says."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self._trained(), self.clip)
        self._update()
        if self.schedule is not None:
            self.schedule.step()

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Inside the block the weights are where the step by the present gradients would take them. After it weights,
        gradients and the state of the optimizer are as before, to the bit."""
        trained, state = self._trained(), self.optimizer.state
        kept = [parameter.detach().clone() for parameter in trained]
        copied = {parameter: {name: value.clone() if isinstance(value, torch.Tensor) else value
                              for name, value in of_one.items()} for parameter, of_one in state.items()}  # fmt: skip
        self.optimizer.state = defaultdict(dict, copied)
        try:
            self._update()
            yield
        finally:
            self.optimizer.state = state
            with torch.no_grad():
                for parameter, values in zip(trained, kept, strict=True):
                    parameter.copy_(values)

    def _check(self, loss: torch.Tensor) -> None:
        """Refuse a loss that is not a number."""
        if not torch.isfinite(loss):
            ids = list(self.batch.ids[:5]) if self.batch is not None else []
            raise EverlearnError(
                f"the loss is {loss.item()} at a batch with the records {', '.join(map(str, ids))}…: the last "
                "checkpoint is untouched; lower the learning rate (--method.lr) or look at these records"
            )

    def _trained(self) -> list[torch.Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _update(self) -> None:
        self.optimizer.step()
        # Fused optimizers write without telling: features would be served of weights long gone.
        torch.autograd.graph.increment_version(self._trained())
