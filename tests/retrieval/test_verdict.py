"""The rule of the verdict, branch by branch."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.retrieval.verdict import BRIDGE_RATIO, FEWEST, RETENTION, TOLERANCE, Answer, Reached, decide, reached

R = Reached


@pytest.mark.parametrize(
    ("old", "new", "served", "bridged", "answer"),
    [
        # serve: as much as in a new index, and as much as before.
        (0.90, R(0.92), R(0.92), None, "serve"),
        (0.90, R(0.905), R(0.896), R(0.95), "serve"),  # within the tolerance, although a bridge finds more
        (0.90, R(0.80), R(0.90), None, "serve"),  # the old index keeps what the new one would lose
        (0.90, R(0.92), R(0.905), None, "re-index"),  # below the new index by more than the tolerance
        # bridge
        (0.90, R(0.93), R(0.10, 0.1), R(0.92), "bridge"),
        (0.90, R(0.93), None, R(0.92), "bridge"),  # other dimensions: nobody can search as it is
        (0.90, R(0.80), R(0.10, 0.1), R(0.90), "bridge"),
        (0.50, R(0.80), R(0.10, 0.2), R(0.76), "bridge"),  # exactly the ratio
        (0.50, R(0.80), R(0.10, 0.2), R(0.75), "re-index"),  # just below the ratio, although above the old one
        (0.90, R(0.92), R(0.10, 0.1), R(0.885), "re-index"),  # the ratio is reached, but it loses against before
        (0.90, R(0.93), R(0.10, 0.1), R(0.93, 0.79), "re-index"),  # one domain falls below the gate
        # re-index
        (0.90, R(0.95), R(0.05, 0.0), R(0.60, 0.6), "re-index"),
        (0.90, R(0.95), None, None, "re-index"),
        # roll back
        (0.90, R(0.85), R(0.05, 0.0), R(0.60, 0.6), "roll back"),  # worse
        (0.90, R(0.905), R(0.05, 0.0), R(0.60, 0.6), "roll back"),  # no better: encoding again brings nothing
        (0.90, R(0.95, 0.79), R(0.05, 0.0), None, "roll back"),  # better on the whole, but a domain is lost
        (0.90, R(0.85), None, None, "roll back"),
        (0.00, R(0.00), R(0.00), None, "serve"),  # nothing was found and nothing is lost
    ],
)
def test_the_rule(old: float, new: Reached, served: Reached | None, bridged: Reached | None, answer: Answer) -> None:
    found, reason = decide(old, new, served, bridged)
    assert found == answer, reason
    assert reason.strip() and "\n" not in reason


def test_the_thresholds_are_those_that_are_given() -> None:
    assert (TOLERANCE, BRIDGE_RATIO, RETENTION) == (0.01, 0.95, 0.8)
    bridge = (0.5, R(0.8), R(0.1, 0.2), R(0.7))
    assert decide(*bridge)[0] == "re-index" and decide(*bridge, bridge_ratio=0.8)[0] == "bridge"
    close = (0.9, R(0.95), R(0.92), None)
    assert decide(*close)[0] == "re-index" and decide(*close, tolerance=0.05)[0] == "serve"
    lost = (0.9, R(0.95, 0.7), None, None)
    assert decide(*lost)[0] == "roll back" and decide(*lost, retention=0.6)[0] == "re-index"


def test_a_domain_of_few_queries_does_not_decide_alone() -> None:
    old = np.ones(FEWEST + 2)
    new = np.r_[np.ones(FEWEST), 0.0, 1.0]
    assert reached(new, old, ["large"] * FEWEST + ["one", "other"]).kept == 0.5  # the small ones count together
    assert reached(new, old, ["large"] * FEWEST + ["large"] * 2).kept == pytest.approx((FEWEST + 1) / (FEWEST + 2))
    assert reached(new, np.zeros(FEWEST + 2), ["a"] * (FEWEST + 2)).kept == 1.0  # nothing was found before
    assert reached(2 * old, old, ["a"] * (FEWEST + 2)).kept == 1.0  # more is no loss
