"""Calibration: one temperature, so that of all answers given with probability 0.8 about 80 in 100 are right.

Scores of different heads are logits, cosines, squared distances or least squares, and a plain softmax of them is often
far too unsure or too sure. `p = softmax(scores / T)` keeps the order of the classes, and T is fitted on examples that
the model has not learned (Guo, Pleiss, Sun & Weinberger, ICML 2017, https://arxiv.org/abs/1706.04599).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everlearn.evaluation import CHUNK
from everlearn.method import Method
from everlearn.progress import Progress
from everlearn.seeds import derived_seed
from everlearn.streams.inputs import Input
from everlearn.streams.stream import NO_EXAMPLES, Examples, Task

AT_ONCE = 1024  # examples whose probabilities are in memory
BINS = 15
SHARE = 0.05
"""Of the examples of a class, so many are for calibration."""
MOST = 50
"""And at most so many of a class."""
CHOICE = 5  # what the seed of the choice is derived for


def held_out_of(method: Method, task: Task) -> Examples:
    """The examples of a task that the temperature is fitted on. They take no example away from the training, so that
    all methods learn from the same examples, and they are never test examples.

    A method whose `forget` is exact gives examples that it has learned: a copy of it forgets them, and the copy is
    asked. Other methods give the validation examples of the stream; where there are none, no temperature is fitted.

    >>> from everlearn import backbones, methods
    >>> from everlearn.testing.toy import toy_stream
    >>> [len(held_out_of(methods.get(name)(backbones.load("tiny")), toy_stream()[0])) for name in ("lda", "finetune")]
    [6, 0]
    """
    if task.goal != "classes" or method.tags.task_at_test == "needed":
        return NO_EXAMPLES
    examples = task.train if method.is_exact else task.validation
    if not len(examples):
        return NO_EXAMPLES
    random = np.random.default_rng(derived_seed(method.seed, task.index, CHOICE) % 2**63)
    counts = {label: count for label, count in enumerate(examples.labels.bincount().tolist()) if count}
    wanted = {label: min(max(round(SHARE * count), 1), MOST) for label, count in counts.items()}
    if method.is_exact:  # small classes give up to a fifth, and each keeps one
        wanted = {label: min(max(n, min(counts[label] // 5, 5)), counts[label] - 1) for label, n in wanted.items()}
    return examples[draw(examples, wanted, random)]


def draw(examples: Examples, counts: dict[int, int], random: np.random.Generator) -> list[int]:
    """Up to `counts` rows of each label, in order."""
    of_label: dict[int, list[int]] = {label: [] for label in counts}
    for row, label in enumerate(examples.labels.tolist()):
        if label in of_label:
            of_label[label].append(row)
    return sorted(row for label, rows in of_label.items() for row in random.permutation(rows)[: counts[label]].tolist())


def scores_of(method: Method, inputs: Sequence[Input], progress: bool = False) -> Tensor:
    """The method's scores (n, classes) in float32 on the CPU, without gradient."""
    parts = []
    with torch.no_grad(), Progress(len(inputs), "answering", progress, always=False) as bar:
        for start in range(0, len(inputs), CHUNK):
            parts.append(method.predict(inputs[start : start + CHUNK]))
            bar.advance(len(parts[-1]))
    return torch.cat(parts).float().cpu() if parts else torch.empty(0, len(method.task.class_names))


def fitted_temperature(method: Method, held_out: Examples) -> float | None:
    """The temperature of a method, by the examples that `held_out_of` gave; None where there are none."""
    if not len(held_out):
        return None
    if method.is_exact:
        method = _copy(method)  # sums that are subtracted and added again would lose digits
        method.forget(held_out)
    return temperature(scores_of(method, held_out.inputs), held_out.labels)


def _copy(method: Method) -> Method:
    """A method of its own on the same backbone, which need not be loaded."""
    copied = copy.copy(method)
    copied.__dict__["_modules"] = {name: child if child is method.backbone else copy.deepcopy(child)
                                   for name, child in method.named_children()}  # fmt: skip
    return copied


