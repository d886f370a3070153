"""The modules import each other without circles, and the layers keep apart: read from the source, nothing is run.

Deferred imports and those for type checkers count too: a circle that Python does not notice is still one to a reader.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import everlearn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "everlearn"


def module_name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path, modules: dict[str, Path], root: Path) -> Iterator[str]:
    """The modules that a file imports anywhere. `from package import x` is an import of the module `package.x`
    where there is one, and of the package itself where x is a name in it."""
    name = module_name(file, root)
    here = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(here.split(".")[: len(here.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (above, node.module or "") if part)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                if inner in modules:
                    yield inner
                elif origin in modules:
                    yield origin


def graph(package: Path) -> dict[str, set[str]]:
    """For each module of the package those that it imports."""
    root = package.parent
    modules = {module_name(file, root): file for file in sorted(package.rglob("*.py"))}
    return {name: set(imports(file, modules, root)) - {name} for name, file in modules.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, or none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_by_a_detour():
    found = circle(graph(PACKAGE))
    assert not found, " imports ".join(reversed(found))


@pytest.mark.parametrize(
    ("layer", "above"),
    [
        ("heads", ("memory", "method", "methods", "backbones", "peft", "engine", "session")),
        ("metrics", ("method", "methods", "backbones", "streams", "heads", "engine", "session")),
        ("streams", ("method", "methods", "backbones", "heads", "memory", "engine", "session")),
        ("memory", ("method", "methods", "backbones", "engine", "session")),
        ("backbones", ("method", "methods", "heads", "memory", "engine", "session")),
        ("method", ("methods", "engine", "session", "protocol")),
        ("methods", ("engine", "session", "protocol", "evaluation")),
        ("engine", ("evaluation", "session", "protocol", "results")),
    ],
)
def test_a_layer_imports_nothing_above_it(layer, above):
    edges = graph(PACKAGE)
    inside = [name for name in edges if name == f"everlearn.{layer}" or name.startswith(f"everlearn.{layer}.")]
    assert inside
    wrong = {(name, to) for name in inside for to in edges[name] for part in above
             if to == f"everlearn.{part}" or to.startswith(f"everlearn.{part}.")}  # fmt: skip
    assert wrong == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pack.b", ["pack.b"]),
        ("from pack import b", ["pack.b"]),
        ("from pack import word", ["pack"]),
        ("from pack.b import word", ["pack.b"]),
        ("from . import b", ["pack.b"]),
        ("from .b import word", ["pack.b"]),
        ("def later():\n    from pack import b", ["pack.b"]),
        ("if TYPE_CHECKING:\n    from pack.b import word", ["pack.b"]),
        ("import os\nfrom json import loads", []),
    ],
)
def test_every_way_to_import_is_seen(tmp_path, text, found):
    package = tmp_path / "pack"
    package.mkdir()
    for name, content in {"__init__": "", "a": text, "b": ""}.items():
        (package / f"{name}.py").write_text(content)
    assert graph(package)["pack.a"] == set(found)


def test_a_circle_is_found(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    circled = {"a": "from pack import b", "b": "def later():\n    from pack.c import word", "c": "import pack.a"}
    for name, content in {"__init__": "", **circled}.items():
        (package / f"{name}.py").write_text(content)
    assert set(circle(graph(package))) == {"pack.a", "pack.b", "pack.c"}


def test_what_messages_and_pages_name_is_there_after_one_import():
    names = sorted(everlearn.__all__)
    code = f"import everlearn; print(*(hasattr(everlearn, name) for name in {names})); everlearn.nonsense"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert {"streams", "versions", "testing"} < set(names) and found.stdout.split() == ["True"] * len(names)
    assert found.stderr.splitlines()[-1] == "AttributeError: module 'everlearn' has no attribute 'nonsense'"
