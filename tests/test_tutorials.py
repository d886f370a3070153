"""The tutorials, the examples and README's blocks run, in order, and print what their pages say."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
from run_page import absent, blocks, run_page

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What stands for an encoder whose weights are not on this machine."""
    folder = Path(os.environ.get("EVERLEARN_SHARED", ROOT.parent / "shared" / "data")) / "weights"
    if not folder.is_dir():
        return {"vit-tiny@112": "tiny", "vit-tiny": "tiny"}
    monkeypatch.setenv("EVERLEARN_WEIGHTS", str(folder))
    return {}


def test_there_are_six_tutorials() -> None:
    assert len(TUTORIALS) == 6


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_its_first_block_to_its_last(page: Path, lacking: dict[str, str]) -> None:
    assert run_page(page, lacking) >= 3


def test_the_blocks_of_the_page_on_your_own_data_run() -> None:
    assert run_page(ROOT / "docs" / "your_own_data.md") >= 3


def test_the_examples_of_the_gate_are_worked_out() -> None:
    assert run_page(ROOT / "docs" / "gate.md") >= 6


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip(), "an example prints a result"


def test_a_page_that_promises_another_output_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ everlearn list backbones\nthe moon\n```\n")
    with pytest.raises(AssertionError, match="does not print 'the moon'"):
        run_page(page)
    page.write_text("```pycon\n>>> 1 + 1\n3\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        run_page(page)
    page.write_text(
        '```python title="mine.py"\nanswer = 42\n```\n```python\nimport mine\nassert mine.answer == 41\n```\n'
    )
    with pytest.raises(AssertionError):
        run_page(page)
    assert [language for language, _, _ in blocks(page)] == ["python", "python"]
    assert absent(["a 1", "...", "b"], "x\na 2\ny\nb") is None


@pytest.mark.parametrize("page", ["contract", "peft"])
def test_the_blocks_of_the_reference_run(page: str) -> None:
    assert run_page(ROOT / "docs" / "reference" / f"{page}.md") >= 1
