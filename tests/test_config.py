"""What is run: merged in the right order, checked before anything heavy, repeatable from config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import yaml

from everlearn import config
from everlearn.config import (
    arguments,
    build_config,
    check_config,
    check_file,
    check_out,
    convert,
    default_out,
    merge,
)
from everlearn.errors import EverlearnError


class Base:
    """A base.

    Args:
        rate: learning rate,
            per step.
    """

    def __init__(self, backbone, *, rate: float = 0.1, seed: int = 0) -> None: ...


class Derived(Base):
    """Derived.

    Args:
        sizes: widths of the layers (in units).
    """

    def __init__(self, backbone, *, sizes: tuple[int, ...] = (1, 2), mode: Literal["a", "b"] = "a", **rest) -> None: ...


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A checkout in which clinc150/simplecil and clinc150/ranpac have recipes."""
    folder = tmp_path / "checkout" / "recipes" / "clinc150"
    folder.mkdir(parents=True)
    (folder / "ranpac.yaml").write_text("# everlearn run\nmethod: {width: 77}\nstream: {tasks: 3}\n")
    monkeypatch.setattr(config, "__file__", str(tmp_path / "checkout" / "everlearn" / "config.py"))
    return folder


def test_defaults_are_the_main_job():
    built, recipe = build_config({}, recipe="none")
    assert built == {"stream": {"name": "clinc150"}, "method": {"name": "logistic"}, "backbone": None, "seed": 0}
    assert recipe is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": {"name": "ranpak"}}, "unknown method 'ranpak': did you mean 'ranpac'?"),
        ({"stream": {"name": "clinc15"}}, "unknown stream 'clinc15': did you mean 'clinc150'?"),
        ({"backbone": "minlm"}, "unknown backbone 'minlm': did you mean 'minilm'?"),
        ({"backbon": "minilm"}, "did you mean 'backbone'?"),
        ({"method": {"name": "ranpac", "widht": "20"}}, "unknown setting of the method 'widht': did you mean 'width'?"),
        ({"stream": {"txt_column": "a"}}, "did you mean 'text_column'?"),
        ({"method": {"name": "ranpac", "width": "many"}}, "method.width: 'many' is not of type int"),
        ({"method": {"seed": "1"}}, "give --seed"),
        ({"stream": {"tasks": "few"}}, "stream.tasks: 'few' is not of type int | None"),
        ({"stream": {"name": "no/such/file.csv"}}, "no such file or folder: no/such/file.csv"),
        ({"seed": "x"}, "seed: 'x' is not of type int"),
        ({"seed": -1}, "seed: -1 is out of range: give a whole number from 0 to 9,223,372,036,854,775,807"),
        ({"stream": ["clinc150"]}, "neither a name nor a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_one(options, message):
    with pytest.raises(EverlearnError) as caught:
        build_config(options, recipe="none")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_command_line_text_becomes_the_type_of_the_signature():
    options = {"method": {"name": "ranpac", "width": "20"}, "stream": {"name": "digits", "tasks": "5"}}
    built, _ = build_config(options, recipe="none")
    assert built["method"]["width"] == 20 and built["stream"]["tasks"] == 5


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [(float, "1e-3", 0.001), (float, 1, 1.0), (str, "no", "no"), (str, "12", "12"), (bool, "true", True),
     (int | None, "none", None), (int | None, "3", 3), (tuple[int, ...], "[1, 2]", [1, 2]),
     (Literal["a", "b"], "b", "b")],
)  # fmt: skip
def test_values_convert(type_, text, value):
    assert convert("key", text, type_) == value


@pytest.mark.parametrize(
    ("type_", "value"),
    [(int, 2.5), (int, True), (int, None), (bool, 1), (str, 12), (Literal["a", "b"], "c"), (list[int], [1, "x"])],
)
def test_values_of_another_type_are_refused(type_, value):
    with pytest.raises(EverlearnError, match=r"^key: "):
        convert("key", value, type_)


def test_arguments_with_type_default_and_docstring_also_of_the_base_class():
    found = arguments(Derived)
    assert list(found) == ["sizes", "mode", "rate", "seed"]
    assert found["sizes"].help == "widths of the layers (in units)."
    assert found["sizes"].default == (1, 2)
    assert found["rate"].help == "learning rate, per step."
    assert found["rate"].type is float and found["rate"].type_name == "a number"


