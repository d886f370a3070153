"""Soft pairs: a few soft queries and documents a domain, on which a retriever is trained in a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.distillation import judge
from everlearn.distillation.bilevel import Soft, Weights, distil, trained_on
from everlearn.distillation.data_set import DistilledSet
from everlearn.distillation.soft import Learner, OnPairs, called, differentiable_twice, embedded
from everlearn.errors import EverlearnError
from everlearn.metrics.retrieval import comparable, ndcg_at_k, nearest
from everlearn.seeds import derived_seed
from everlearn.streams.stream import Corpus, Examples, Task

Judged = dict[str, float]


def distil_pairs(
    tasks: Sequence[Task], backbone: Backbone, *, per_domain: int, length: int, train: str, inner: dict[str, Any],
    soft_documents: bool, steps: int, rate: float, batch_size: int, seed: int, progress: bool,
) -> tuple[DistilledSet, dict[str, Any]]:  # fmt: skip
    """Distil pairs of every domain; the set, not yet with its recipe, and a report of nDCG@10 in the mean over domains.

    Raises:
        EverlearnError: there are no validation queries, by which sets are judged.
    """
    if not all(len(task.validation) for task in tasks):
        raise EverlearnError("the stream has no validation queries, by which sets are judged: give "
                             "--stream.validation 0.2")  # fmt: skip
    real = Examples.concatenate([task.train for task in tasks])
    assert real.positives is not None
    rows = _drawn(tasks, per_domain, seed)
    began = {"queries": embedded(backbone, [str(real.inputs[row]) for row in rows], length)}
    given = [real.positives[row] for row in rows]
    if soft_documents:
        began["documents"] = embedded(backbone, given, length)
    learner = Learner(backbone, train, classes=None, seed=seed)
    try:
        soft = Soft(began, **inner)
        problem = OnPairs(learner, real.inputs, real.positives, None if soft_documents else given)
        with differentiable_twice(backbone):
            untouched = scored(learner, {}, tasks)
            losses = distil(problem, soft, steps=steps, lr=rate, batch_size=batch_size, seed=seed, progress=progress)
            soft.requires_grad_(False)
            starts = [
                scored(learner, _after(problem, soft, derived_seed(seed, 10**6 + number)), tasks) for number in range(3)
            ]
            equal = [random_pairs(learner, real, tasks, per_domain, soft.rates(), derived_seed(seed, number))
                     for number in range(3)]  # fmt: skip
    finally:
        learner.close()
    report = {
        "nDCG@10": {"distilled set": judge.from_starts(starts), "untouched encoder": untouched,
                    f"{len(rows)} random real pairs, as many steps": judge.from_starts(equal)},
        "loss": {"first": losses[0], "last": losses[-1]},
    }  # fmt: skip
    tensors = {name: tensor.detach() for name, tensor in soft.sequences.items()}
    made = DistilledSet("soft pairs", (), {"name": backbone.name, "identity": backbone.identity()}, {},
                        {**tensors, "rates": soft.rates().detach()},
                        documents=() if soft_documents else tuple(given))  # fmt: skip
    return made, report


def _drawn(tasks: Sequence[Task], per_domain: int, seed: int) -> list[int]:
    """Rows of random training pairs of each domain, in the examples of all of them."""
    rows, first = [], 0
    for task in tasks:
        generator = torch.Generator().manual_seed(derived_seed(seed, task.index))
        order = torch.randperm(len(task.train), generator=generator)[:per_domain]
        rows += (first + order).tolist()
        first += len(task.train)
    return rows


def _after(problem: OnPairs, soft: Soft, seed: int) -> Weights:
    weights = trained_on(problem.inner(soft, 0), problem.start(seed), soft.rates())
    return {name: weight.detach() for name, weight in weights.items()}


def random_pairs(
    learner: Learner, real: Examples, tasks: Sequence[Task], per_domain: int, rates: Tensor, seed: int
) -> Judged:
    """nDCG@10 after as many steps on random real pairs, at the best on validation queries of 0.01 to 10 times the first
    of the step sizes."""
    assert real.positives is not None
    rows = _drawn(tasks, per_domain, seed)
    problem = OnPairs(learner, [real.inputs[row] for row in rows], [real.positives[row] for row in rows])
    everything, found = torch.arange(len(rows)), list[Judged]()
    for factor in (0.01, 0.1, 1.0, 10.0):
        weights = problem.start(seed)
        for step in rates:
            gradients = torch.autograd.grad(problem.outer(weights, everything), list(weights.values()),
                                            allow_unused=True, materialize_grads=True)  # fmt: skip
            weights = {name: (weight - factor * step * gradient).detach().requires_grad_(True)
                       for (name, weight), gradient in zip(weights.items(), gradients, strict=True)}  # fmt: skip
        found.append(scored(learner, weights, tasks))
    return max(found, key=lambda judged: judged["validation"])


@torch.no_grad()
def scored(learner: Learner, weights: Weights, tasks: Sequence[Task]) -> Judged:
    """nDCG@10 in the mean over domains, of validation and of test queries. With no weights, of the encoder itself."""
    totals = {"validation": 0.0, "test": 0.0}
    for task in tasks:
        corpus, validation = _with_validation(task)
        texts = list(corpus.texts)
        documents = _embedded(learner, weights, texts, "document")
        for part, queries in (("validation", validation), ("test", task.test)):
            asked = _embedded(learner, weights, [str(query) for query in queries.inputs], "query")
            similarity = learner.backbone.similarity
            found = nearest(comparable(asked, similarity), comparable(documents, similarity), 10)
            rankings = [[corpus.ids[place] for place in places] for places in found]
            totals[part] += float(ndcg_at_k(rankings, queries.relevant or []).mean()) / len(tasks)
    return totals


def _with_validation(task: Task) -> tuple[Corpus, Examples]:
    """The documents of the task and those that its validation queries ask for; these queries with their answers."""
    assert task.corpus is not None
    assert task.validation.positives is not None
    ids = {text: id for id, text in zip(task.corpus.ids, task.corpus.texts, strict=True)}
    for text in task.validation.positives:
        ids.setdefault(text, f"validation {len(ids)}")
    relevant = [{ids[text]: 1} for text in task.validation.positives]
    found = task.validation
    return Corpus(list(ids.values()), list(ids)), Examples(found.inputs, found.labels, found.ids, relevant=relevant)


def _embedded(learner: Learner, weights: Weights, texts: list[str], role: Any) -> Tensor:
    backbone = learner.backbone
    with backbone.reading(role), learner.deltas.only(bool(weights)):
        return backbone.infer(texts, lambda batch, rows: called(learner, weights, batch))
