"""Retrieval-augmented input: the encoder reads an example beside its nearest labelled ones (Izacard et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.heads.zero_shot import ZeroShot
from everlearn.memory.memory import Memory
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.metrics.retrieval import first_largest
from everlearn.settings import Count, Factor
from everlearn.streams.inputs import Input
from everlearn.streams.stream import NO_EXAMPLES, Examples, Task

AT_ONCE = 512  # examples whose neighbours are looked for together
LONGEST = 200  # characters of a neighbour that are read
DIGITS = 1e5  # cosines are rounded to so many parts of one, so that equal ones are equal in every batch


class RetrievalAugmented(Finetune):
    """Atlas: Few-shot Learning with Retrieval Augmented Language Models. Izacard, Lewis, Lomeli, Hosseini, Petroni,
    Schick, Dwivedi-Yu, Joulin, Riedel & Grave, JMLR 2023 (arXiv 2022), https://arxiv.org/abs/2208.03299

    Every labelled example is kept. An example is read together with its nearest ones and their labels, as the text
    "example | neighbour: label | …", and gets the class whose name is nearest to what the encoder makes of it. To learn
    is therefore to add, even without a step of training. The frozen encoder finds the neighbours and reads the names of
    the classes, so neither index ever goes stale; only the reading of examples is tuned, which the paper calls
    query-side fine-tuning. In training an example is not its own neighbour.

    The paper's reader generates the label, and reads each neighbour with the example apart. An encoder cannot generate:
    here the name of the label stands in the text, and the score of a class is the cosine of the text and its name. What
    does not fit into the encoder's length is cut off at the end; of a neighbour, 200 characters are read.

    The neighbours of all examples of a task are found before its first step, with their labels. An online stream gives
    the labels of later batches only later, so it cannot be learned.

    Args:
        backbone: a pre-trained text encoder, frozen.
        train: the insertion by which the reading is tuned; "head" tunes nothing.
        neighbours: how many are read with an example.
        scale: what multiplies the cosines in the loss. The other settings are those of `finetune`.

    Raises:
        EverlearnError: train="full", which would move the index.

    Relations: `knn` lets the neighbours vote; `frozen` compares with the names of the classes and has no neighbours;
    `lora` is the tuning without neighbours, under a head with a row per class.

    >>> from everlearn import backbones, engine, streams
    >>> method = RetrievalAugmented(backbones.load("tiny"), train="head", neighbours=1)
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> _ = engine.learn(method, task)
    >>> method.with_neighbours(["a red sofa"])
    ['a red sofa | a sofa: furniture']
    """

    tags = Tags(family="replay", trains="peft", inputs=("text",), needs=("class names",),
                kinds=("class-incremental", "domain-incremental", "task-incremental", "old-then-new"))  # fmt: skip

    def __init__(
        self, backbone: Backbone, *, train: str = "lora", neighbours: Count = 4, scale: Factor = 20.0, **settings: Any
    ) -> None:
        if train == "full":
            raise EverlearnError("method.train: full would change the encoder that finds the neighbours: give an "
                                 "insertion such as lora, or head to tune nothing")  # fmt: skip
        super().__init__(backbone, train=train, **settings)
        self.neighbours, self.scale = neighbours, scale
        self.head = ZeroShot(backbone.width)
        self.memory = Memory(seed=self.seed)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.names = [name.replace("_", " ") for name in task.class_names]
        self.head.set(self.frozen(self.names))

    def batches(self, task: Task) -> Sequence[Examples]:
        return self.shuffled(replace(task.train, inputs=self.with_neighbours(task.train.inputs, task.train)), task)

    def losses(self, batch: Examples) -> Tensor:
        return self.classification_losses(self.scale * self.scores(batch.inputs), batch)

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self.scale * super().current_scores(inputs)

    def end_task(self, task: Task) -> None:
        self.memory.add(task.train, feature=self.frozen(task.train.inputs).half())

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        return super().predict(self.with_neighbours(inputs))

    def frozen(self, inputs: Sequence[Input]) -> Tensor:
        """Directions (n, width) of the pre-trained encoder, from the feature store."""
        with self.backbone.pretrained():
            return normalize(self.backbone.encode(inputs), dim=1)

    def with_neighbours(self, inputs: Sequence[Input], task: Examples = NO_EXAMPLES) -> list[str]:
        """Each text with its nearest labelled ones.

        Args:
            task: in training, the examples that the inputs are of: they are neighbours too, but none is its own.
        """
        held, asked = self.memory.examples(), self.frozen(inputs)
        texts, labels = [*held.inputs, *task.inputs], [*held.labels.tolist(), *task.labels.tolist()]
        rows = held.columns.get("feature", asked[:0]).to(asked)
        if len(task):
            rows = torch.cat([rows, asked.half().to(asked)])
        joined: list[str] = []
        for start in range(0, len(inputs), AT_ONCE):
            similarities = (asked[start : start + AT_ONCE] @ rows.T).mul_(DIGITS).round_()
            if len(task):
                similarities.diagonal(len(held) + start).fill_(-torch.inf)
            k = min(self.neighbours, len(texts) - bool(len(task)))
            nearest = first_largest(similarities, k).tolist()
            for text, near in zip(inputs[start : start + AT_ONCE], nearest, strict=True):
                read = (f"{str(texts[row])[:LONGEST]}: {self.names[labels[row]]}" for row in near)
                joined.append(" | ".join([str(text), *read]))
        return joined
