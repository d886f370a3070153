"""Linear: one trained row of weights per class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from everlearn.heads.statistics import names_of


def append_rows(parameter: nn.Parameter, rows: Tensor) -> nn.Parameter:
    """A parameter with `rows` added below; the old rows and `requires_grad` stay as they are."""
    grown = torch.cat([parameter.detach(), rows.to(parameter)])
    return nn.Parameter(grown, requires_grad=parameter.requires_grad)


class Linear(nn.Module):
    """Scores W f + b, with W and b trained by the method.

    `grow` appends rows and leaves the old ones bit for bit as they are. It *replaces* the
    parameters, so it is called in `begin_task`, before the optimizer is made.

    Args:
        width: length of a feature vector.
        bias: whether each class has an offset.

    >>> head = Linear(4)
    >>> head.grow(2)
    >>> old = head.weight.detach().clone()
    >>> head.grow(5)
    >>> head(torch.zeros(3, 4)).shape, torch.equal(head.weight[:2], old)
    (torch.Size([3, 5]), True)
    """

    def __init__(self, width: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, width))
        self.bias = nn.Parameter(torch.empty(0)) if bias else None

    @property
    def classes(self) -> int:
        """How many classes it scores."""
        return len(self.weight)

    def grow(self, classes: int | Sequence[str]) -> None:
        """Have a row for each of these classes, given by names or number. New rows are small (normal,
        deviation 0.01, offset 0), so that a new class neither wins nor loses by its start."""
        new = len(names_of(classes)) - self.classes
        if new <= 0:
            return
        self.weight = append_rows(self.weight, 0.01 * torch.randn(new, self.weight.shape[1]))
        if self.bias is not None:
            self.bias = append_rows(self.bias, torch.zeros(new))

    def forward(self, features: Tensor) -> Tensor:
        """(n, width) features -> (n, classes) scores."""
        return nn.functional.linear(features, self.weight, self.bias)
