"""Data of one's own at the command line: how it is given stands in the help, and it is learned by what fits it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import everlearn
from everlearn.cli import main
from everlearn.config import build_config
from everlearn.errors import EverlearnError
from everlearn.streams.packaged import OWN


@pytest.fixture
def faq(tmp_path, monkeypatch):
    """Two files for retrieval, in the working folder; their stem."""
    monkeypatch.chdir(tmp_path)
    ids = [f"{domain}{i}" for domain in ("card", "home") for i in range(10)]
    corpus = [{"doc_id": id, "text": f"answer to {id}", "domain": id[:-1]} for id in ids]
    queries = [{"query_id": id, "text": f"question {id}", "pos": [id], "domain": id[:-1]} for id in ids]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (tmp_path / f"faq_{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "faq"


@pytest.mark.parametrize("command", [["list", "streams"], ["list"], ["run", "--help"], ["compare", "--help"]])
def test_the_help_says_how_ones_own_data_are_given(capsys, command):
    try:
        main(command)
    except SystemExit as stopped:
        assert not stopped.code
    told = " ".join(capsys.readouterr().out.split())
    assert "your own data, with --stream:" in told
    for name, text in OWN.items():
        assert f"{name} {text}" in told
    assert (
        "faq_corpus.jsonl with doc_id and text" in told
        and "ir_datasets:NAME" in told
        and "--stream.text_column" in told
    )


def test_the_list_of_streams_stays_a_list_of_names_for_programs(capsys):
    main(["list", "streams", "--json"])
    assert set(json.loads(capsys.readouterr().out)) == {"banking77", "clinc150", "digits", "domains4"}


def test_retrieval_is_learned_by_a_default_that_can(faq, tmp_path, capsys):
    assert build_config({"stream": {"name": faq}})[0]["method"]["name"] == "lora"
    assert build_config({"stream": {"name": faq}, "method": {"name": "er"}})[0]["method"]["name"] == "er"
    assert build_config({"stream": {"name": "digits"}})[0]["method"]["name"] != "lora"
    assert main(["run", "--stream", faq, "--backbone", "tiny", "--out", str(tmp_path / "run")]) == 0
    assert "lora on faq (domain-incremental, text, ranking)" in capsys.readouterr().out
    assert everlearn.run(stream=faq, backbone="tiny").results["method"] == "lora"


def test_the_default_for_classes_still_refuses_rankings_by_name(faq):
    with pytest.raises(EverlearnError, match=r"'ranpac' learns classes, and the goal of stream 'faq' is ranking"):
        everlearn.run("ranpac", faq, backbone="tiny")


def test_elsewhere_than_on_posix_the_reason_and_the_remedy_are_told():
    code = "import os, pathlib, tempfile; os.name = 'nt'; import everlearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: everlearn needs a POSIX system") and "WSL" in last
    assert '"Operating System :: POSIX"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()
