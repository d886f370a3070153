"""ESN: a small classifier per task on frozen states, and a vote of temperatures among them (Wang et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from everlearn.backbones.backbone import Backbone, Hidden
from everlearn.heads.stages import Stages, chosen_stage, lifted, vote
from everlearn.method import Method, Tags
from everlearn.peft.delta import Delta
from everlearn.peft.prompt import Prompt
from everlearn.schedules import cosine
from everlearn.seeds import seeded
from everlearn.settings import Count, Factor, Rate, Seed, SizeOrZero, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task

TEMPERATURES = (0.001, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # as released


class ESN(Method):
    """Isolation and Impartial Aggregation: A Paradigm of Incremental Learning without Interference. Wang, Ma, Huang,
    Wang, Su & Hong, AAAI 2023, https://arxiv.org/abs/2211.15969

    Each task has a stage: class attention and a linear head on the token states of the encoder, which is frozen and
    gets a prompt that is trained on the first task only. A stage is trained on its own classes, with cross-entropy and
    a pull of its energy, -log Σ exp(z), to one anchor, so that the energies of all stages compare. After a task, the
    temperature is kept at which the lowest energy finds the new stage for most of its training examples. The kept
    temperatures vote for a stage, and that stage answers.

    The scores are those of the chosen stage; classes that it does not know come below its best one. Where the stream
    tells the task at test, its stage answers. Stages may have different numbers of classes, and may share them.

    Departures from the released code: there, stages need equally many classes each; the encoder's last normalisation
    is left out; and the pull holds -log Σ exp(-z), which moves the lowest score to the anchor instead of the highest
    (`paper_compat` asks for that). The prompt is appended, not put after CLS. The query of
    a stage's attention starts at random, not as the CLS token of the encoder. The offsets of a new stage start where
    its energy is the anchor already, which changes no probability: from zero, the loss soon became infinite.

    Args:
        backbone: a pre-trained encoder, frozen.
        length: tokens of the prompt; 0 leaves it out.
        strength: weight of the pull of the energy to the anchor, lambda of the paper.
        anchor: minus the energy that every stage is to have on its own examples.
        beta: inverse temperature of the energy in training.
        temperatures: those among which the one of each task is chosen.
        paper_compat: pull the lowest score of a stage to minus the anchor, as the released code does.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate (SGD, momentum 0.9, cosine schedule), of the stage and the prompt.
        weight_decay: of both.
        seed: of the prompt, the stages and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Relations: `task_adapters` has an insertion per task inside the encoder, and prototypes choose among them;
    `extra_layers` puts new blocks on the frozen encoder and has one head.

    >>> from everlearn import backbones
    >>> from everlearn.streams import Task
    >>> method = ESN(backbones.load("tiny"), length=4)
    >>> method.begin_task(Task(0, "task 1", (0, 1), ("tea", "sofa")))
    >>> method.begin_task(Task(1, "task 2", (2,), ("tea", "sofa", "train")))
    >>> tuple(method.predict(["a cup of tea"]).shape), method.backbone.is_frozen
    ((1, 3), True)
    """

    tags = Tags(family="mixture", trains="peft", needs=("last layer",), task_at_test="used")
    Optimizer = torch.optim.SGD
    schedule = staticmethod(cosine)

    def __init__(
        self, backbone: Backbone, *, length: SizeOrZero = 100, strength: Strength = 0.1, anchor: Factor = 10.0,
        beta: Factor = 1.0, temperatures: tuple[Factor, ...] = TEMPERATURES,
        paper_compat: bool = False, epochs: Count = 10, batch_size: Count = 128, lr: Rate = 0.01,
        weight_decay: Strength = 5e-4, seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        self.strength, self.anchor, self.beta, self.weight_decay = strength, anchor, beta, weight_decay
        self.candidates, self.sign = temperatures, -1 if paper_compat else 1
        self.head = Stages(backbone.hidden_width)
        self.register_buffer("kept", torch.empty(0))  # one temperature per task
        self.kept: Tensor
        self.prompt: Delta | None = None
        if length:
            with seeded(seed):
                self.prompt = backbone.attach(Prompt(backbone.hidden_width, length=length), backbone.tokens)

    def begin_task(self, task: Task) -> None:
        self.task = task
        self.head.add(task.classes)
        offsets = self.head[-1].head.bias
        with torch.no_grad():
            offsets.fill_(self.sign * (self.anchor - math.log(len(offsets)) / self.beta))
        self.kept = torch.cat([self.kept, self.kept.new_tensor([self.candidates[0]])])
        if self.prompt is not None:
            self.prompt.requires_grad_(task.index == 0)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{**group, "momentum": 0.9, "weight_decay": self.weight_decay} for group in super().param_groups()]

    def losses(self, batch: Examples) -> Tensor:
        stage = self.head[-1]
        own = stage(*self._states(batch.inputs))
        scores = own.new_full((len(batch), self.head.classes), -torch.inf)
        scores[:, stage.classes] = own
        return self.classification_losses(scores, batch) + self.strength * (self.energy(own) + self.anchor) ** 2

    def energy(self, scores: Tensor) -> Tensor:
        """(n,): the energy of (n, classes) scores of one stage, which training pulls to the anchor."""
        return -(self.sign * self.beta * scores).logsumexp(1) / self.beta

    def end_task(self, task: Task) -> None:
        if task.index == 0 or not len(task.train):
            return  # nothing to be told from, or nothing to tell
        scores = self.stage_scores(task.train.inputs)
        found = [(chosen_stage(scores, t) == task.index).float().mean().item() for t in self.candidates]
        self.kept[-1] = self.candidates[found.index(max(found))]

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        scores = self.stage_scores(inputs)
        chosen = vote(scores, self.kept.unique()) if task is None else torch.full((len(inputs),), task)
        return lifted(scores, chosen)

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        return self.stage_scores(inputs)[:, -1]

    def stage_scores(self, inputs: Sequence[Input]) -> Tensor:
        """(n, stages, classes seen so far), without gradient; -inf where a stage does not know a class."""

        def compute(batch: Sequence[Input], rows: Sequence[int]) -> Tensor:
            states = self._states(batch)
            with torch.autocast(self.backbone.device.type, enabled=False):  # bfloat16 would decide close votes
                return self.head(*states)

        return self.backbone.infer(inputs, compute)

    def _states(self, inputs: Sequence[Input]) -> tuple[Tensor, Tensor]:
        """(n, tokens, width) of the encoder with its prompt, and their mask (n, tokens). There is a gradient only while
        the prompt is trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone.is_frozen):
            hidden: Hidden = self.backbone.hidden(self.backbone.prepare(inputs))
        return hidden.states, hidden.mask
