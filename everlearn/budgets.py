"""One budget for every method of a comparison: optimizer steps in a task, and bytes of old examples."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.config import Config
from everlearn.engine import replay
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.protocol import build_method
from everlearn.settings import Count, Natural, arguments, checked
from everlearn.streams.stream import Stream

DECIDED = {"steps": ("epochs",), "bytes": ("memory_size", "memory_bytes")}
"""The settings of a method that each budget decides."""


def check_budgets(methods: Sequence[str | Config], bytes: int | None, steps: int | None) -> None:
    """See that budgets are numbers, and that no section of a method decides itself what a budget decides.

    Raises:
        EverlearnError: that is not so.
    """
    for name, value, kind in (("bytes", bytes, Natural), ("steps", steps, Count)):
        checked(f"budget_{name}", value, kind | None)
        sections = [section for section in methods if isinstance(section, dict)] if value is not None else []
        for section, key in ((section, key) for section in sections for key in DECIDED[name] if key in section):
            raise EverlearnError(f"budget_{name}: it decides {key}, which {section['name']} is given too: leave one of "
                                 "them out")  # fmt: skip


def budgeted(
    section: Config, stream: Stream, backbone: str | None, seed: int, *, bytes: int | None = None,
    steps: int | None = None,
) -> Config:  # fmt: skip
    """The section of a method, with the epochs and the memory that a budget allows. A method that trains nothing, or
    keeps no examples, has nothing to decide and stays as it is.

    Args:
        bytes: of the examples that the method keeps; their number is then not limited.
        steps: optimizer steps in a task. Whole epochs meet them as nearly as they can, at least one.

    Raises:
        EverlearnError: the stream is online, and decides the steps itself.

    >>> from everlearn import streams
    >>> small = streams.load("digits", tasks=5, max_train_per_class=32)
    >>> budgeted({"name": "er"}, small, "tiny", 0, bytes=10_000, steps=8)
    {'name': 'er', 'memory_size': None, 'memory_bytes': 10000, 'epochs': 4}
    """
    from everlearn import methods

    settings, changes = arguments(methods.get(section["name"])), Config()
    if bytes is not None and "memory_bytes" in settings:
        changes |= {"memory_size": None, "memory_bytes": bytes}
    if steps is not None and "epochs" in settings:
        learner, _ = build_method(section, stream, backbone, seed)
        replay(learner, [stream[0]])
        if (of_epoch := steps_of_an_epoch(learner, stream)) is not None:
            changes["epochs"] = epochs_within(steps, of_epoch, stream)
    return {**section, **changes}


def steps_of_an_epoch(learner: Method, stream: Stream) -> float | None:
    """Optimizer steps of one epoch in a task of the stream, in the mean, for a learner that has begun with the first
    task; None where nothing is trained."""
    if "epochs" not in arguments(type(learner)) or not learner.param_groups():
        return None
    first = stream[0]
    size = sum(len(task.train) for task in stream) / len(stream) / len(first.train)
    return len(learner.batches(first.for_learning())) / (1 if first.batch_size else learner.epochs) * size


def epochs_within(steps: int, of_epoch: float, stream: Stream) -> int:
    """The whole number of epochs that is nearest to the steps, at least one.

    Raises:
        EverlearnError: the stream is online, and decides the steps itself.
    """
    if stream[0].batch_size:
        raise EverlearnError("budget: an online stream shows each example once, in its own batches: leave it out")
    return max(1, round(steps / of_epoch))
