"""The recommendation of a comparison: the best method that passes the gate, or a cheaper one of about equal score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everlearn.metrics import own_seconds, pareto_front, passes

Results = dict[str, Any]

NEAR = 0.005  # half a point: a cheaper method that is this close to the best score is preferred


def recommendation(results: Sequence[Results]) -> str:
    """A text: which methods pass the gate, which of them are on the Pareto front, and which method to take.

    >>> recommendation([{"method": "l2p", "error": "out of memory"}])
    'No method finished, so there is nothing to recommend.'
    """
    from everlearn.console import duration, percent

    done = [r for r in results if "final_accuracy" in r]
    if not done:
        return "No method finished, so there is nothing to recommend."
    joint = next((r["gain"] for r in done if r["method"] == "joint"), None)
    candidates = [r for r in done if r["method"] != "joint"] or done
    verdicts = [passes(r["retention"], r["gain"], joint) for r in candidates]
    accepted = "pass" if "pass" in verdicts else "unknown"
    good = [r for r, verdict in zip(candidates, verdicts, strict=True) if verdict == accepted]
    gate = "the gate" if joint is not None else "the first half of the gate (retention at least 80 %)"
    unsaid = "" if joint is not None else " Joint was not run, so the second half of the gate is unknown: add joint."

    def figures(r: Results) -> str:
        return (f"final {percent(r['final_accuracy'])}, retention {percent(r['retention'])}, "
                f"gain {percent(r['gain'])}, {duration(own_seconds(r))}")  # fmt: skip

    best = max(good or candidates, key=lambda r: r["final_accuracy"] or 0.0)
    if not good:
        return f"No method passes {gate}; {best['method']} has the best final score ({figures(best)}).{unsaid}"
    front = [good[i] for i in pareto_front([_worth(r) for r in good])]
    near = [r for r in good if (r["final_accuracy"] or 0.0) >= (best["final_accuracy"] or 0.0) - NEAR]
    pick = min(near, key=own_seconds)
    why = "the best final score" if pick is best else f"within half a point of {best['method']} and cheaper"
    return (f"{_listed(good)} pass{'es' if len(good) == 1 else ''} {gate}. On the Pareto front of retention, gain "
            f"and time: {_listed(front)}. Take {pick['method']} ({figures(pick)}): {why}.{unsaid}")  # fmt: skip


def _worth(r: Results) -> tuple[float, float, float]:
    """Retention, gain and negative seconds: larger is better. A single task has no retention; it counts as 1."""
    return r["retention"] if r["retention"] is not None else 1.0, r["gain"] or 0.0, -own_seconds(r)


def _listed(results: Sequence[Results]) -> str:
    *others, last = [r["method"] for r in results]
    return f"{', '.join(others)} and {last}" if others else last
