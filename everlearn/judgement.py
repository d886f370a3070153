"""What runs say about methods: the seeds of each method together, the gate beside joint, and differences in pairs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from everlearn.errors import near
from everlearn.metrics import own_seconds, pareto_front
from everlearn.metrics.accuracy_matrix import mean
from everlearn.metrics.gate import NEW, OLD, Least, Verdict, old_and_new, part_of, passes
from everlearn.metrics.intervals import Interval, interval, paired
from everlearn.settings import as_options

Results = Mapping[str, Any]

Split = Literal["test", "validation"]

REFERENCE = "joint"

DRAWN = ("name", "in_memory", "class_seed", "split_seed")
"""The settings of a stream that differ from seed to seed, or say only where its data are."""


@dataclass(frozen=True)
class Judged:
    """A method with all its seeds.

    Args:
        method: its name.
        runs: the results.json of each seed.
        final: the score on all tasks at the end.
        old, new: its score on old tasks and on the newest one ÷ joint's, seed by seed; None where joint is missing.
        verdict: at the gate.
        seconds: the mean seconds of a run, without encoding.

    >>> Judged("lda", ({"method": "lda"},), Interval(0.9, None), None, None, "unknown", 2.0).is_reference
    False
    """

    method: str
    runs: tuple[Results, ...]
    final: Interval | None
    old: Interval | None
    new: Interval | None
    verdict: Verdict
    seconds: float

    @property
    def is_reference(self) -> bool:
        """Whether it is joint, beside which the others are judged."""
        return is_reference(self.runs[0])

    @property
    def at_the_gate(self) -> str:
        """What a table says of it: the verdict, or, of joint, that it is the reference and how it learned all data."""
        if not self.is_reference:
            return self.verdict
        solution = _settings(self.runs[0]).get("solution")
        return f"reference ({solution})" if solution else "reference"

    @property
    def general(self) -> Interval | None:
        """Which share of what the embeddings could do on the last task, before it is learned, training has kept."""
        return interval((run.get("general") or {}).get("kept") for run in self.runs)

    def over(self, key: str) -> Interval | None:
        """The mean and interval of a figure of results.json; None where no run has it."""
        return interval(run.get(key) for run in self.runs)


def is_reference(run: Results) -> bool:
    """Whether a run is one of joint. In a comparison of several settings of joint, the second is called joint-2.

    >>> is_reference({"method": "joint-2", "config": {"method": {"name": "joint", "solution": "lda"}}})
    True
    """
    return REFERENCE in (run["method"], _settings(run).get("name"))


def judge(results: Sequence[Results], least: Least = (OLD, NEW), on: Split = "test") -> list[Judged]:
    """Every method that finished, in the given order.

    Runs with the same method, stream and backbone, the same settings of both, and different seeds are one entry.

    Args:
        results: the contents of each results.json; what failed or was skipped is left out.
        least: what must be reached of joint's score on old tasks, and on the newest one.
        on: the examples whose scores are read.

    >>> def run(method, *last):
    ...     tasks = [{"test": 10}, {"test": 10}]
    ...     return {"method": method, "accuracy_matrix": [[0.9, None], list(last)], "tasks": tasks,
    ...             "final_accuracy": sum(last) / 2, "seconds": {"total": 1.0, "encode": 0.0}}
    >>> runs = [run("lda", 0.8, 0.9), run("finetune", 0.1, 0.95), run("joint", 0.85, 0.9)]
    >>> [(judged.method, judged.verdict) for judged in judge(runs)]
    [('lda', 'pass'), ('finetune', 'fail'), ('joint', 'pass')]
    """
    done = [run for run in results if "final_accuracy" in run]
    groups: dict[tuple[str, ...], list[Results]] = {}
    for run in done:
        key = _identity(run)
        while any(other.get("seed") == run.get("seed") for other in groups.get(key, [])):
            key = (*key, "again")  # the same seed twice is another row, and no second seed
        groups.setdefault(key, []).append(run)
    return [_judged(runs, done, least, on) for runs in groups.values()]


def without_result(results: Sequence[Results]) -> list[tuple[str, str, str]]:
    """What gave no result, each once: the method, with its seed where there are several; "failed" or "skipped"; why.

    >>> without_result([{"method": "l2p", "seed": 1, "error": "no memory"}, {"method": "lda", "final_accuracy": 0.9}])
    [('l2p, seed 1', 'failed', 'no memory')]
    """
    found = [
        (run["method"] + (f", seed {run['seed']}" if "seed" in run else ""), word, run[key])
        for run in results
        for key, word in (("error", "failed"), ("skipped", "skipped"))
        if key in run
    ]
    return list(dict.fromkeys(found))


def split_to_decide_on(results: Sequence[Results]) -> Split:
    """Where methods are chosen: on validation examples if every finished run scored them, else on the tests.

    >>> split_to_decide_on([{"final_accuracy": 0.9, "validation": None}])
    'test'
    """
    done = [run for run in results if "final_accuracy" in run]
    return "validation" if done and all(_last(run, "validation")[0] for run in done) else "test"


def differences(judged: Sequence[Judged], first: Judged, on: Split = "test") -> dict[int, Interval]:
    """The final score of each other method less that of `first`, in pairs of runs on the same data.

    Returns:
        By the position in `judged`. Methods without a common seed are left out.

    >>> differences([], Judged("lda", (), None, None, None, "unknown", 0.0))
    {}
    """
    found = {}
    for i, other in enumerate(judged):
        pairs = [(a, b) for a in first.runs for b in other.runs if _pair_key(a) == _pair_key(b)]
        scores = zip(*((_final(a, on), _final(b, on)) for a, b in pairs), strict=True)
        if other is not first and pairs and (difference := paired(*scores)):
            found[i] = difference
    return found


def above_joint(results: Sequence[Results]) -> list[str]:
    """A warning, with the likely causes, for methods whose final score is above joint's: beyond the interval of the
    paired differences where there are several seeds. Of several settings of joint, it is the one with the highest
    score, by which the gate judges.

    >>> above_joint([])
    []
    """
    judged = judge(results)
    warnings = []
    references = sorted((one for one in judged if one.is_reference and one.final), key=lambda one: -one.final.mean)  # type: ignore[union-attr]
    for k, joint in enumerate(references):
        if any(_same_stream(better, joint) for better in references[:k]):
            continue
        above = [
            (judged[i], difference)
            for i, difference in differences(judged, joint).items()
            if difference.low > 0 and not judged[i].is_reference
        ]
        if above:
            warnings.append(_explained(above, joint))
    return warnings


def front(judged: Sequence[Judged], among: Sequence[Verdict] = ("pass",)) -> list[Judged]:
    """Those of a verdict that no other of them beats in old, new and seconds together.

    >>> front([])
    []
    """
    good = [one for one in judged if one.verdict in among and one.old and one.new and not one.is_reference]
    return [good[k] for k in pareto_front([(one.old.mean, one.new.mean, -one.seconds) for one in good])]  # type: ignore[union-attr]


def beside_joint_command(run: Results) -> str:
    """The command that learns the stream of a run with its method and with joint, which the gate needs; a call in
    Python where the rows were in memory.

    >>> config = {"stream": {"name": "may data.csv", "tasks": 4}, "backbone": None, "seed": 0}
    >>> beside_joint_command({"method": "lda", "config": config})
    "everlearn compare --methods lda,joint --stream 'may data.csv' --stream.tasks 4"
    """
    config, method = run["config"], _settings(run).get("name", run["method"])
    if "in_memory" in config["stream"]:
        encoder = f", backbone={config['backbone']!r}" if config.get("backbone") else ""
        return f"everlearn.compare({f'{method},{REFERENCE}'!r}, stream{encoder})"
    stream = {key: near(value) if isinstance(value, str) else value for key, value in config["stream"].items()}
    backbone = ["--backbone", config["backbone"]] if config.get("backbone") else []
    words = ["everlearn", "compare", "--methods", f"{method},{REFERENCE}", *backbone, *as_options("stream", stream)]
    return shlex.join(words)


def scores_on_old_and_new(run: Results, on: Split = "test") -> tuple[float | None, float | None]:
    """The score of a run over all old tasks, and on the newest one, after the last task.

    >>> scores_on_old_and_new({"accuracy_matrix": [[0.9, None], [0.8, 0.95]], "tasks": [{"test": 5}, {"test": 5}]})
    (0.8, 0.95)
    """
    return old_and_new(*_last(run, on))


def beside_joint(run: Results, runs: Sequence[Results], on: Split = "test") -> tuple[float | None, float | None]:
    """The two halves of the gate for a run: its score on old tasks ÷ joint's, and on the newest one ÷ joint's.

    Joint's is that on the same data and backbone, with the same seed where there is one, else the mean of all. Where
    joint was learned with several settings, those with the highest final score count: a badly trained joint beside a
    good one does not lower the bar.

    >>> beside_joint({"method": "lda", "accuracy_matrix": [[0.9]], "tasks": [{"test": 5}]}, [])
    (None, None)
    """
    references = [other for other in runs if is_reference(other) and _same_data(other, run)]
    same_seed = [other for other in references if other.get("seed") == run.get("seed")]
    by_settings: dict[tuple[str, ...], list[Results]] = {}
    for other in same_seed or references:
        by_settings.setdefault(_identity(other), []).append(other)
    best = max(by_settings, key=lambda settings: _mean_final(runs, settings, on), default=())
    pairs = [scores_on_old_and_new(other, on) for other in by_settings.get(best, [])]
    old, new = scores_on_old_and_new(run, on)
    return part_of(old, mean(pair[0] for pair in pairs)), part_of(new, mean(pair[1] for pair in pairs))


def _judged(runs: Sequence[Results], done: Sequence[Results], least: Least, on: Split) -> Judged:
    parts = [beside_joint(run, done, on) for run in runs]
    old, new = (interval(part[half] for part in parts) for half in (0, 1))
    final = interval(_final(run, on) for run in runs)
    seconds = sum(own_seconds(run) for run in runs) / len(runs)
    verdict = passes(old, new, least)
    if verdict == "pass" and any(None in part for part in parts):
        verdict = "cannot tell"  # a seed in which joint is missing, or has learned nothing
    return Judged(str(runs[0]["method"]), tuple(runs), final, old, new, verdict, seconds)


def _last(run: Results, on: Split) -> tuple[list[float | None], list[int]]:
    """The scores on all tasks after the last one, and the number of examples of each; both empty where it has none."""
    if on == "validation":
        found = run.get("validation") or {"scores": [], "examples": []}
        return found["scores"], found["examples"]
    return run["accuracy_matrix"][-1], [task["test"] for task in run["tasks"]]


def _final(run: Results, on: Split) -> float | None:
    if on == "test":
        return run["final_accuracy"]
    known = [(score, n) for score, n in zip(*_last(run, on), strict=True) if score is not None]
    return sum(score * n for score, n in known) / sum(n for _, n in known) if known else None


def _mean_final(runs: Sequence[Results], settings: tuple[str, ...], on: Split) -> float:
    """The mean final score of all runs of joint with these settings."""
    joints = (run for run in runs if is_reference(run))
    return mean(_final(run, on) for run in joints if _identity(run) == settings) or 0.0


def _settings(run: Results) -> Mapping[str, Any]:
    """The section of the method in the configuration of a run; empty where it is not kept."""
    return (run.get("config") or {}).get("method") or {}


def _identity(run: Results) -> tuple[str, ...]:
    config = run.get("config") or {}
    stream = {key: value for key, value in (config.get("stream") or {}).items() if key not in DRAWN}
    settings = json.dumps([config.get("method"), stream], sort_keys=True, default=str)
    return str(run["method"]), str(run.get("stream")), str(run.get("backbone")), str(len(run["tasks"])), settings


def _pair_key(run: Results) -> tuple[Any, ...]:
    return run.get("seed"), run.get("fingerprint"), run.get("backbone")


def _same_data(a: Results, b: Results) -> bool:
    return (a.get("fingerprint"), a.get("backbone")) == (b.get("fingerprint"), b.get("backbone"))


def _same_stream(a: Judged, b: Judged) -> bool:
    """Whether two methods learned the same data in some seed."""
    return any(_same_data(one, other) for one in a.runs for other in b.runs)


def _explained(above: Sequence[tuple[Judged, Interval]], joint: Judged) -> str:
    """One line: which methods are above joint, by how much, and why that may be."""
    told = ", ".join(f"{one.method} ({100 * difference.mean:+.1f} points)" for one, difference in above)
    settings = _settings(joint.runs[0])
    shown = ("solution", "train", "epochs", "lr", "head_lr")
    given = ", ".join(f"{key} {settings[key]}" for key in shown if key in settings)
    causes = [f"joint is trained badly{f' ({given})' if given else ''}: its learning rate, or too few epochs, which "
              "`everlearn tune joint` chooses"]  # fmt: skip
    if any(one.runs[0].get("trainable_parameters") == 0 for one, _ in above):
        causes.append("its training spoils features that a closed form uses as they are: try --method.solution lda, "
                      "ridge, lp or lp-ft, among which tune chooses too")  # fmt: skip
    if len(joint.runs) == 1:
        causes.append("chance, which --seeds 5 tells")
    several = len(above) > 1
    return (f"{told} {'are' if several else 'is'} above joint, which is then no upper bound, and the gate is too easy. "
            f"Likely causes: {'; '.join(causes)}.")  # fmt: skip
