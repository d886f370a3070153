"""The published grid: which settings `everlearn tune` tries, and with which values, for every method.

Every method has the same number of trials, `TRIALS`. The settings are searched in the order of the table, each with the
best values of the others. Rates are multiples of the method's own rate, which is that of its paper where the paper has
one, so the paper's value is always among the candidates. Where the best value lies at an end, the search goes on
beyond it. What is not here is chosen by the method itself, or matters less than these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from everlearn import methods
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.settings import arguments

TRIALS = 12
"""The most trials of a method."""

Value = float | str

RATES = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
HEAD_RATES = (1 / 3, 1.0, 3.0)
DECADES = (0.1, 1.0, 10.0, 100.0)
"""Multiples of the method's own rate. The decades are for methods of SGD whose own rate is for thousands of steps."""

BOUNDED = ("decay", "weight")
"""Settings whose values end where the table ends."""

_STRENGTH = (0.01, 0.1, 1.0, 10.0, 100.0)
_TRAINED: dict[str, tuple[Value, ...]] = {"lr": RATES, "head_lr": HEAD_RATES}

GRIDS: dict[str, dict[str, tuple[Value, ...]]] = {
    # the upper reference: the best of five ways to learn all data
    "joint": {**_TRAINED, "solution": ("ft", "lp-ft", "lp", "ridge", "lda")},
    # references, replay and lightweight fine-tuning: the rates of what is trained and of the head
    "finetune": _TRAINED, "lora": _TRAINED, "sequential": _TRAINED, "task_adapters": _TRAINED,
    "vpt": _TRAINED, "prompt_fusion": _TRAINED, "retrieval_augmented": {"lr": RATES},
    "er": _TRAINED, "er_ace": _TRAINED, "mir": _TRAINED, "a_gem": _TRAINED, "gem": _TRAINED, "icarl": _TRAINED,
    "gdumb": _TRAINED, "feature_replay": {"head_lr": RATES},
    # replay of kept scores: their weight first
    "der": {"alpha": (0.03, 0.1, 0.3, 1.0, 3.0), **_TRAINED},
    "der_pp": {"alpha": (0.1, 0.3, 1.0), "beta": (0.25, 0.5, 1.0), **_TRAINED},
    # isolation: how much of the model a task may use is left to the paper
    "packnet": _TRAINED, "piggyback": _TRAINED, "hat": _TRAINED,
    # a penalty against forgetting: its weight first, because the best rate depends on it
    "ewc": {"strength": (1e2, 1e3, 1e4, 1e5, 1e6), **_TRAINED},
    "si": {"strength": (0.1, 1.0, 10.0, 100.0, 1000.0), **_TRAINED},
    "mas": {"strength": _STRENGTH, **_TRAINED},
    "l2_sp": {"strength": _STRENGTH, **_TRAINED},
    "lwf": {"strength": _STRENGTH, **_TRAINED},
    "feature_distillation": {"strength": _STRENGTH, **_TRAINED},
    "extra_layers": {**_TRAINED, "strength": _STRENGTH},  # its layers are new, and learn little at a wrong rate
    "qdc": {"distill": _STRENGTH, "lr": RATES},
    "zscl": {"strength": _STRENGTH, "lr": RATES},
    # prompts: the rates, then the weight of the term that the paper adds
    "l2p": {**_TRAINED, "pull": (0.05, 0.5, 5.0)},
    "dual_prompt": {**_TRAINED, "pull": (0.1, 1.0, 10.0)},
    "dap": {**_TRAINED, "pull": (0.01, 0.1, 1.0)},
    "prompt_retriever": {"lr": RATES, "pull": (0.01, 0.1, 1.0)},
    "coda_prompt": {**_TRAINED, "orthogonality": (0.0, 0.1, 1.0)},
    # representation
    "aper": {"lr": DECADES}, "ranpac": {"lr": DECADES},
    "slca": {"head_lr": RATES, "lr": RATES},
    "klda": {"gamma": (0.001, 0.01, 0.1, 1.0, 10.0)},
    "fecam": {"gamma1": (0.01, 0.1, 1.0, 10.0, 100.0)},
    "logistic": {"strength": (0.3, 3.0, 30.0, 300.0, 3000.0)},
    # mixtures
    "cofima": {"head_lr": RATES, "lr": RATES},
    "lae": {**_TRAINED, "decay": (0.9, 0.99, 0.999, 0.9999)},
    "esn": {"lr": RATES, "strength": (0.01, 0.1, 1.0)},
    "proof": {"lr": RATES},
    "interpolate": {"lr": RATES, "weight": (0.3, 0.5, 0.7, 0.9)},
    # few examples, rankings
    "setfit": {"lr": RATES, "strength": (3.0, 30.0, 300.0)},
    "l2r": {"lr": RATES, "align": (0.1, 1.0, 10.0)},
}  # fmt: skip
"""For each method the settings in the order in which they are searched, and their values. `lr` and `head_lr` are given
as multiples of the method's own rate. frozen, simplecil, lda and knn have nothing to choose."""

