"""What README says to type runs, and its figures are those of the results."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from run_page import blocks, run_page

from everlearn import methods, streams
from everlearn.command_line import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    return re.findall(r"^\$ everlearn (.+)$", README, flags=re.M)


def test_every_command_of_the_readme_parses() -> None:
    assert len(commands()) == 11
    for line in commands():
        parse(shlex.split(line, comments=True))


@pytest.fixture
def files_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that README names, with a few rows of a data set of the package."""
    monkeypatch.chdir(tmp_path)
    banking = streams.load("banking77", tasks=11, max_train_per_class=6, max_test_per_class=2)
    rows = {
        "tickets.csv": banking[0].train,
        "next_month.csv": banking[1].train[range(20)],
        "new_tickets.csv": banking[0].test,
    }
    for name, examples in rows.items():
        with open(name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["message", "intent"])
            writer.writerows(zip(examples.inputs, [banking.class_names[k] for k in examples.labels], strict=True))


def test_every_block_of_the_readme_runs(files_of_the_readme: None) -> None:
    assert run_page(ROOT / "README.md") == len([b for b in blocks(ROOT / "README.md") if b[0] in ("console", "python")])
    assert Path("tickets/report.html").exists() and Path("compared/report.html").exists()


def test_the_readme_lists_every_method() -> None:
    section = README.split("## Methods")[1].split("What is trained")[0]
    families = {methods.get(name).tags.family for name in methods.names()}
    assert set(re.findall(r"`(\w+)`", section)) - families == set(methods.names())


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "results" / "clinc150.md").read_text(encoding="utf-8")
    rows = {
        row[0]: row for line in page.splitlines() if len(row := [c.strip() for c in line.strip("|").split("|")]) > 8
    }
    told = " ".join(README.split("## Start")[0].split())
    _, of_finetune, of_lda, of_joint = re.split("plain training|`lda`|Training again", told)
    for name, text, columns in (
        ("finetune", of_finetune, ("final", "old")),
        ("lda", of_lda, ("final", "old")),
        ("joint", of_joint, ("final", "seconds")),
    ):
        measured = dict(zip(rows["method"], rows[name], strict=True))
        for column in columns:
            assert measured[column].split(" ")[0] in text.replace(",", ""), (name, column)


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_citation_names_the_version() -> None:
    import everlearn

    assert f"version: {everlearn.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_installation_page_lists_every_extra() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^(\w+) = \[", project.split("\n[")[0], flags=re.M))
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert extras == set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M))
