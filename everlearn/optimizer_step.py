"""OptimizerStep: from a loss to changed weights, with the checks that every method wants."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from everlearn.errors import EverlearnError
from everlearn.streams.stream import Examples


class OptimizerStep:
    """One step of the optimizer. Call it with the loss; or, to change gradients in between, call
    `backward(loss)` and then `apply()`.

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
        if not torch.isfinite(loss):
            ids = list(self.batch.ids[:5]) if self.batch is not None else []
            raise EverlearnError(
                f"the loss is {loss.item()} at a batch with the records {', '.join(map(str, ids))}…: the last "
                "checkpoint is untouched; lower the learning rate (--method.lr) or look at these records"
            )
        if not add:
            self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

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

    def _trained(self) -> list[torch.Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _update(self) -> None:
        self.optimizer.step()
        # Fused optimizers write without telling: features would be served of weights long gone.
        torch.autograd.graph.increment_version(self._trained())