FOREIGN = _TRAINED
"""The grid of a method of your own, as far as it has these settings."""


@dataclass(frozen=True)
class Line:
    """The values of one setting that are tried, and that of the method itself, which is among them. They are numbers in
    ascending order, or names, which have no order: all others are next to each of them.

    >>> line = Line("strength", (100.0, 1000.0, 10000.0), 1000.0)
    >>> line.beside(1000.0), line.beside(10000.0), line.beside(100000.0, tried=[100000.0])
    ([100.0, 10000.0], [1000.0, 100000.0], [10000.0, 1000000.0])
    >>> Line("solution", ("ft", "lp", "lda"), "ft").beside("lp")
    ['ft', 'lda']
    """

    setting: str
    values: tuple[Any, ...]
    default: Any

    @property
    def is_named(self) -> bool:
        """Whether the values are names."""
        return isinstance(self.default, str)

    def steps(self, value: Any, tried: Iterable[Any] = ()) -> int:
        """How far the value is from the method's own one."""
        ladder = self.ladder(tried)
        return int(value != self.default) if self.is_named else abs(ladder.index(value) - ladder.index(self.default))

    def ladder(self, tried: Iterable[Any] = ()) -> list[Any]:
        """The values in order, with those beyond the ends that were tried."""
        return list(self.values) if self.is_named else sorted({*self.values, *tried})

    def beside(self, value: Any, tried: Iterable[Any] = ()) -> list[Any]:
        """The values next to `value`: of the ladder, or a step beyond its end."""
        if self.is_named:
            return [other for other in self.values if other != value]
        ladder = self.ladder([*tried, value])
        place = ladder.index(value)
        lower = ladder[place - 1] if place else self._beyond(ladder[0], self.values[0], self.values[1])
        higher = ladder[place + 1] if place + 1 < len(ladder) else self._beyond(value, *self.values[:-3:-1])
        return [v for v in (lower, higher) if v is not None]

    def _beyond(self, value: float, end: float, inner: float) -> float | None:
        """One more step of the size of the last one, from the inner value to the end."""
        if self.setting in BOUNDED or not end or not inner:
            return None
        return float(f"{value * end / inner:.3g}")


def grid_of(name: str, given: Iterable[str] = ()) -> dict[str, tuple[Value, ...]]:
    """The settings of a method that are searched, with their values, as `everlearn.grids.GRIDS` gives them.

    Args:
        given: settings that are decided already.

    Raises:
        EverlearnError: there is nothing to search.

    >>> list(grid_of("ewc", ["lr"]))
    ['strength', 'head_lr']
    """
    known = arguments(methods.get(name))
    default: dict[str, tuple[Value, ...]] = dict(FOREIGN) if ":" in name else {}
    searched = {key: values for key, values in GRIDS.get(name, default).items() if key in known}
    decided = set(given)
    grid = {key: values for key, values in searched.items() if key not in decided}
    if searched and not grid:
        raise EverlearnError(f"method '{name}' has nothing to tune: all of its searched settings are given "
                             f"({', '.join(searched)}): leave one out")  # fmt: skip
    if not grid:
        raise _nothing(name)
    return grid


def lines_of(learner: Method, grid: Mapping[str, tuple[Value, ...]]) -> list[Line]:
    """The settings of a grid that have an influence, with their values: rates become multiples of the method's own, and
    the method's own value is always among them.

    Args:
        learner: has begun its first task.

    Raises:
        EverlearnError: none has an influence.

    >>> from everlearn import backbones
    >>> from everlearn.engine import replay
    >>> from everlearn.testing import toy_stream
    >>> learner = methods.get("finetune")(backbones.load("tiny"), train="head")
    >>> replay(learner, [toy_stream()[0]])
    >>> [line.setting for line in lines_of(learner, grid_of("finetune"))]
    ['head_lr']
    """
    groups, known, lines = learner.param_groups(), arguments(type(learner)), []
    alive = {"lr": any("lr" not in group for group in groups),
             "head_lr": bool(groups) and learner.task.goal == "classes",
             "solution": learner.task.goal == "classes"}  # fmt: skip
    for setting, values in grid.items():
        if alive.get(setting, True):
            given = known[setting].default
            default = getattr(learner, setting) if given is None else given
            if isinstance(default, str):
                lines.append(Line(setting, values, default))
                continue
            if setting in alive:
                values = tuple(float(f"{float(factor) * default:.3g}") for factor in values if factor != 1)
            lines.append(Line(setting, tuple(sorted({*map(float, values), float(default)})), float(default)))
    if not lines:
        raise _nothing(methods.name_of(type(learner)))
    return lines


def _nothing(name: str) -> EverlearnError:
    return EverlearnError(f"method '{name}' has nothing to tune: with these settings it trains nothing, and has no "
                          "other setting in the grid (everlearn.grids)")  # fmt: skip
