"""How much each trained weight matters to what a model answers, by the gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from everlearn.method import Method
from everlearn.streams.stream import Examples

FisherLabels = Literal["sampled", "exact", "empirical"]
"""Where the labels of a Fisher information come from."""

Weighted = Iterable[tuple[float, Tensor]]
"""Scalars, and the weight of each."""


def example_gradients(
    method: Method, examples: Examples, most: int, scalars: Callable[[Tensor, int], Weighted]
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """The gradients of what is computed from the scores of one example at a time.

    Args:
        method: a classifier.
        examples: of which some are used.
        most: how many of them; they are drawn by torch's random state.
        scalars: gives for the scores (1, classes) of an example and its row in `examples` the scalars to differentiate,
            and the weight of each.

    Returns:
        For each scalar its weight, divided by the number of examples, and the gradients (tensors of the shapes of the
        trained parameters, by their names). A parameter that has no influence is missing. That of an embedding is a
        sparse tensor, with the rows that the example reads.

    >>> from everlearn import backbones, methods
    >>> from everlearn.testing import toy_stream
    >>> method, task = methods.get("finetune")(backbones.load("tiny"), train="head"), toy_stream()[0]
    >>> method.begin_task(task.sealed())
    >>> found = example_gradients(method, task.train, 4, lambda scores, row: [(1.0, scores.sum())])
    >>> [(weight, gradients["head.bias"].tolist()) for weight, gradients in found][:1]
    [(0.25, [1.0, 1.0])]
    """
    trained = method.trained()
    chosen = torch.randperm(len(examples))[:most].tolist()
    # A single short example is as fast in float32 as in bfloat16, whose compiled kernels for every length take memory.
    with method.backbone.full_precision(), _sparse_embeddings(method):
        for row in chosen:
            for weight, scalar in scalars(method.scores(examples[[row]].inputs), row):
                found = torch.autograd.grad(scalar, list(trained.values()), allow_unused=True, retain_graph=True)
                gradients = {name: g for name, g in zip(trained, found, strict=True) if g is not None}
                yield weight / len(chosen), {n: g.coalesce() if g.is_sparse else g for n, g in gradients.items()}


@contextmanager
def _sparse_embeddings(method: nn.Module) -> Iterator[None]:
    """Inside the block, the gradient of an embedding has no rows of words that were not read: for one short text, to
    fill them with zeros and to add them takes as long as all the rest."""
    tables = [module for module in method.modules() if isinstance(module, nn.Embedding) and not module.sparse]
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False


def diagonal_fisher(
    method: Method, examples: Examples, most: int, classes: Sequence[int] | None = None,
    labels: FisherLabels = "sampled",
) -> dict[str, Tensor]:  # fmt: skip
    """The mean squared gradient of log p(y|x), one example at a time.

    "sampled" and "exact" are the Fisher information, by one label drawn from the model or by all of them: "exact" does
    not depend on chance, and takes one backward pass for every class. "empirical" takes the labels of the data:
    Kunstner, Balles & Hennig (NeurIPS 2019, https://arxiv.org/abs/1905.12558) show how it differs from the Fisher
    information. The square of the gradient of a batch, in which examples cancel each other, is none of the three.

    Args:
        method: a classifier.
        examples: whose inputs are used, and their labels only where `labels` is "empirical".
        most: how many of them; they are drawn by torch's random state.
        classes: the classes among which p(y|x) is; all by default.
        labels: y is drawn from the model ("sampled"); every class, weighted by the model's probability of it ("exact");
            or the label of the data ("empirical").

    Returns:
        For each trained parameter by its name a tensor of the same shape.

    >>> from everlearn import backbones, methods
    >>> from everlearn.testing import toy_stream
    >>> method, task = methods.get("finetune")(backbones.load("tiny"), train="head"), toy_stream()[0]
    >>> method.begin_task(task.sealed())
    >>> {name: tuple(tensor.shape) for name, tensor in diagonal_fisher(method, task.train, most=4).items()}
    {'head.weight': (2, 32), 'head.bias': (2,)}
    """

    def log_probabilities(scores: Tensor, row: int) -> Weighted:
        log_p = (scores if classes is None else scores[:, list(classes)]).log_softmax(-1)[0]
        if labels == "sampled":
            return [(1.0, log_p[int(torch.multinomial(log_p.detach().exp(), 1))])]
        if labels == "exact":
            return zip(log_p.detach().exp().tolist(), log_p, strict=True)
        label = int(examples.labels[row])
        return [(1.0, log_p[label if classes is None else list(classes).index(label)])]

    fisher = {name: torch.zeros_like(parameter) for name, parameter in method.trained().items()}
    for weight, gradients in example_gradients(method, examples, most, log_probabilities):
        for name, gradient in gradients.items():
            fisher[name].add_(gradient.square(), alpha=weight)
    return fisher
