"""Experience replay: new examples together with a sample of old ones (Chaudhry et al., 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.batches import augmented
from everlearn.distillation.replay import Replay, features_for
from everlearn.errors import EverlearnError
from everlearn.memory.event_counts import EventCounts
from everlearn.memory.memory import Memory
from everlearn.memory.policies import Balanced, MostForgotten, Policy, Reservoir
from everlearn.method import Tags
from everlearn.methods.finetune import Finetune
from everlearn.settings import Count, Natural
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task

Replayed = tuple[Sequence[Input], Callable[[], Tensor]]
"""What the encoder reads of old examples, and what gives their loss, a scalar."""

POLICIES: dict[str, Callable[[], Policy]] = {
    "reservoir": Reservoir, "balanced": Balanced, "most forgotten": MostForgotten,
}  # fmt: skip


class ER(Finetune):
    """On Tiny Episodic Memories in Continual Learning. Chaudhry, Rohrbach, Elhoseiny, Ajanthan,
    Dokania, Torr & Ranzato, 2019, https://arxiv.org/abs/1902.10486

    Every step minimises the loss on the new batch plus the loss on as many examples drawn from a
    memory, in which every example seen so far is equally likely to be. The texts of one draw are of similar length, so
    that little of it is padding. A task's examples enter the memory when the task ends, each once, so several epochs
    do not fill it with repetitions.

    Departures: the paper fills its memory while it trains, in a single pass, so that it replays examples of the present
    task too. Here only those of earlier tasks are replayed.

    Args:
        backbone: a pre-trained encoder.
        memory_size: most examples kept; None for no such limit.
        memory_bytes: most bytes of examples kept; None for no such limit.
        replay_batch_size: examples drawn per step.
        policy: which examples are kept: each with the same chance ("reservoir"), equally many of each class
            ("balanced"), or of each class those that were forgotten most often while they were learned ("most
            forgotten"; Toneva et al., 2019, https://arxiv.org/abs/1812.05159).
        distilled: a file that `everlearn distill` wrote, of kind texts or soft, in whose examples old data are replayed
            besides those of the memory. It must be there while tasks are learned. The other settings are those of
            `finetune`.

    Raises:
        EverlearnError: the file is no such set, or its sequences are of another encoder.

    Relations: `finetune` without memory; `joint` with all of it.

    >>> from everlearn import backbones
    >>> ER(backbones.load("tiny"), memory_size=10, train="lora").memory.limits
    (10, None)
    """

    tags = Tags(family="replay", trains="backbone", goals=("classes", "ranking"))

    def __init__(
        self, backbone: Backbone, *, memory_size: Natural | None = 500, memory_bytes: Natural | None = None,
        replay_batch_size: Count = 32,
        policy: Literal["reservoir", "balanced", "most forgotten"] = "reservoir",
        distilled: str | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.made_for = backbone.identity() if distilled else ""
        super().__init__(backbone, **settings)
        self.replay_batch_size, self.file = replay_batch_size, distilled
        self.memory = Memory(memory_size, bytes=memory_bytes, policy=POLICIES[policy](), seed=self.seed)
        self.events = EventCounts() if policy == "most forgotten" else None
        self.distilled = Replay(seed=self.seed) if distilled else None

    def batches(self, task: Task) -> Sequence[Examples]:
        if self.distilled is not None and self.file is not None:
            found = self.distilled.take(self.file, task, self.backbone, self.made_for)
            if "feature" in found.columns:
                raise EverlearnError(f"{self.file}: the set holds features, on which no encoder can be trained: distil "
                                     "--kind texts or soft, or give the set to the method logistic")  # fmt: skip
        return super().batches(task)

    def loss(self, batch: Examples) -> Tensor:
        replays = list(self.replays(batch))
        with self.backbone.together(batch.inputs, *(inputs for inputs, _ in replays)):
            return self.new_loss(batch) + self._sum(replays)

    def new_loss(self, batch: Examples) -> Tensor:
        """The scalar loss of the new batch."""
        return super().loss(batch)

    def old_loss(self, batch: Examples) -> Tensor | float:
        """The scalar loss of what is replayed together with the new batch; 0 where there is nothing yet."""
        return self._sum(self.replays(batch))

    def replays(self, batch: Examples) -> Iterator[Replayed]:
        """What is replayed together with the new batch."""
        yield from self.drawn(batch, self.losses)

    def drawn(self, batch: Examples, losses: Callable[[Examples], Tensor], weight: float = 1.0) -> Iterator[Replayed]:
        """A batch of the memory, with `weight` times the mean of its losses (n,); nothing where that is nothing."""
        if weight and len(self.memory):
            old = self.viewed(self.replayed(batch))
            yield old.inputs, lambda: weight * losses(old).mean()

    def _sum(self, replays: Iterable[Replayed]) -> Tensor | float:
        return self._of_distilled() + sum(loss() for _, loss in replays)

    def viewed(self, old: Examples) -> Examples:
        """Examples of the memory, with new random views of the images where the stream asks for them."""
        return augmented(old, self.seed, int(self.memory.draws)) if self.task.augment else old

    def _of_distilled(self) -> Tensor | float:
        if self.distilled is None or not len(self.distilled):
            return 0.0
        old = self.distilled.sample(self.replay_batch_size)
        features = features_for(self.backbone, old)
        scores = self.scores(old.inputs) if features is None else self.head(features)
        return self.distilled.losses(scores, old).mean()

    def replayed(self, batch: Examples) -> Examples:
        """What is trained on together with the new batch."""
        return self.memory.sample(self.replay_batch_size, alike=True)

    def _answered(self, batch: Examples, scores: Tensor, labels: Tensor) -> None:
        super()._answered(batch, scores, labels)
        if self.events is not None and torch.is_grad_enabled():
            self.events.record(batch.ids, (scores.argmax(1) == labels).tolist())

    def end_task(self, task: Task) -> None:
        self.keep(task)

    def keep(self, task: Task, **columns: Tensor) -> None:
        """Offer the task's n examples to the memory, each with its row of the columns (n, …)."""
        if self.events is not None:
            columns["forgotten"] = self.events.forgotten(task.train.ids)
            self.events.clear()
        self.memory.add(task.train, **columns)
