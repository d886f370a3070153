"""Fills the pages of the site with what the package says itself, so that nothing is typed twice.

MkDocs calls the functions whose names begin with `on_`. A page of docs/methods holds only the equation and the advice;
paper, idea, settings and measured figures are put around them here.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from everlearn import methods
from everlearn.command_line import EXIT, _parsers
from everlearn.config import arguments
from everlearn.grids import GRIDS
from everlearn.settings import told

DOCS = Path(__file__).parent
FIGURES = ("clinc150", "banking77", "tinyimagenet100", "pacs")
"""The pages of docs/results with one row a method."""
SCORES = ("data", "seeds", "final", "old", "new", "gate", "forgetting proper", "tuning", "average", "forgetting",
          "retention", "gain")  # fmt: skip
"""Their columns of scores; pages that were written before the gate was defined anew have the last three."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the methods into the navigation, and have formulas written as MathML, which needs no script."""
    for entry in config.nav or []:
        if "Methods" in entry:
            entry["Methods"] = ["methods/index.md", *(f"methods/{name}.md" for name in methods.names())]
    fence = {"name": "math", "class": "math", "format": _formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reports of the gallery; a command whose folder is in build/ already is not run again."""
    build = Path(config.site_dir).parent
    for command in re.findall(r"^\$ everlearn (.+)$", (DOCS / "gallery.md").read_text(encoding="utf-8"), flags=re.M):
        words = shlex.split(command)
        folder = build / words[words.index("--out") + 1]
        if not (folder / "report.html").exists():
            build.mkdir(exist_ok=True)
            done = subprocess.run(
                [sys.executable, "-m", "everlearn", *words], cwd=build, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"docs/gallery.md: `everlearn {command}` failed: {done.stderr[-500:]}")
        for report in sorted(folder.rglob("report.html")):
            page = report.read_text(encoding="utf-8")
            files.append(File.generated(config, report.relative_to(build).as_posix(), content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Complete a page."""
    folder, _, file = page.file.src_uri.rpartition("/")
    name = file.removesuffix(".md")
    if folder == "methods" and name in methods.names():
        return method_page(name, markdown)
    made = {"methods": method_table, "commands": commands, "introduction": introduction, "grid": grid}
    for marker, text in made.items():
        if f"<!-- {marker} -->" in markdown:
            markdown = markdown.replace(f"<!-- {marker} -->", text())
    return markdown


def _formula(source: str, *_: Any, **__: Any) -> str:
    return convert(source, display="block")


def grid() -> str:
    """The published grid of `everlearn tune`, one line a method."""
    lines = ["| method | settings and values, in the order of the search |", "|---|---|"]
    for name in methods.names():
        settings = []
        for setting, values in GRIDS.get(name, {}).items():
            is_rate = setting in ("lr", "head_lr")
            shown = ", ".join(f"1/{1 / float(v):.0f}" if is_rate and float(v) < 1 else told(v) for v in values)
            settings.append(f"`{setting}` times {shown}" if is_rate else f"`{setting}` {shown}")
        if settings:
            lines.append(f"| [{name}](methods/{name}.md) | {'; '.join(settings)} |")
    return "\n".join(lines)


def introduction() -> str:
    """README's first paragraphs, with links that hold on the site."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    return readme.partition("\n")[2].partition("\n## ")[0].replace("(docs/", "(").strip()


# -- methods -----------------------------------------------------------------------------------
def method_page(name: str, by_hand: str) -> str:
    """The page of a method: paper, idea, the text written by hand, settings, measured figures and an example."""
    cls = methods.get(name)
    text = inspect.getdoc(cls) or ""
    about, example = text.split("\n>>> ", 1)
    idea = about.split("\nArgs:")[0].strip()
    relations = about.split("Relations:")[1].strip() if "Relations:" in about else ""
    settings = [
        f"| `{key}` | {argument.type_name} | `{argument.default!r}` | {_cell(argument.help)} |"
        for key, argument in arguments(cls).items()
    ]
    title, _, rest = by_hand.strip().partition("\n")
    return "\n\n".join([
        title,
        f"*{methods.names()[name]}*",
        f"`everlearn run --method {name}` · family: {cls.tags.family} · trains: {cls.tags.trains} · "
        f"forgets and merges exactly: {_exact(cls)}",
        _linked(idea),
        rest.strip(),
        f"## Similar methods\n\n{_method_links(relations)}" if relations else "",
        "## Measured",
        measured(name),
        "## Settings",
        "Give them as `--method.KEY VALUE`, or as keyword arguments of the class "
        f"`everlearn.methods.{cls.__name__}`.",
        "\n".join(["| setting | type | default | what it is |", "|---|---|---|---|", *settings]),
        f"## Example\n\n```pycon\n>>> {example.strip()}\n```",
    ])  # fmt: skip


def measured(name: str) -> str:
    """What the tables of docs/results say of the method: its scores, and what it costs."""
    rows = []
    for data in FIGURES:
        page = (DOCS / "results" / f"{data}.md").read_text(encoding="utf-8")
        cells = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "
        ]
        head = cells[0]
        rows += [{"data": f"[{data}](../results/{data}.md)", **dict(zip(head, row, strict=True))}
                 for row in cells[1:] if row[0] == name]  # fmt: skip
    if not rows:
        return (
            "The pages with a row for each method have none of this one. Other pages of the "
            "[results](../results/index.md) may measure it."
        )
    return "\n\n".join([
        "Scores in per cent; the page of each data set names its command, hardware and date.",
        _table(rows, [column for column in SCORES if any(row.get(column) for row in rows)]),
        "## Cost",
        "Trained parameters, stored megabytes, and seconds for the whole stream.",
        _table(rows, ["data", "trained", "stored, MB", "seconds"]),
    ])  # fmt: skip


def _table(rows: list[dict[str, str]], columns: list[str]) -> str:
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def method_table() -> str:
    """All methods by family."""
    lines = ["| family | method | what it is |", "|---|---|---|"]
    rows = sorted((methods.get(name).tags.family, name, about) for name, about in methods.names().items())
    return "\n".join(lines + [f"| {family} | [{name}]({name}.md) | {_cell(about)} |" for family, name, about in rows])


def _exact(cls: Any) -> str:
    return "yes, where the settings train nothing" if cls.tags.exact else "no"


def _linked(text: str) -> str:
    return re.sub(r"(?<![<(])https://[^\s,)]+(?<![.:])", lambda found: f"<{found[0]}>", text)


def _method_links(text: str) -> str:
    known = methods.names()
    return re.sub(r"`(\w+)`", lambda found: f"[{found[0]}]({found[1]}.md)" if found[1] in known else found[0], text)


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


# -- the command line --------------------------------------------------------------------------
def commands() -> str:
    """Every command with its options, read from the parser."""
    parts = []
    for name, parser in _parsers()[1].items():
        about = parser.description or ""
        options = [action for action in parser._actions if action.dest != "help"]
        rows = [f"| `{_option(action)}` | {_cell(action.help or '')} |" for action in options]
        table = ["| option | what it does |", "|---|---|", *rows]
        parts += [f"## everlearn {name}", f"{about[:1].upper()}{about[1:]}.", "\n".join(table)]
    return "\n\n".join([*parts, "## Exit codes", EXIT.strip()])


def _option(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else str(action.metavar or "|".join(action.choices or []) or action.dest.upper())
    value = f"[{value}]" if value and action.nargs == "?" else value
    return " ".join([", ".join(action.option_strings), value]).strip()
