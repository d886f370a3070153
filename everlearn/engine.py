"""The engine: learn one task with a method, and tell listeners how it goes.

A run, a check of the contract and the update of a loaded model are three users of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from everlearn.backbones.backbone import Backbone
from everlearn.checkpoint import load_optimizer_state, optimizer_state
from everlearn.errors import EverlearnError, EverlearnWarning, one_line, printable
from everlearn.method import Method
from everlearn.optimizer_step import OptimizerStep
from everlearn.seeds import seeded
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task

BEGIN, FIT, END = range(3)  # what a seed is derived for

Training = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""What is needed to continue inside a task: tensors, and the rest as JSON."""


@dataclass
class Learning:
    """One task while it is being learned.

    Args:
        method: who learns. task: what.
        step: steps done so far. steps: steps in all.
        loss: of the last step.
        trainable: how many parameters receive gradient.

    >>> from everlearn import backbones, methods, streams
    >>> method = methods.get("finetune")(backbones.load("tiny"), epochs=2, batch_size=1)
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> learning = learn(method, task)
    >>> learning.step, learning.steps
    (4, 4)
    """

    method: Method
    task: Task
    step: int = 0
    steps: int = 0
    loss: torch.Tensor = field(default_factory=lambda: torch.tensor(float("nan")))
    trainable: int = 0
    optimizer_step: OptimizerStep | None = None

    def training(self) -> Training:
        """Optimizer, schedule and random state, for a checkpoint between two steps."""
        assert self.optimizer_step is not None
        tensors, optimizer = optimizer_state(self.optimizer_step.optimizer)
        schedule = _plain(self.optimizer_step.schedule.state_dict())
        tensors["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        return tensors, {"optimizer": optimizer, "schedule": schedule}

    def _resume(self, training: Training) -> None:
        assert self.optimizer_step is not None
        tensors, plain = training
        with one_line("the state of the training", "remove this checkpoint, or start again", EverlearnError):
            load_optimizer_state(self.optimizer_step.optimizer, tensors, plain["optimizer"])
            schedule = self.optimizer_step.schedule
            if _types(plain["schedule"]) != _types(_plain(schedule.state_dict())):
                raise EverlearnError("the checkpoint does not fit the schedule of the learning rate")
            schedule.load_state_dict(plain["schedule"])
            torch.set_rng_state(tensors["random"])
            if "random_cuda" in tensors and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors["random_cuda"])

    def fit(self, training: Training | None, listeners: Sequence[Listener]) -> None:
        """Train on the batches of the task, from `step` on."""
        method = self.method
        train = self.task.train
        if method.head_lr is not None and self.task.goal == "classes" and training is None and len(train):
            # Where the training goes on, its optimizer knows the rate; and without examples the norm stays as it was.
            method.feature_norm = feature_norm(method, train.inputs)
        groups = method.param_groups()
        if not groups:
            return
        self.trainable = sum(p.numel() for group in groups for p in group["params"])
        if method.masked and not method.aligned and len(self.task.classes) == 1 and self.task.index > 0:
            name = printable(self.task.class_names[self.task.classes[0]], 60)
            warnings.warn(f"{self.task.name} has the class '{name}' alone: this method compares the classes of a task "
                          "with each other, so it does not learn this one: learn it together with others, or take "
                          "another method, such as slca or er", EverlearnWarning, stacklevel=2)  # fmt: skip
        batches = method.batches(self.task)
        self.steps = len(batches)
        self.optimizer_step = OptimizerStep(method.Optimizer, groups, method.lr, method.clip)
        self.optimizer_step.schedule = method.schedule(self.optimizer_step.optimizer, self.steps)
        if training is not None:
            self._resume(training)
        method.train()
        for number in range(self.step, self.steps):
            batch: Examples = batches[number]
            self.optimizer_step.batch, self.optimizer_step.number = batch, number
            self.loss = method.step(batch, self.optimizer_step)
            _doubt(method)
            self.step = number + 1
            for listener in listeners:
                listener.stepped(self)


class Listener:
    """Is told how the learning of a task goes. Subclasses override what they want to hear.

    >>> from everlearn import backbones, methods, streams
    >>> class Count(Listener):
    ...     def __init__(self):
    ...         self.steps = 0
    ...     def stepped(self, learning):
    ...         self.steps += 1
    >>> method = methods.get("finetune")(backbones.load("tiny"), epochs=3)
    >>> count = Count()
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> _ = learn(method, task, count)
    >>> count.steps
    3
    """

    def begun(self, learning: Learning) -> None:
        """The structure is there; nothing has been learned yet."""

    def stepped(self, learning: Learning) -> None:
        """One step of training is done."""

    def fitted(self, learning: Learning) -> None:
        """Training is over; `end_task` comes next."""

    def ended(self, learning: Learning) -> None:
        """The task is learned."""


