"""Every public name has a docstring that says shapes and errors, and an example that runs and ends in a result.

The pages under docs/reference list the public names, one directive a name; the methods have pages of their own.
"""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from everlearn import methods

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PACKAGES = ["everlearn", "everlearn.streams", "everlearn.metrics", "everlearn.report"]
"""Those that say with `__all__` what is public."""

SHAPE = re.compile(r"\([\w…]+(?: or \w+)?(?:, ?[\w …]+)*,?\)|scalar|of the same shape|of its parameter")
"""Sizes in parentheses, (n, width), or their words."""

ERRORS = re.compile(r"^\s*raise (?!NotImplementedError)(?:\w*Error|unknown)\b", flags=re.M)


def directives() -> list[str]:
    return [name for page in sorted(REFERENCE.glob("*.md"))
            for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.M)]  # fmt: skip


@functools.cache
def resolve(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def public() -> list[str]:
    return [*directives(), *(methods.name_of(methods.get(name)) for name in methods.names())]


def found(name: str) -> Any:
    return methods.get(name) if name in methods.names() else resolve(name)


NAMES = public()
each = pytest.mark.parametrize("name", NAMES)


def own_members(thing: Any) -> dict[str, Any]:
    """The public functions and properties that a class defines itself."""
    if not isinstance(thing, type):
        return {}
    return {key: member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            for key, member in vars(thing).items()
            if not key.startswith("_")
            and (isinstance(member, property | staticmethod | classmethod) or inspect.isfunction(member))}  # fmt: skip


def documentation(thing: Any, name: str | None = None) -> str:
    """The docstring of a name, or of a member, which may be that of the function it overrides."""
    if name is None:
        return inspect.getdoc(thing) or ""
    return next((doc for cls in thing.__mro__ if (doc := inspect.getdoc(vars(cls).get(name)))), "")


def speaks_of_tensors(function: Any) -> bool:
    """Whether it takes or returns tensors; those of a checkpoint, in a dictionary by name, have any shape."""
    annotations = [str(value).replace("dict[str, Tensor]", "")
                   for value in getattr(function, "__annotations__", {}).values()]  # fmt: skip
    return any(word in annotation for annotation in annotations for word in ("Tensor", "ndarray", "Matrix"))


def test_the_reference_lists_what_the_packages_call_public() -> None:
    listed = [resolve(name) for name in directives()]
    missing = [
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
        if callable(thing := getattr(importlib.import_module(package), name)) and thing not in listed
    ]
    assert not missing, f"no page of docs/reference lists {missing}"
    assert len(set(directives())) == len(directives())


@each
def test_it_has_an_example_that_ends_in_a_result(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    thing = found(name)
    text = documentation(thing)
    assert text, "no docstring"
    assert "see help(type(self))" not in text
    module = importlib.import_module(thing.__module__)
    example = doctest.DocTestParser().get_doctest(text, dict(vars(module)), name, None, None)
    assert example.examples, "no example"
    assert example.examples[-1].want, "the example does not end in a result"
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    runner.run(example, out=lines.append)
    assert not runner.failures, "".join(lines)[-600:]


@each
def test_it_names_the_errors_that_it_raises(name: str) -> None:
    thing = found(name)
    # The text of a class speaks for its constructor and private parts, that of a method for itself.
    members = own_members(thing)
    for key, function in members.items():
        if ERRORS.search(inspect.getsource(function)):
            said = documentation(thing, key) + documentation(thing)
            assert "Raises:" in said, f"{key} raises an error, and no docstring says which"
    if not members and inspect.isfunction(thing) and ERRORS.search(inspect.getsource(inspect.unwrap(thing))):
        assert "Raises:" in documentation(thing)


@each
def test_its_members_have_docstrings_and_tensors_have_shapes(name: str) -> None:
    thing = found(name)
    wrong = []
    for key, function in own_members(thing).items():
        text = documentation(thing, key)
        if key == "forward" and not text.startswith("Define the computation"):
            text += documentation(thing)
        if not text or text.startswith("Define the computation"):
            wrong.append(f"{key}: no docstring")
        elif speaks_of_tensors(function) and not SHAPE.search(text):
            wrong.append(f"{key}: no shape")
    if inspect.isfunction(thing) and speaks_of_tensors(thing) and not SHAPE.search(documentation(thing)):
        wrong.append("no shape")
    assert not wrong, wrong


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_page_with_its_equation_and_advice(name: str) -> None:
    page = (REFERENCE.parent / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert re.fullmatch(
        rf"# {name}\n\n## Equation\n\n```math\n.+\n```\n\n.+\n\n## When to use it\n\n.+\n", page, flags=re.S
    )
