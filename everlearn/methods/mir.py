"""MIR: replay the old examples that the next step would harm most (Aljundi et al., 2019)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone
from everlearn.batches import of_similar_length
from everlearn.method import Tags
from everlearn.methods.er import ER
from everlearn.optimizer_step import OptimizerStep
from everlearn.settings import Count
from everlearn.streams.stream import Examples, Task


class MIR(ER):
    """Online Continual Learning with Maximally Interfered Retrieval. Aljundi, Belilovsky, Tuytelaars, Charlin, Caccia,
    Lin & Page-Caccia, NeurIPS 2019, https://arxiv.org/abs/1908.04742

    Before every step the weights are moved as the new batch alone would move them. Of some candidates from the memory
    those are replayed whose loss grows most by that; then the weights are put back, and the step is made with both.
    The paper moves the weights by plain gradient descent, because it trains so; here they are moved by the step that
    the optimizer would make.

    As in `er`, a task's examples enter the memory when the task ends. So the candidates are always of earlier tasks, as
    the paper asks for.

    Args:
        backbone: a pre-trained encoder.
        candidates: examples drawn from the memory in every step, of which the most interfered are replayed.
        replay_batch_size: how many of them are replayed. As many as there are candidates is `er`.
        score: what is compared: by how much the step would "increase" the loss; or "from best": by how much the loss
            would then be above the smaller of the present one and that when the example was stored. Only classes.
        memory_size: as for `er`. The other settings are those of `finetune`.

    Relations: `er` replays candidates at random.

    >>> from everlearn import backbones
    >>> MIR(backbones.load("tiny"), memory_size=10, candidates=8).candidates
    8
    """

    tags = Tags(family="replay", trains="backbone", goals=("classes", "ranking"))

    def __init__(
        self, backbone: Backbone, *, candidates: Count = 50, replay_batch_size: Count = 10,
        score: Literal["increase", "from best"] = "increase", **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, replay_batch_size=replay_batch_size, **settings)
        self.candidates, self.score = candidates, score

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        if not len(self.memory):
            return super().step(batch, optimizer_step)
        new = self.losses(batch).mean()
        optimizer_step.backward(new)
        old = self.most_interfered(optimizer_step)
        replayed = self.losses(self.viewed(old)).mean() + self._of_distilled()
        optimizer_step.backward(replayed, add=True)
        optimizer_step.apply()
        return (new + replayed).detach()

    def most_interfered(self, optimizer_step: OptimizerStep) -> Examples:
        """Of candidates from the memory those whose loss the step by the present gradients would raise most. Where
        several are raised equally, chance decides, because the candidates come in a random order."""
        candidates = self.memory.sample(self.candidates)
        if len(candidates) <= self.replay_batch_size:
            return candidates
        before = self._losses_of(candidates)
        with optimizer_step.ahead():
            after = self._losses_of(candidates)
        if self.score == "from best" and "loss" in candidates.columns:
            before = before.minimum(candidates.columns["loss"].to(before))
        return candidates[(after - before).argsort(descending=True, stable=True)[: self.replay_batch_size].cpu()]

    def end_task(self, task: Task) -> None:
        columns = {}
        if self.score == "from best" and task.goal == "classes":
            columns["loss"] = self._losses_of(task.train)
        self.keep(task, **columns)

    @torch.no_grad()
    def _losses_of(self, examples: Examples) -> Tensor:
        """(n,) the loss of each example. Pairs are compared with each other, so they stay together."""
        if examples.positives is not None:
            return self.losses(examples)
        lengths = self.backbone.lengths(examples.inputs)
        parts = of_similar_length(lengths, self.backbone.tokens_at_once, self.batch_size)
        found = torch.cat([self.losses(examples[part]) for part in parts])
        return found[torch.tensor([row for part in parts for row in part], device=found.device).argsort()]
