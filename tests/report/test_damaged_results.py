"""A results.json in which one value is wrong, missing or of another type is refused in one line, or shown."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everlearn import run
from everlearn.comparison_table import compare_table
from everlearn.errors import EverlearnError
from everlearn.recommendation import recommendation
from everlearn.report import render
from everlearn.run_table import final_table
from everlearn.schemas.results import read_results

DIGITS = {"name": "digits", "tasks": 2, "max_train_per_class": 4, "max_test_per_class": 2}
WRONG = [None, -1, 0, 1.5, 1e308, float("nan"), 10**9, True, "x", [], {}, [None], ["x"], [[]], {"a": 1}]
TRIALS = 100


@pytest.mark.parametrize("method, stream", [("er", DIGITS), ("frozen", "domains4")])
def test_one_wrong_value(method: str, stream: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = run(method, stream, backbone="tiny", out=tmp_path / "run", validate=stream is DIGITS).results
    right = json.loads(json.dumps(right))
    draw, shown, file = random.Random(0), 0, tmp_path / "results.json"
    places = [place for place in places_in(right) if place]
    for _ in range(TRIALS):
        found = copy.deepcopy(right)
        *path, last = draw.choice(places)
        inner = found
        for key in path:
            inner = inner[key]
        if draw.random() < 0.1:
            del inner[last]
        else:
            inner[last] = draw.choice(WRONG)
        file.write_text(json.dumps(found))
        try:
            read = read_results(file)
        except EverlearnError as error:
            assert str(file) in str(error) and "\n" not in str(error)
            continue
        shown += 1
        final_table(read)
        compare_table([read, right])
        assert render([read]) and render([read, right]) and recommendation([read, right])
        capsys.readouterr()
    assert 0 < shown < TRIALS / 2


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value, in a list to the first three."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places_in(part, (*path, key))
