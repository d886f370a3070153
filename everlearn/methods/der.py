"""DER: the scores that the model once gave to old examples are held (Buzzega et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.er import ER, Replayed
from everlearn.settings import Strength
from everlearn.streams.stream import Examples, Task


class DER(ER):
    """Dark Experience for General Continual Learning: a Strong, Simple Baseline. Buzzega, Boschini, Porrello, Abati &
    Calderara, NeurIPS 2020, https://arxiv.org/abs/2004.07211

    The memory keeps with each example the scores that the model gave it. Besides the cross-entropy of the new batch a
    step minimises alpha times the mean squared difference between the present scores of replayed examples and those
    that were kept. Labels of old examples are not used.

    As in the released code the squared differences are averaged over the classes; the paper writes their sum.

    The head grows, so the kept scores are of the classes that were known when an example was stored. Only these are
    compared, and each example counts equally, however many they are. The scores that it gets for classes learned
    later are free; `der_pp` teaches these too.

    Departures: the paper has no tasks, and fills a reservoir with the scores of the moment while it trains. Here, as in
    `er`, a task's examples enter the memory when the task ends, so that several epochs do not fill it with repetitions;
    the scores are those of the model that has learned the task, and where the stream augments images those of whole
    images, which the scores of new views are compared with. The paper's head has all classes from the beginning, so
    that scores of classes without examples are held as well.

    Args:
        backbone: a pre-trained encoder.
        alpha: weight of the kept scores; 0 leaves them out.
        settings: those of `er`.

    Relations: `er` replays labels instead of scores; `der_pp` replays both; `lwf` holds the scores of new examples.

    >>> from everlearn import backbones, engine
    >>> from everlearn.testing import toy_stream
    >>> method, stream = DER(backbones.load("tiny"), memory_size=40, epochs=1), toy_stream(tasks=2)
    >>> for task in stream:
    ...     _ = engine.learn(method, task)
    >>> kept = method.memory.examples().columns["logits"]
    >>> kept.shape, int(kept[:, 2].isnan().sum()) == int((method.memory.examples().labels < 2).sum())
    (torch.Size([40, 4]), True)
    """

    tags = Tags(family="replay", trains="backbone")

    def __init__(self, backbone: Backbone, *, alpha: Strength = 0.3, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.alpha = alpha

    def replays(self, batch: Examples) -> Iterator[Replayed]:
        yield from self.drawn(batch, self.drift, self.alpha)

    def drift(self, old: Examples) -> Tensor:
        """(n,): of each example the mean squared difference between its present scores and those that were kept."""
        kept = old.columns["logits"].to(self.backbone.device)
        known = ~kept.isnan()
        gaps = torch.where(known, self.scores(old.inputs)[:, : kept.shape[1]] - kept, 0.0)
        return gaps.square().sum(1) / known.sum(1)

    def end_task(self, task: Task) -> None:
        self.keep(task, logits=self.predict(task.train.inputs))