def temperature(scores: Tensor, labels: Tensor) -> float:
    """The T above 0 whose probabilities softmax(scores / T) make the labels likeliest.

    The label is taken as right in n + 1 of n + 2 cases, and the best other class in the other (as Platt, 1999, does):
    where all answers are right, T would else be 0, and every probability 1.

    Args:
        scores: (n, classes), of examples that the model has not learned; -inf for a class that it rules out.
        labels: (n,).

    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <...>
    >>> logits = 3 * torch.randn(4000, 5)
    >>> labels = torch.distributions.Categorical(logits=logits).sample()
    >>> round(temperature(7 * logits, labels))
    7
    """
    scores = scores.double()
    impossible = scores == -math.inf  # classes that the model rules out
    scores = (scores - scores.amax(1, keepdim=True)).masked_fill(impossible, 0)
    mean = scores.sum(1) / (~impossible).sum(1)
    own = torch.nn.functional.one_hot(labels, scores.shape[1]).bool()
    right = torch.where((own & impossible).any(1), mean, scores[own])  # ruled out wrongly: any class is as likely
    best_other = scores.masked_fill(own | impossible, -math.inf).amax(1)
    best_other = torch.where(best_other == -math.inf, right, best_other)
    n = len(scores)
    target = ((n + 1) * right + best_other).sum() / (n + 2)
    spread = float((right - best_other).abs().mean())
    if not 0 < spread < math.inf:  # a single class, or scores that say nothing
        return 1.0

    def too_sure(sharpness: float) -> bool:
        """Whether the expected score exceeds that of the labels: the derivative of the likelihood by 1 / T."""
        chances = (sharpness * scores).masked_fill(impossible, -math.inf).softmax(1)
        return bool((chances * scores).sum() > target)

    low, high = math.log(1e-6 / spread), math.log(1e6 / spread)
    for _ in range(50):  # the derivative grows with 1 / T, so its zero is found by halving
        middle = (low + high) / 2
        low, high = (low, middle) if too_sure(math.exp(middle)) else (middle, high)
    return math.exp(-(low + high) / 2)


def probabilities(scores: Tensor, temperature: float | None) -> Tensor:
    """softmax(scores / T) in float64, (n, classes); T is 1 where it is None.

    >>> probabilities(torch.tensor([[2.0, 2.0]]), temperature=0.5).tolist()
    [[0.5, 0.5]]
    """
    return (scores.double() / (temperature or 1.0)).softmax(1)


def reliability(probabilities: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Of 15 equally wide intervals of the largest probability: the examples in it, their mean, and how many are right.

    Args:
        probabilities: (n, classes).
        labels: (n,).

    >>> [bin for bin in reliability(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1])) if bin["examples"]]
    [{'examples': 2, 'confidence': 0.9, 'accuracy': 0.5}]
    """
    confidence, predicted = probabilities.double().max(1)
    return _binned(confidence, predicted == labels)


def _binned(confidence: Tensor, is_right: Tensor) -> list[dict[str, Any]]:
    """What `reliability` says of largest probabilities (n,) and of whether their classes are right (n,)."""
    right = is_right.double()
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    counts = place.bincount(minlength=BINS)
    sums = (torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, values) for values in (confidence, right))
    means = ((total / counts.clamp_min(1)).tolist() for total in sums)
    return [{"examples": n, "confidence": round(c, 6) if n else None, "accuracy": round(a, 6) if n else None}
            for n, c, a in zip(counts.tolist(), *means, strict=True)]  # fmt: skip


def expected_calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """The mean distance of confidence and accuracy, over the bins, weighted by their examples (in [0, 1]).

    >>> expected_calibration_error([{"examples": 2, "confidence": 0.9, "accuracy": 0.5}])
    0.4
    """
    total = sum(bin["examples"] for bin in bins)
    return sum(bin["examples"] * abs(bin["confidence"] - bin["accuracy"]) for bin in bins if bin["examples"]) / total


def measured(scores: Tensor, labels: Tensor, temperature: float | None, held_out: int) -> dict[str, Any]:
    """The entry `calibration` of results.json.

    Args:
        scores: (n, classes) of test examples. labels: (n,) theirs.
        temperature: fitted on other examples; None where there were none.
        held_out: how many of these.
    """

    def binned(temperature: float | None) -> list[dict[str, Any]]:
        # In parts: the probabilities of all examples and classes together take twice the memory of the scores.
        parts = [probabilities(part, temperature).max(1) for part in scores.split(AT_ONCE)]
        return _binned(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]) == labels)

    bins, plain = binned(temperature), binned(None)
    return {
        "temperature": temperature, "fitted_on": held_out, "bins": bins,
        "expected_calibration_error": expected_calibration_error(bins),
        "without_temperature": expected_calibration_error(plain),
    }  # fmt: skip
