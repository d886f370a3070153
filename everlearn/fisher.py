"""The diagonal Fisher information: how much each trained weight matters to what a model answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from everlearn.method import Method
from everlearn.streams.stream import Examples


def diagonal_fisher(
    method: Method, examples: Examples, most: int, classes: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """The mean squared gradient of log p(y|x), y drawn from the model, one example at a time.

    Kunstner, Balles & Hennig (NeurIPS 2019, https://arxiv.org/abs/1905.12558) show what the labels of the data would
    give instead. The square of the gradient of a batch, in which examples cancel each other, is no Fisher information.

    Args:
        method: a classifier.
        examples: whose inputs are used; their labels are not.
        most: how many of them; they are drawn by torch's random state.
        classes: the classes among which p(y|x) is; all by default.

    Returns:
        For each trained parameter by its name a tensor of the same shape.

    >>> from everlearn import backbones, methods
    >>> from everlearn.testing import toy_stream
    >>> method, task = methods.get("finetune")(backbones.load("tiny"), train="head"), toy_stream()[0]
    >>> method.begin_task(task.sealed())
    >>> {name: tuple(tensor.shape) for name, tensor in diagonal_fisher(method, task.train, most=4).items()}
    {'head.weight': (2, 32), 'head.bias': (2,)}
    """
    trained = method.trained()
    fisher = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    chosen = torch.randperm(len(examples))[:most].tolist()
    with method.backbone.mixed_precision():  # around them all: the weights are cast once, not for every example
        for row in chosen:
            scores = method.scores(examples[[row]].inputs)
            log_p = (scores if classes is None else scores[:, list(classes)]).log_softmax(-1)
            label = int(torch.multinomial(log_p.detach().exp(), 1))
            gradients = torch.autograd.grad(log_p[0, label], list(trained.values()), allow_unused=True)
            for total, gradient in zip(fisher.values(), gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient, value=1 / len(chosen))
    return fisher
