"""Feature replay: old examples are kept as features alone, and train the head (Pellegrini et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from everlearn.backbones.backbone import Backbone
from everlearn.method import Tags
from everlearn.methods.er import ER, Replayed
from everlearn.streams.stream import Examples, Task


class FeatureReplay(ER):
    """Latent Replay for Real-Time Continual Learning. Pellegrini, Graffieti, Lomonaco & Maltoni, IROS 2020,
    https://arxiv.org/abs/1912.01100

    For whoever may not keep raw data: the memory holds the features of old examples, with labels and ids, and neither
    texts nor images. A step minimises the loss of the new batch plus that of features drawn from the memory, which
    train the head. Features are no raw data, but part of what an example said can be told from them.

    With a frozen encoder, train="head", this is `er` without raw data: the features that `er` would compute are those
    that were kept. Where the encoder is trained, the kept features go stale: they are those of the encoder as it was
    when their task ended, while the head answers on features of the present one. Nothing holds the encoder then.

    Departures: the paper keeps the states of a layer within the network, trains the layers above it on them, and slows
    down those below. Here it is the last layer of the encoder, below which everything is frozen by default, and the
    defences that the paper adds to the new loss (AR1*) are left out. Where the stream augments images, old features are
    those of whole images.

    Args:
        backbone: a pre-trained encoder.
        train: what is trained besides the head, as in `finetune`: "head" is nothing.
        settings: the others of `er`.

    Relations: `er` keeps texts or images; `logistic` keeps features and solves the head on all of them; `slca` and
    `lda` keep their means and covariances.

    >>> from everlearn import backbones, engine, streams
    >>> method = FeatureReplay(backbones.load("tiny"), epochs=1)
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> _ = engine.learn(method, task)
    >>> method.memory.examples().inputs, method.memory.examples().columns["feature"].shape
    (['', ''], torch.Size([2, 32]))
    """

    tags = Tags(family="replay", trains="head")

    def __init__(self, backbone: Backbone, *, train: str = "head", **settings: Any) -> None:
        super().__init__(backbone, train=train, **settings)

    def replays(self, batch: Examples) -> Iterator[Replayed]:
        if len(self.memory):
            old = self.replayed(batch)
            features = old.columns["feature"].to(self.backbone.device)
            yield [], lambda: self.classification_losses(self.head(features), old).mean()

    def end_task(self, task: Task) -> None:
        bare = replace(task.train, inputs=[""] * len(task.train))
        self.keep(replace(task, examples={"train": bare}), feature=self.embed(task.train.inputs))
