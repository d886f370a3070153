"""Cached gradients: a loss that compares all examples of a batch, in the memory of a part of the batch.

Gao, Zhang, Han & Callan (2021), https://arxiv.org/abs/2101.06983: the features are computed part by part and only they
are kept. The loss gives the gradient of each feature, and each part is computed once more, now to be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.checkpoint import checkpoint

from everlearn.batches import of_similar_length
from everlearn.streams.inputs import Input


def in_parts(
    features: Callable[[list[Input]], torch.Tensor], inputs: Sequence[Input], lengths: Sequence[int], most_tokens: int
) -> torch.Tensor:
    """Features (n, width) with the gradients that `features(inputs)` has. Where the inputs have too many tokens, they
    are computed in parts of similar length, and once more in the backward pass.

    Args:
        features: a function from inputs to (n, width), each row of which depends on its own input alone.
        lengths: the number of tokens of each input.
        most_tokens: the most tokens of a part, padding included; a single input may have more.

    >>> weight = torch.tensor([2.0], requires_grad=True)
    >>> found = in_parts(lambda texts: weight * torch.tensor([[float(x)] for x in texts]), ["3", "1"], [3, 1], 3)
    >>> found.sum().backward()
    >>> found.tolist(), weight.grad.tolist()
    ([[6.0], [2.0]], [4.0])
    """
    parts = of_similar_length(lengths, most_tokens, len(inputs))
    if len(parts) == 1:
        return features(list(inputs))
    found = [checkpoint(features, [inputs[row] for row in part], use_reentrant=False) for part in parts]
    place = torch.tensor([row for part in parts for row in part], device=found[0].device).argsort()
    return torch.cat(found)[place]
