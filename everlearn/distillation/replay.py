"""A distilled set as a memory of old data: it is replayed beside new data."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from everlearn.backbones.backbone import Backbone
from everlearn.distillation.data_set import DistilledSet, read
from everlearn.distillation.soft import features_of
from everlearn.errors import EverlearnError
from everlearn.memory.memory import Memory
from everlearn.streams.stream import Examples, Task


class Replay(Memory):
    """The examples of a distilled set whose classes are known, found by the names of the classes; those of other
    classes wait until a task shows their class. The file is read when a task is learned, and never to answer.

    >>> Replay(seed=0).covered.tolist()
    0
    """

    covered: Tensor

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed)
        self.register_buffer("covered", torch.tensor(0))  # so many classes have their examples here

    def take(self, file: str, task: Task, backbone: Backbone, identity: str) -> Examples:
        """Add the examples of the classes that are known since this task, and return them.

        Args:
            identity: of the encoder as it was pre-trained, for which a set of vectors must have been made.

        Raises:
            EverlearnError: the file is no distilled set, or not of this encoder or of this goal.
        """
        if task.goal != "classes":
            raise EverlearnError(f"{file}: a distilled set is replayed where classes are learned, and this stream "
                                 "ranks documents: leave --method.distilled out")  # fmt: skip
        new = task.class_names[int(self.covered) :]
        if not new:
            return self.examples()[[]]
        made = read(file)
        made.check_encoder(identity, backbone.name)
        found = as_examples(made, new, int(self.covered), file)
        self.add(found)
        self.covered.fill_(len(task.class_names))
        return found

    def losses(self, scores: Tensor, old: Examples) -> Tensor:
        """(n,): the cross-entropy of each replayed example, times its weight, of which the mean over the set is 1.

        Args:
            scores: (n, classes).
        """
        loss = cross_entropy(scores, old.labels.to(scores.device), reduction="none")
        if "weight" not in old.columns:
            return loss
        return loss * (old.columns["weight"] / self.examples().columns["weight"].mean()).to(loss)


def as_examples(made: DistilledSet, names: tuple[str, ...], first: int, file: str) -> Examples:
    """The examples of the set that belong to these classes, of which the first has the label `first`. Sequences and
    features are columns.

    Raises:
        EverlearnError: the set holds pairs, which have no classes.
    """
    if made.kind == "soft pairs":
        raise EverlearnError(f"{file}: the set holds pairs, and this stream has classes: distil a stream of classes")
    label_of = {name: first + number for number, name in enumerate(names)}
    own = [row for row, label in enumerate(made["labels"].tolist()) if made.class_names[label] in label_of]
    labels = torch.tensor([label_of[made.class_names[int(made["labels"][row])]] for row in own], dtype=torch.long)
    columns = {{"inputs": "sequence", "features": "feature", "weights": "weight"}[name]: tensor[own]
               for name, tensor in made.tensors.items() if name in ("inputs", "features", "weights")}  # fmt: skip
    texts = [made.texts[row] if made.texts else "" for row in own]
    return Examples(texts, labels, [f"distilled {row}" for row in own], columns=columns)


def features_for(backbone: Backbone, old: Examples) -> Tensor | None:
    """Features (n, width) of replayed examples that are sequences; None where they are texts."""
    return features_of(backbone, old.columns["sequence"].to(backbone.device)) if "sequence" in old.columns else None
