"""A search over lines of values: each setting in turn, beyond the ends where the best lies there, then round the best.

The grids are drawn by Optuna (Akiba et al., KDD 2019, https://arxiv.org/abs/1907.10902), and its study is told every
score. The study is kept in memory: a search that goes on is told the scores of its finished trials again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from everlearn.errors import EverlearnError
from everlearn.grids import TRIALS, Line
from everlearn.streams.validation import NOTE

Point = tuple[Any, ...]
"""A value for each line."""
Scores = Mapping[Point, float | None]
K = TypeVar("K", bound=Hashable)

LARGEST = 1e12  # no setting of a grid has larger values


def search(
    lines: Sequence[Line], judge: Callable[[list[Point]], list[float | None]], seed: int = 0, most: int = TRIALS
) -> dict[Point, float | None]:
    """The scores of all points that were tried, at most `most`.

    Args:
        lines: the settings in the order in which they are searched.
        judge: gives the score of each of some points; None for one that failed.
        seed: of the order in which a grid is tried.

    Raises:
        EverlearnError: Optuna is not installed.

    >>> lines = [Line("lr", (0.1, 0.3, 0.9), 0.3), Line("strength", (1.0, 10.0, 100.0), 1.0)]
    >>> scores = search(lines, lambda points: [-abs(lr - 2.7) - abs(strength - 10) for lr, strength in points])
    >>> best_point(lines, scores), len(scores)
    ((2.7, 10.0), 9)
    """
    optuna = import_optuna()
    study = optuna.create_study(direction="maximize")
    scores: dict[Point, float | None] = {}

    def tried(number: int, values: Sequence[Any]) -> bool:
        """Try the values of one line with the best of the others; return whether some of them were new."""
        best = best_point(lines, scores)
        points = [(*best[:number], value, *best[number + 1 :]) for value in values]
        new = [point[number] for point in points if point not in scores][: most - len(scores)]
        if not new:
            return False
        grid = {line.setting: [value] for line, value in zip(lines, best, strict=True)}
        study.sampler = _grid_sampler(optuna)({**grid, lines[number].setting: new}, seed=seed % 2**32)
        trials = [study.ask() for _ in new]
        points = [tuple(_drawn(trial, line) for line in lines) for trial in trials]
        for trial, point, score in zip(trials, points, judge(points), strict=True):
            scores[point] = score
            study.tell(trial, score, state=optuna.trial.TrialState.FAIL if score is None else None)
        return True

    def beside(number: int) -> list[Any]:
        best = best_point(lines, scores)
        return lines[number].beside(best[number], [point[number] for point in scores])

    for number, line in enumerate(lines):
        tried(number, line.values)
        while tried(number, beside(number)):  # beyond an end
            pass
    while any([tried(number, beside(number)) for number in range(len(lines))]):
        pass
    return scores


def best_point(lines: Sequence[Line], scores: Scores) -> Point:
    """The point of the best score; of equal ones the fewest steps from the defaults, which are returned where there is
    no score."""

    def steps(point: Point) -> int:
        return sum(line.steps(value, [other[number] for other in scores])
                   for number, (line, value) in enumerate(zip(lines, point, strict=True)))  # fmt: skip

    finished = sorted((-score, steps(point), point) for point, score in scores.items() if score is not None)
    return finished[0][2] if finished else tuple(line.default for line in lines)


def best(results: Mapping[K, dict[str, Any]]) -> K:
    """The key of the results with the best final score; of equal ones the first. Whoever chooses among runs by their
    scores chooses by this.

    Args:
        results: for each candidate the content of its results.json, of a run on a stream of `on_validation`.

    Raises:
        EverlearnError: some results are of test examples, on which nothing may be chosen.

    >>> best({"a": {"final_accuracy": 0.8, "notes": [NOTE]}, "b": {"final_accuracy": 0.9, "notes": [NOTE]}})
    'b'
    """
    check_validation(results)
    return max(results, key=lambda key: results[key]["final_accuracy"])


def check_validation(results: Mapping[K, dict[str, Any]]) -> None:
    """See that the results are of validation examples.

    Raises:
        EverlearnError: some are not.
    """
    if wrong := [key for key, result in results.items() if NOTE not in result["notes"]]:
        raise EverlearnError(f"the results of {wrong[0]} are of test examples, and settings are chosen on validation "
                             "examples only: learn a stream of everlearn.streams.validation.on_validation")  # fmt: skip


def import_optuna() -> Any:
    """The library, without its log lines.

    Raises:
        EverlearnError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise EverlearnError("everlearn tune needs the library optuna: pip install 'everlearn[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # otherwise it logs every trial
    return optuna


def _drawn(trial: Any, line: Line) -> Any:
    """The value that a trial of Optuna has for a line."""
    if line.is_named:
        return trial.suggest_categorical(line.setting, line.values)
    return trial.suggest_float(line.setting, 0.0, LARGEST)


def _grid_sampler(optuna: Any) -> Any:
    class Grid(optuna.samplers.GridSampler):  # type: ignore[misc, name-defined]
        def after_trial(self, *_: Any) -> None:
            """Optuna's own stops the study, which is an error where trials are asked for one by one."""

    return Grid
