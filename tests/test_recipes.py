"""Every recipe is a configuration that its method accepts, and is headed by the command that runs it."""

from __future__ import annotations

import shlex
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from everlearn import compare, methods
from everlearn.command_line import parse
from everlearn.config import build_config
from everlearn.errors import EverlearnError
from everlearn.grids import GRIDS, TRIALS

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*/*.yaml"))


def test_every_method_has_a_recipe() -> None:
    have = {(path.parent.name, path.stem) for path in RECIPES}
    learners = {name: methods.get(name).tags for name in methods.names() if "classes" in methods.get(name).tags.goals}
    of_texts = {name for name, tags in learners.items() if "text" in tags.inputs}
    assert {name for folder, name in have if folder == "clinc150"} == of_texts
    assert {("images", name) for name in learners.keys() - of_texts} <= have


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipe_parses_and_says_how_to_run_it(path: Path) -> None:
    first, collection = path.read_text().splitlines()[0], path.parent.name
    if collection in ("papers", "images"):  # for any stream
        assert first == f"# everlearn run --stream STREAM --method {path.stem} --recipe {collection}"
        config, used = build_config({"method": {"name": path.stem}}, recipe=collection)
    else:
        assert first == f"# everlearn run --stream {collection} --method {path.stem}"
        options = {"stream": {"name": collection}, "method": {"name": path.stem}}
        config, used = build_config(options, recipe="auto")
    for line in path.read_text().splitlines():
        if line.startswith("# Chosen by: everlearn "):
            asked = parse(shlex.split(line.removeprefix("# Chosen by: everlearn ")))
            assert (asked.verb, asked.method) == ("tune", path.stem)
    assert used is not None
    assert used.resolve() == path.resolve()
    assert config["method"]["name"] == path.stem


TUNED = [path for path in RECIPES if "tuning" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", TUNED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_tuned_recipe_has_the_settings_of_its_best_trial(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    trials = [trial for trial in recipe["tuning"]["trials"] if trial["score"] is not None]
    chosen = [trial for trial in trials if all(recipe["method"][key] == trial[key] for key in trial if key != "score")]
    assert len(trials) <= TRIALS and [trial["score"] for trial in chosen] == [recipe["tuning"]["score"]]
    assert recipe["tuning"]["score"] == max(trial["score"] for trial in trials)
    assert set(trials[0]) - {"score"} <= set(GRIDS[path.stem])


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES if path.parent.name == "papers"))
def test_defaults_are_the_papers_values(name: str) -> None:
    published = build_config({"method": {"name": name}}, recipe="papers")[0]["method"]
    defaults = {key: parameter.default for key, parameter in signature(methods.get(name)).parameters.items()}
    faster = {"rff"} if name == "klda" else set()  # its docstring says why
    of_its_own = {"name", *faster}
    assert {key for key, value in published.items() if key not in of_its_own and plain(defaults[key]) != value} == set()
    assert all(published[key] != defaults[key] for key in faster)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_a_collection_serves_any_stream_and_an_unknown_one_is_refused() -> None:
    digits = {"name": "digits"}
    config, used = build_config({"stream": digits, "method": {"name": "ranpac"}}, recipe="clinc150")
    assert used is not None and config["method"]["width"] == 5000 and config["stream"]["name"] == "digits"
    known = "banking77, clinc150, domains4, images, papers"
    with pytest.raises(EverlearnError, match=f"no such collection; give auto, none or one of {known}"):
        compare("simplecil", digits, backbone="tiny", recipe="paper")
