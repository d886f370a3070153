"""FirstWeights: the trained weights as they were first, for methods that start again with every task."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class FirstWeights:
    """The trained weights of a method as it was built. Weights that nothing trains are not kept twice.

    It is no state of a run: who resumes one builds the method from the same pre-trained encoder first.

    Args:
        trained: the parameters by name, as `Method.trained` gives them; the head has no rows yet.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> first = FirstWeights({"backbone.weight": weight})
    >>> _ = weight.data.zero_()
    >>> first.restore({"backbone.weight": weight})
    >>> weight.tolist()
    [1.0, 1.0]
    """

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        self._values = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Set parameters, of any shape, to their first values; the rows that a head has now become zero."""
        for name, parameter in parameters.items():
            if name.startswith("head."):
                parameter.zero_()
            elif name in self._values:
                parameter.copy_(self._values[name])
