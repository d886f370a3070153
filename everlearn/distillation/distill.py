"""Distil the data of a stream into a small set, write it, and say what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from everlearn import __version__, streams
from everlearn.backbones.backbone import Backbone
from everlearn.distillation import judge
from everlearn.distillation.bilevel import Soft, Weights, distil, trained_on
from everlearn.distillation.closed_form import centred, distil_features, ridge
from everlearn.distillation.data_set import DistilledSet, Encoder
from everlearn.distillation.judge import Space
from everlearn.distillation.pairs import distil_pairs
from everlearn.distillation.soft import Learner, OnEncoder, OnHead, called, differentiable_twice, embedded
from everlearn.distillation.subsets import random_rows
from everlearn.distillation.texts import select
from everlearn.errors import EverlearnError
from everlearn.progress import Progress
from everlearn.seeds import derived_seed
from everlearn.settings import Count, Factor, Rate, Seed, Size, check
from everlearn.streams.stream import PARTS, Examples, Stream

KINDS = ("features", "texts", "soft")
SHARP = 5.0
"""How much larger the score of its own class is in a soft label that is not learned."""
SHOWN = 3
"""Nearest real examples of a synthetic one."""

Report = dict[str, Any]


def with_validation(name: str, **settings: Any) -> Stream:
    """The stream of `everlearn.streams.load`; where the data have no validation examples and the settings do not say
    otherwise, a fifth of the training examples is held out for validation.

    >>> [len(with_validation("banking77", tasks=1)[0].validation), len(with_validation("clinc150")[0].validation)]
    [1998, 300]
    """
    stream = streams.load(name, **settings)
    if "validation" in settings or all(len(task.validation) for task in stream):
        return stream
    return streams.load(name, **settings, validation=0.2)


def distill(
    stream: Stream,
    backbone: Backbone,
    out: str | Path | None = None,
    *,
    kind: Literal["features", "texts", "soft"] = "features",
    per_class: Count = 10,
    until: Count | None = None,
    labels: Literal["fixed", "learned"] = "fixed",
    documents: Literal["soft", "real"] = "soft",
    length: Size = 8,
    train: str = "head",
    steps: Count | None = None,
    rate: Rate | None = None,
    inner_steps: Size | None = None,
    inner_rate: Factor | None = None,
    batch_size: Count = 512,
    second: Backbone | None = None,
    seed: Seed = 0,
    command: str = "",
    progress: bool = False,
) -> tuple[DistilledSet, Report]:
    """Distil the training data of a stream. Nothing is chosen by its test data, which only the report mentions.

    Args:
        stream: classes, or pairs of queries and documents (kind soft).
        backbone: a frozen encoder; it is the same afterwards.
        out: the file to write, in safetensors; it may not exist. None writes nothing.
        kind: features (of the frozen encoder, in closed form), texts (real examples with weights) or soft (sequences
            that stand where embedded tokens stand).
        per_class: examples a class; pairs a domain where documents are ranked.
        until: distil the first so many tasks only; all by default.
        labels: whether the labels are learned too (features and soft). `er` and `logistic`, which train on a set beside
            new data, take the class of an example and not its learned label.
        documents: for pairs, whether the documents are soft too, or real ones that stay.
        length: tokens of a soft sequence.
        train: for soft, what is trained on the set: head, full, or an insertion into the encoder.
        steps: of distillation; 150 by default.
        rate: learning rate of what is distilled; by default 0.003 for features and 0.02 for soft sequences.
        inner_steps: for soft, steps of training on the set; by default 30 of a head and 2 of an encoder.
        inner_rate: for soft, their first size, which is learned; by default 20 for a head and 0.05 for an encoder.
        batch_size: real examples in a step of distillation (an eighth of it where an encoder is trained).
        second: for texts, the encoder that transfer is measured on; by default the words themselves (tf-idf).
        seed: of everything random.
        command: what the file says it was made by.

    Returns:
        The set, and a report that JSON can keep: accuracy on validation and test examples of models trained on the set,
        beside real subsets of equal size, from fresh starts, and for texts with the second encoder.

    Raises:
        EverlearnError: the data or the settings do not fit the kind, or the file exists.

    >>> from everlearn import backbones, streams
    >>> rows = [(f"{word} number {i}", word) for word in ("tea", "sofa") for i in range(12)]
    >>> stream = streams.from_rows(*zip(*rows), tasks=1, validation=0.2)
    >>> made, report = distill(stream, backbones.load("tiny"), kind="texts", per_class=2)
    >>> len(made), sorted(made.class_names), report["examples"]
    (4, ['sofa', 'tea'], 4)
    """
    given = {name: value for name, value in locals().items() if name not in ("stream", "backbone", "out", "second")}
    check("distillation", distill, given)
    if out is not None and Path(out).exists():
        raise EverlearnError(f"{out} exists already: give another file with --out")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise EverlearnError(
            f"{Path(out).parent}: no such folder, so {Path(out).name} cannot be written there: make it"
        )
    if until is not None and until > len(stream):
        raise EverlearnError(f"--until {until}: the stream has {len(stream)} tasks: give fewer")
    if kind != "features" and stream.input != "text":
        raise EverlearnError(f"kind {kind} is for texts, and {stream.name} has {stream.input}s: give --kind features")
    if stream.goal == "ranking" and kind != "soft":
        raise EverlearnError(f"kind {kind} is for classes, and {stream.name} ranks documents: give --kind soft")
    backbone.requires_grad_(False)
    tasks = stream.tasks[:until]
    settings = {"steps": 150, "rate": 0.003 if kind == "features" else 0.02, **_given(steps=steps, rate=rate)}
    recipe = {**{name: value for name, value in given.items() if name not in ("command", "progress")}, **settings,
              "stream": stream.config, "data": stream.fingerprint(), "command": command,
              "everlearn": __version__}  # fmt: skip
    encoder = Encoder(name=backbone.name, identity=backbone.identity())
    inner: dict[str, Any] = {
        "steps": inner_steps or (30 if train == "head" else 2),
        "rate": inner_rate or (20.0 if train == "head" else 0.05),
    }  # fmt: skip
    if stream.goal == "ranking":
        if train == "head":
            raise EverlearnError("--train head: a retriever has no head: give --train lora or full")
        made, report = distil_pairs(
            tasks, backbone, per_domain=per_class, length=length, train=train, inner=inner, **settings,
            soft_documents=documents == "soft", batch_size=max(batch_size // 16, 4), seed=seed, progress=progress,
        )  # fmt: skip
        made = DistilledSet(made.kind, (), encoder, recipe, made.tensors, documents=made.documents)
        return _written(made, report, out, sum(len(task.train) for task in tasks))
    parts = {name: Examples.concatenate([getattr(task, name) for task in tasks]) for name in PARTS}
    for part in ("train", "validation", "test"):
        if not len(parts[part]):
            raise EverlearnError(f"{stream.name} has no {part} examples, by which sets are judged: give "
                                 f"--stream.{part} 0.2")  # fmt: skip
    names = tasks[-1].class_names
    with Progress(1, "encoding", progress):
        space = Space.of(judge.encoder_of(backbone), parts, len(names))
    report = {"accuracy": judge.beside(space, per_class, seed=seed)}
    if kind == "texts":
        tensors, rows, more = _texts(space, parts, per_class, second, seed, progress)
        chosen = parts["train"][rows]
        texts, ids = tuple(map(str, chosen.inputs)), tuple(chosen.ids)
    else:
        texts, ids = (), ()
        learn = labels == "learned"
        if kind == "features":
            made_features = distil_features(space.train, space.labels, len(names), per_class, learn_labels=learn,
                                            steps=settings["steps"], lr=settings["rate"], seed=seed,
                                            progress=progress)  # fmt: skip
            tensors, own, more = _features(space, *made_features, learn)
        else:
            tensors, own, more = _soft(space, parts, backbone, per_class, length, train, inner, settings, learn,
                                       batch_size, seed, progress)  # fmt: skip
        more["nearest"] = _nearest(own, tensors["labels"], space, parts["train"], names)
    report["accuracy"] = {"distilled set": more.pop("accuracy"), **report["accuracy"]}
    made = DistilledSet(kind, names, encoder, recipe, tensors, texts, ids)
    return _written(made, {**report, **more}, out, len(parts["train"]))


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _written(made: DistilledSet, report: Report, out: str | Path | None, real: int) -> tuple[DistilledSet, Report]:
    if out is not None:
        made.save(Path(out))
    size = {
        "kind": made.kind,
        "examples": len(made),
        "share of the data": len(made) / real,
        "bytes": made.stored_bytes(),
    }
    return made, {**size, **report}


def _texts(
    space: Space, parts: dict[str, Examples], per_class: int, second: Backbone | None, seed: int, progress: bool
) -> tuple[dict[str, Tensor], list[int], Report]:
    rows, weights = select(space.rows(space.train), space.labels, space.classes, per_class, progress=progress)
    labels, features = space.labels[rows], space.train[rows]
    with Progress(1, "reading with the second encoder", progress):
        encode = judge.encoder_of(second) if second else judge.words()
        other = Space.of(encode, parts, space.classes)
        transfer = {"encoder": second.name if second else "words (tf-idf)",
                    "distilled set": other.of_rows(rows, weights),
                    **judge.beside(other, per_class, chosen_in=space, seed=seed)}  # fmt: skip
    more = {"accuracy": space.of_rows(rows, weights), "second encoder": transfer,
            "fresh starts": _starts(space, features, space.hard(labels), weights, seed)}  # fmt: skip
    return {"labels": labels, "weights": weights.float()}, rows.tolist(), more


def _features(
    space: Space, features: Tensor, labels: Tensor, targets: Tensor, learned: bool
) -> tuple[dict[str, Tensor], Tensor, Report]:
    weight = ridge(features.double(), (targets if learned else centred(labels, space.classes)).double(), 0.1).float()
    own = space.accuracy(lambda part: torch.nn.functional.normalize(part, dim=1) @ weight)
    hard = space.hard(labels)
    more = {"accuracy": own if learned else space.solved(features, hard), "ridge regression": own,
            "fresh starts": _starts(space, features, hard, None, 0)}  # fmt: skip
    return {"features": features, "labels": labels, **({"targets": targets} if learned else {})}, features, more


def _soft(
    space: Space, parts: dict[str, Examples], backbone: Backbone, per_class: int, length: int, train: str,
    inner: dict[str, Any], settings: dict[str, Any], learn_labels: bool, batch_size: int, seed: int, progress: bool,
) -> tuple[dict[str, Tensor], Tensor, Report]:  # fmt: skip
    rows = random_rows(space.labels, per_class, seed)
    labels = space.labels[rows]
    began = embedded(backbone, [str(parts["train"].inputs[row]) for row in rows.tolist()], length)
    learner = Learner(backbone, train, classes=space.classes, seed=seed)
    try:
        targets = SHARP * one_hot(labels, space.classes).float()
        soft = Soft({"inputs": began}, **inner, targets=targets if learn_labels else 100 * targets,
                    learn_labels=learn_labels)  # fmt: skip
        on_head = train == "head"
        problem = (OnHead(learner, space.train, space.labels) if on_head
                   else OnEncoder(learner, parts["train"].inputs, space.labels))  # fmt: skip
        with differentiable_twice(backbone):
            losses = distil(problem, soft, steps=settings["steps"], lr=settings["rate"],
                            batch_size=batch_size if on_head else max(batch_size // 8, 1), seed=seed,
                            progress=progress)  # fmt: skip
            soft.requires_grad_(False)
            starts = [
                _own_steps(learner, problem, soft, space, parts, derived_seed(seed, 10**6 + number))
                for number in range(judge.STARTS)
            ]
            features = _read_soft(learner, soft.sequences["inputs"])
    finally:
        learner.close()
    probabilities = soft.labels().detach()
    more = {"accuracy": space.solved(features, probabilities), "own steps, fresh starts": judge.from_starts(starts),
            "fresh starts": _starts(space, features, probabilities, None, seed),
            "loss": {"first": losses[0], "last": losses[-1]}}  # fmt: skip
    tensors = {"inputs": soft.sequences["inputs"].detach(), "labels": labels, "rates": soft.rates().detach()}
    return {**tensors, **({"targets": probabilities} if learn_labels else {})}, features, more


def _read_soft(learner: Learner, sequences: Tensor) -> Tensor:
    """Features (m, width) of sequences, by the encoder as it was pre-trained."""
    with learner.deltas.only(False), torch.no_grad():
        return torch.cat([learner.features(part) for part in sequences.split(256)])


def _own_steps(
    learner: Learner, problem: OnHead | OnEncoder, soft: Soft, space: Space, parts: dict[str, Examples], seed: int
) -> judge.Accuracy:
    """Accuracy after the steps that were learned with the set, from a start of its own."""
    weights = {name: weight.detach() for name, weight in
               trained_on(problem.inner(soft, 0), problem.start(seed), soft.rates()).items()}  # fmt: skip
    with torch.no_grad():
        if isinstance(problem, OnHead):
            return space.accuracy(lambda part: problem.scores(weights, part))
        return {name: _accuracy_of(learner, weights, parts[name]) for name in space.parts}


def _accuracy_of(learner: Learner, weights: Weights, part: Examples) -> float:
    scores = [called(learner, weights, part.inputs[k : k + 64]) for k in range(0, len(part), 64)]
    return float((torch.cat(scores).argmax(1) == part.labels).float().mean())


def _starts(space: Space, features: Tensor, targets: Tensor, weights: Tensor | None, seed: int) -> Report:
    return judge.from_starts([space.trained(features, targets, weights, start=derived_seed(seed, number))
                              for number in range(judge.STARTS)])  # fmt: skip


def _nearest(features: Tensor, labels: Tensor, space: Space, train: Examples, names: tuple[str, ...]) -> list[Report]:
    shown: Callable[[Any], str] = lambda item: item if isinstance(item, str) else ""  # noqa: E731
    return [
        {"class": names[label], "nearest": [{"id": train.ids[row], "text": shown(train.inputs[row]),
                                             "class": names[int(train.labels[row])]} for row in rows]}
        for label, rows in zip(labels.tolist(), judge.nearest_real(features, space, SHOWN).tolist(), strict=True)
    ]  # fmt: skip
