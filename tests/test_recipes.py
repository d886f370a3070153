"""Every recipe is a configuration that its method accepts, and is headed by the command that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn import methods
from everlearn.config import build_config

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*/*.yaml"))


def test_every_method_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES if path.parent.name == "clinc150"} == set(methods.names())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipe_parses_and_says_how_to_run_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first == f"# everlearn run --stream {path.parent.name} --method {path.stem}"
    options = {"stream": {"name": path.parent.name}, "method": {"name": path.stem}}
    config, used = build_config(options, recipe="auto")
    assert used is not None
    assert used.resolve() == path.resolve()
    assert config["method"]["name"] == path.stem