def test_a_new_name_brings_none_of_the_old_settings():
    base = {"method": {"name": "l2p", "pool": 5}, "stream": {"name": "digits", "tasks": 5}}
    assert merge(base, {"method": "ranpac"})["method"] == {"name": "ranpac"}
    assert merge(base, {"method": {"pool": 7}})["method"] == {"name": "l2p", "pool": 7}
    assert base["method"] == {"name": "l2p", "pool": 5}, "merge changes neither of its arguments"


def test_recipe_lies_under_explicit_options(recipes):
    built, path = build_config({"method": "ranpac"})
    assert path == recipes / "ranpac.yaml"
    assert built["method"]["width"] == 77 and built["stream"]["tasks"] == 3
    built, _ = build_config({"method": {"name": "ranpac", "width": "5"}, "stream": {"tasks": 6}})
    assert built["method"]["width"] == 5 and built["stream"]["tasks"] == 6


@pytest.mark.parametrize(
    ("recipe", "options", "left"),
    [
        ("lr: 0.1", {}, {"lr": 0.1}),
        ("lr: 0.1", {"train": "lora"}, {"train": "lora"}),
        ("lr: 0.1", {"train": "lora", "lr": "0.2"}, {"train": "lora", "lr": 0.2}),
        ("lr: 0.1, train: lora", {}, {"lr": 0.1, "train": "lora"}),
        ("lr: 0.1, train: lora", {"train": "lora"}, {"lr": 0.1, "train": "lora"}),
        ("lr: 0.1, train: lora", {"train": "ssf"}, {"train": "ssf"}),
        ("lr: 0.1, train: lora, epochs: 2", {"train": "full"}, {"train": "full", "epochs": 2}),
    ],
)
def test_a_recipes_rate_is_for_what_the_recipe_trains(recipes, recipe, options, left):
    (recipes / "er.yaml").write_text(f"method: {{name: er, {recipe}}}")
    assert build_config({"method": {"name": "er", **options}})[0]["method"] == {"name": "er", **left}


def test_a_recipe_is_for_its_method_and_for_other_data_of_its_kind(recipes):
    assert build_config({"stream": {"name": "digits"}, "method": "ranpac"})[1] is None  # images have their own
    assert build_config({"stream": {"name": "banking77"}, "method": "ranpac"})[1] == recipes / "ranpac.yaml"
    assert build_config({"method": {"name": "simplecil"}})[1] is None
    assert build_config({}, recipe="none") == (check_config({}), None)


def test_recipe_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("method: {name: ranpac, width: 9}")
    assert build_config({}, recipe=str(file))[0]["method"]["width"] == 9
    with pytest.raises(EverlearnError, match="no such file"):
        build_config({}, recipe=str(tmp_path / "other.yaml"))


def test_a_config_file_repeats_its_run_whatever_the_recipe_says(tmp_path, recipes):
    first, _ = build_config({"stream": {"name": "clinc150", "tasks": 4}, "seed": 3}, recipe="none")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(first))
    again, recipe = build_config({}, file=file)
    assert again == first and recipe is None
    assert build_config({"seed": 5}, file=file)[0] == {**first, "seed": 5}
    assert build_config({"method": {"name": "simplecil"}}, file=file)[0]["stream"] == first["stream"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "config.yaml, line 1"), ("- 1", "holds a list, but must hold a mapping"),
     ("sed: 1", "did you mean 'seed'?"),
     ("!!python/object/apply:os.system ['true']", "tags of YAML are not accepted")],
)  # fmt: skip
def test_a_broken_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(EverlearnError) as caught:
        build_config({}, file=file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_default_out_is_new_or_empty(tmp_path):
    built = {"stream": {"name": "data/my tickets.csv"}, "method": {"name": "pkg.mod:Mine"}, "seed": 2}
    first = default_out(built, tmp_path)
    assert first == tmp_path / "my-tickets-Mine-seed2" and not first.exists()
    first.mkdir()
    assert default_out(built, tmp_path) == first
    (first / "results.json").write_text("{}")
    assert default_out(built, tmp_path) == tmp_path / "my-tickets-Mine-seed2-2"


def test_a_folder_that_holds_a_run_is_refused_untouched(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(EverlearnError, match=r"already holds a run.*everlearn resume.*another folder"):
        check_out(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(EverlearnError, match="is a file"):
        check_out(tmp_path / "config.yaml")
    assert check_out(tmp_path / "new") == Path(tmp_path / "new")


def test_a_folder_that_may_not_be_written_to_is_refused_before_the_work(tmp_path, monkeypatch):
    check_file("--out", tmp_path / "answers.csv")
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever runs the tests may be allowed everything
    with pytest.raises(EverlearnError, match="its folder may not be written to"):
        check_file("--out", tmp_path / "answers.csv")
