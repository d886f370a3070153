"""Nothing is chosen on test examples: benchmark scripts choose by one function, which refuses results on them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from everlearn import run
from everlearn.errors import EverlearnError
from everlearn.search import best
from everlearn.streams.validation import on_validation
from everlearn.testing import toy_stream

SCRIPTS = sorted((Path(__file__).parents[1] / "bench").rglob("*.py"))
CHOOSERS = {"idxmax", "idxmin", "nlargest", "nsmallest", "most_common", "argmin"}


def choices(source: str) -> list[int]:
    """The lines in which an expression takes the best of several: `max` or `min` by a key, the first or last of what is
    sorted by a key, and the like. (Tables may be sorted, and `argmax(1)` is how a classifier answers.)"""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            by_key = any(keyword.arg == "key" for keyword in node.keywords)
            if name in CHOOSERS or (name in ("max", "min") and by_key) or (name == "argmax" and _over_all(node)):
                found.append(node.lineno)
        of = node.value if isinstance(node, ast.Subscript) else None
        if isinstance(of, ast.Call) and getattr(of.func, "id", "") == "sorted" and of.keywords:
            found.append(node.lineno)
    return found


def _over_all(call: ast.Call) -> bool:
    """Whether it is `scores.argmax()` or `np.argmax(scores)`."""
    of = call.func.value if isinstance(call.func, ast.Attribute) else None
    return len(call.args) == (isinstance(of, ast.Name) and of.id in ("np", "numpy", "torch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_benchmark_script_takes_the_best_of_something_by_itself(script: Path) -> None:
    source = script.read_text(encoding="utf-8")
    assert not choices(source), (
        "choose with everlearn.search.best, which sees that the scores are on validation examples"
    )


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("max(scores, key=scores.get)", True),
        ("sorted(rows, key=score)[0]", True),
        ("np.argmax(scores)", True),
        ("scores.argmax()", True),
        ("frame.accuracy.idxmax()", True),
        ("scores.argmax(1)", False),
        ("max(3, n)", False),
        ("for row in sorted(rows, key=score): print(row)", False),
    ],
)
def test_ways_to_choose_are_seen(source: str, seen: bool) -> None:
    assert bool(choices(source)) == seen


def test_scripts_that_choose_do_so_on_validation_examples() -> None:
    choosing = {
        script.stem for script in SCRIPTS if "everlearn.search import best" in script.read_text(encoding="utf-8")
    }
    assert choosing == {"common", "mir", "mixture", "retrieval", "tune"}


def test_results_on_test_examples_choose_nothing() -> None:
    stream = toy_stream(tasks=2)
    on_test = run("lda", stream, backbone="tiny").results
    judged = {name: run(name, on_validation(stream), backbone="tiny").results for name in ("lda", "simplecil")}
    assert best(judged) in judged
    with pytest.raises(EverlearnError, match="the results of lda are of test examples"):
        best({"lda": on_test})
