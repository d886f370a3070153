"""Class-incremental steps: every task brings new classes. Task-incremental and online streams use them too."""

from __future__ import annotations

import numpy as np

from everlearn.errors import EverlearnError
from everlearn.streams.splits import Parts, divide
from everlearn.streams.steps import Step


def steps(parts: Parts, classes: list[str], sizes: list[int], names: list[str] | None = None) -> list[Step]:
    """One step per group of classes, in order. They are called task 1, task 2, … unless `names` is given."""
    ends = np.cumsum(sizes).tolist()
    groups = [classes[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    names = names or [f"task {i}" for i in range(1, len(groups) + 1)]
    number = {label: k for k, group in enumerate(groups) for label in group}
    divided = divide(parts, "label", number, len(groups))
    return [Step(name, group, own) for name, group, own in zip(names, groups, divided, strict=True)]


def task_sizes(classes: int, tasks: int | None, base: int | None, increment: int | None) -> list[int]:
    """The number of classes of each task.

    With `increment`, the first task has `base` classes (`increment` if `base` is not given) and every later task
    has `increment`; the last task has the rest. Without it, there are `tasks` tasks of equal size. If the classes
    do not divide equally, the first tasks have one class more. If `tasks` is None, there are ten tasks; with fewer
    than twenty classes, as many as give two classes per task.

    Raises:
        EverlearnError: the classes cannot fill tasks of these sizes.

    >>> task_sizes(100, None, 50, 10)
    [50, 10, 10, 10, 10, 10]
    >>> task_sizes(77, 10, None, None)
    [8, 8, 8, 8, 8, 8, 8, 7, 7, 7]
    >>> task_sizes(10, None, None, None)
    [2, 2, 2, 2, 2]
    """
    if increment is not None:
        return _increments(classes, tasks, base, increment)
    if base is not None:
        raise EverlearnError(f"base={base} needs increment, the number of classes of every later task")
    count = min(10, max(classes // 2, 1)) if tasks is None else tasks
    if not 1 <= count <= classes:
        raise EverlearnError(f"{classes} classes cannot fill tasks={count}; give tasks from 1 to {classes}")
    return [classes // count + (i < classes % count) for i in range(count)]


def _increments(classes: int, tasks: int | None, base: int | None, increment: int) -> list[int]:
    if tasks is not None:
        raise EverlearnError(f"tasks={tasks} and increment={increment} are both given; give one of them")
    first = increment if base is None else base
    if increment < 1 or not 1 <= first <= classes:
        remedy = f"give 1 or more, and a base of at most {classes}"
        raise EverlearnError(f"base={first}, increment={increment} do not fit {classes} classes; {remedy}")
    return [first, *(min(increment, classes - done) for done in range(first, classes, increment))]


def order_classes(
    appearing: list[str], present: set[str], declared: tuple[str, ...], class_order: str, seed: int
) -> list[str]:
    """The classes that occur in training, in the order in which a stream shows them.

    "shuffled" is `RandomState(seed).permutation` of the class list that the data set declares, or of the sorted
    names if it declares none. Published class-incremental results use this order. "given" is the declared list,
    or the order of first appearance.

    Raises:
        EverlearnError: the order is unknown.
    """
    if class_order == "given":
        ordered = [*declared, *appearing]
    elif class_order == "shuffled":
        own = [*declared, *sorted(present - set(declared))]
        ordered = [own[i] for i in np.random.RandomState(seed).permutation(len(own))]
    else:
        raise EverlearnError(f"unknown class_order '{class_order}': give shuffled or given")
    return [name for name in dict.fromkeys(ordered) if name in present]
