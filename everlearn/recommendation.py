"""The recommendation of a comparison: the best method that passes the gate, or a cheaper one of about equal score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everlearn.judgement import REFERENCE, Judged, differences, front, judge, split_to_decide_on, without_result
from everlearn.metrics.gate import NEW, OLD, Least
from everlearn.metrics.intervals import conclusion

Results = dict[str, Any]

NEAR = 0.005  # half a point: a cheaper method that is this close to the best score is preferred


def recommendation(results: Sequence[Results], least: Least = (OLD, NEW)) -> str:
    """A text: which methods pass the gate, which of them are on the Pareto front, and which method to take.

    It decides by the validation examples where every run has scored them, and reports the figures of the tests: the
    best of many test scores is too good by chance.

    Args:
        results: the contents of each results.json, of one seed or of several.
        least: what the gate asks for of joint's score on old tasks, and on the newest one.

    >>> recommendation([{"method": "l2p", "error": "out of memory"}])
    'No method finished, so there is nothing to recommend.'
    """
    on = split_to_decide_on(results)
    everybody = judge(results, least, on)
    if not everybody:
        return "No method finished, so there is nothing to recommend."
    tests = dict(zip(map(id, everybody), judge(results, least), strict=True))
    candidates = [one for one in everybody if not one.is_reference] or everybody
    has_joint = any(one.is_reference for one in everybody)
    good = [one for one in candidates if one.verdict == "pass"]
    best = max(good or candidates, key=lambda one: one.final.mean if one.final else 0.0)
    near = [one for one in good if one.final and best.final and one.final.mean >= best.final.mean - NEAR]
    pick = min(near, key=lambda one: one.seconds) if near else best
    figures = _figures(tests[id(pick)])
    asked = f"{100 * least[0]:g} % of joint's score on old tasks, {100 * least[1]:g} % on the newest"
    decided = " (decided on validation examples; the figures are of the tests)" if on == "validation" else ""
    if all(len(run["tasks"]) < 2 for one in everybody for run in one.runs):  # with joint or without it
        text = f"The gate needs at least two tasks. {pick.method} has the best final score ({figures}){decided}."
    elif not has_joint:
        absent = next((word for name, word, _ in without_result(results) if name.partition(",")[0] == REFERENCE), None)
        why = {"failed": "failed", "skipped": "was skipped"}.get(absent or "", "was not run: add it to --methods")
        text = (f"The gate ({asked}) is unknown, because joint {why}. "
                f"{pick.method} has the best final score ({figures}){decided}.")  # fmt: skip
    elif not good:
        doubtful = [one for one in candidates if one.verdict == "cannot tell"]
        unknown = all(one.verdict == "unknown" for one in candidates)
        why = (" joint has no score to compare with on old tasks or on the newest one." if unknown else
               f" For {_listed(doubtful)} the seeds cannot tell: give more." if doubtful else "")  # fmt: skip
        text = f"No method passes the gate ({asked}).{why} {pick.method} has the best final score ({figures}){decided}."
    else:
        why = "the best final score" if pick is best else f"within half a point of {best.method} and cheaper"
        text = (f"{_listed(good)} pass{'es' if len(good) == 1 else ''} the gate ({asked}). On the Pareto front of old, "
                f"new and time: {_listed(front(good))}. Take {pick.method} ({figures}): {why}{decided}.")  # fmt: skip
    alike = [good[i] for i, gap in differences(good, pick, on).items() if gap.half and conclusion(gap) == "cannot tell"]
    if alike:
        text += f" {len(pick.runs)} seeds cannot tell {_listed(alike)} from it."
    return text


def _figures(one: Judged) -> str:
    from everlearn.formats import duration, ranged

    halves = f", old {ranged(one.old)} and new {ranged(one.new)} % of joint's" if one.old and one.new else ""
    return f"final {ranged(one.final)}{halves}, {duration(one.seconds)}"


def _listed(judged: Sequence[Judged]) -> str:
    *others, last = [one.method for one in judged]
    return f"{', '.join(others)} and {last}" if others else last