def learn(
    method: Method, task: Task, *listeners: Listener, step: int = 0, training: Training | None = None
) -> Learning:
    """Learn one more task: begin, fit, end. The same method, task and seed give the same bits.

    Args:
        method: who learns; it may have learned tasks before.
        task: what; `everlearn.streams.task_from` makes one of new records. Where tasks of a stream are left out, the
            method counts those that it learns: the first has the index 0.
        listeners: told of every step.
        step, training: where to continue inside the task, as a checkpoint kept it.

    Raises:
        EverlearnError: a loss is not finite, or the method has learned a task of this index already.
        ContractError: the method reads data that it may not see.

    >>> from everlearn import backbones, methods, streams
    >>> method = methods.get("simplecil")(backbones.load("tiny"))
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> _ = learn(method, task)
    >>> method.predict(["a tea"]).shape
    torch.Size([1, 2])
    """
    number = _begun(method)
    if step == 0 and task.index < number:
        raise EverlearnError(f"the method has learned {number} tasks, and the new one has the index {task.index}: "
                             f"give it the index {number}")  # fmt: skip
    task = replace(task, index=number if step == 0 else max(0, number - 1))
    learning = Learning(method, task.for_learning(), step)

    def tell(event: str) -> None:
        for listener in listeners:
            getattr(listener, event)(learning)

    if step == 0:
        _begin(method, task)
        _doubt(method)
        tell("begun")
    with seeded(method.seed, task.index, FIT):
        learning.fit(training, listeners)
    # The state of the optimizer and the gradients take three times the memory of what was trained: free for end_task.
    learning.optimizer_step = None
    method.zero_grad()
    method.eval()
    tell("fitted")
    with seeded(method.seed, task.index, END):
        method.end_task(learning.task)
    method.drop_helpers()
    _doubt(method)
    method.eval()
    tell("ended")
    return learning


def feature_norm(method: Method, inputs: Sequence[Input]) -> float:
    """The mean Euclidean norm of what the head reads for up to 32 of the inputs, to three digits.

    >>> from everlearn import backbones, methods
    >>> feature_norm(methods.get("finetune")(backbones.load("tiny")), ["tea please", "a sofa"]) > 0
    True
    """
    some = inputs[:: max(1, len(inputs) // 32)][:32]
    return float(f"{float(method.head_inputs(some).norm(dim=1).mean()):.3g}") or 1.0


def _doubt(method: Method) -> None:
    """Have the backbones of the method compare their weights before the next feature is read, as user code has run.

    Everlearn's own methods are spared the comparison, which would make the steps of prompt methods longer: that
    they never write through `.data` or numpy is checked where they are tested.
    """
    if not type(method).__module__.startswith("everlearn."):
        for module in method.modules():
            if isinstance(module, Backbone):
                module.doubt()


def replay(method: Method, tasks: Sequence[Task]) -> None:
    """Build the structure that these tasks gave the method, without their data.

    >>> from everlearn import backbones, methods, streams
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> method = methods.get("simplecil")(backbones.load("tiny"))
    >>> replay(method, [task])
    >>> method.head.class_names, method.head.counts.tolist()
    (('drink', 'furniture'), [0, 0])
    """
    for task in tasks:
        _begin(method, replace(task, index=_begun(method)))


def _begun(method: Method) -> int:
    """How many tasks the method has begun."""
    return method.task.index + 1 if hasattr(method, "task") else 0


def _begin(method: Method, task: Task) -> None:
    with seeded(method.seed, task.index, BEGIN):
        method.begin_task(task.sealed())
    device = method.backbone.device
    for module in method.children():  # a task may bring new modules, which are made on the CPU
        if not isinstance(module, Backbone):
            module.to(device)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """What JSON can keep of the state of a schedule."""
    return {k: v for k, v in state.items() if isinstance(v, int | float | bool | str | list) or v is None}


def _types(state: dict[str, Any]) -> dict[str, Any]:
    """The type of each value, and of each item of a list."""
    return {k: [type(item) for item in v] if isinstance(v, list) else type(v) for k, v in state.items()}
