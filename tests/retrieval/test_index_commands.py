"""`everlearn index` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import normalize

import everlearn
from everlearn import backbones
from everlearn.cli import main
from everlearn.retrieval import Index, index_commands, stamp_of
from everlearn.retrieval.generation import KINDS
from everlearn.testing.toy import toy_stream

TEXTS = {"roses": "water the roses at six", "lawn": "the lawn is dry", "tea": "a cup of tea"}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    file = tmp_path / "garden.csv"
    file.write_text("id,text,title\n" + "".join(f"{id},{text},Title {id}\n" for id, text in TEXTS.items()))
    return file


@pytest.fixture
def folder(tmp_path: Path, documents: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["index", "create", str(tmp_path / "index"), "--documents", str(documents), "--from", "tiny"]) == 0
    capsys.readouterr()
    return tmp_path / "index"


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert main(["index", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["index", *map(str, words)]) == 2
    out = capsys.readouterr()
    (line,) = [line for line in out.err.splitlines() if line.startswith("everlearn: ")]
    assert not out.out
    return line


def test_documents_may_be_those_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, folder = tmp_path / "pairs.csv", tmp_path / "index"
    pairs.write_text("query,positive,negative\nat six,water the roses,a cup of tea\nis it dry,the lawn is dry,\n")
    found = told(capsys, "create", folder, "--documents", pairs, "--from", "tiny")
    assert found == {"added": 3, "documents": 3}
    assert {*Index.load(folder).ids} == {*everlearn.streams.load(str(pairs), test=0.5)[0].corpus.ids}
    again = told(capsys, "reindex", folder, "--documents", pairs, "--to", "tiny")
    assert again["documents"] == 3, "the ids are the same again"


def test_from_documents_to_answers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "search", folder, "the lawn is dry", "a cup of tea", "--k", 2)
    assert [query["query"] for query in found["queries"]] == ["the lawn is dry", "a cup of tea"]
    assert [[hit["id"] for hit in query["found"]][:1] for query in found["queries"]] == [["lawn"], ["tea"]]
    assert found["queries"][0]["found"][0]["score"] == pytest.approx(1, abs=1e-4)

    (tmp_path / "queries.csv").write_text("query_id,text\nq1,the lawn is dry\n")
    found = told(capsys, "search", folder, "--queries", tmp_path / "queries.csv", "--k", 1)
    assert found["queries"][0]["query"] == "q1" and found["queries"][0]["found"][0]["id"] == "lawn"

    (tmp_path / "more.jsonl").write_text('{"_id": "soil", "text": "turn the soil"}\n')
    assert told(capsys, "add", folder, "--documents", tmp_path / "more.jsonl") == {"added": 1, "documents": 4}
    assert told(capsys, "remove", folder, "--ids", "lawn,tea") == {"removed": 2, "documents": 2}
    (tmp_path / "ids.txt").write_text("soil\n\n")
    assert told(capsys, "remove", folder, "--ids", tmp_path / "ids.txt")["documents"] == 1
    about = told(capsys, "info", folder, "--check")
    assert about["documents"] == 1 and about["kind"] == "exact" and about["generation"] == 3 and about["checked"]
    assert about["stamp"] == stamp_of(backbones.load("tiny")).record and about["made_by"] == {"backbone": "tiny"}
    assert told(capsys, "save", folder)["documents"] == told(capsys, "restore", folder)["documents"] == 1


def test_a_document_that_is_called_as_a_file_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("# Notes\n")
    (tmp_path / "documents.csv").write_text('id,text\nnotes.md,some notes\n"a,b",two letters\nlast,the last\n')
    told(capsys, "create", "index", "--documents", "documents.csv", "--from", "tiny")
    for id in ("notes.md", "a,b"):
        assert told(capsys, "remove", "index", "--ids", id)["removed"] == 1
    assert Index.load("index").ids == ["last"]


def test_rows_that_are_left_out_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents, asked = tmp_path / "documents.csv", tmp_path / "asked.csv"
    documents.write_text("id,text\na,a cup of tea\nb,\nc,the lawn\n")
    asked.write_text("query_id,text\nq1,a cup of tea\nq1,the lawn\n")
    made = ["create", str(tmp_path / "index"), "--documents", str(documents), "--from", "tiny"]
    assert "--skip-bad-rows" in refused(capsys, *made)
    assert main(["index", *made, "--skip-bad-rows", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["added"] == 2 and f"note: left out 1 bad row: {documents}, line 3:" in out.err
    search = ["search", str(tmp_path / "index"), "--queries", str(asked), "--k", "1"]
    assert "leave bad rows out with --skip-bad-rows" in refused(capsys, *search)
    assert main(["index", *search, "--skip-bad-rows", "--json"]) == 0
    out = capsys.readouterr()
    assert [query["query"] for query in json.loads(out.out)["queries"]] == ["q1"]
    assert f"note: left out 1 bad row: {asked}, line 3:" in out.err


def test_what_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "search", str(folder), "the lawn is dry", "--k", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["the lawn is dry", "   1  1.0000  lawn"]
    assert main(["index", "info", str(folder)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["documents"] == "3" and lines["backbone"] == "tiny" and lines["similarity"] == "cosine"


def test_titles(tmp_path: Path, documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "create", tmp_path / "index", "--documents", documents, "--from", "tiny", "--titles")
    found = told(capsys, "search", tmp_path / "index", "Title tea. a cup of tea", "--k", 1)["queries"][0]["found"][0]
    assert found["id"] == "tea" and found["score"] == pytest.approx(1, abs=1e-4)


def test_kinds_and_settings_reach_the_index(
    tmp_path: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    made = ("create", tmp_path / "index", "--documents", documents, "--from", "tiny", "--kind", "hnsw", "--links", 8)
    told(capsys, *made)
    about = told(capsys, "info", tmp_path / "index")
    assert about["kind"] == "hnsw" and about["links"] == 8
    assert tuple(KINDS) == index_commands.KINDS
    assert set(index_commands.SETTINGS) == {name for settings in KINDS.values() for name in settings}
    for name, (default, *_) in (item for settings in KINDS.values() for item in settings.items()):
        assert default is None or f"(default: {default})" in index_commands.SETTINGS[name]


def test_a_run_makes_an_index_and_its_next_version_is_refused(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in ((0, "run"), (1, "other")):
        everlearn.run({"name": "finetune", "epochs": 1}, toy_stream(goal="ranking"), backbone="tiny",
                      out=tmp_path / name, seed=seed)  # fmt: skip
    told(capsys, "create", "index", "--documents", documents, "--from", "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the index remembers the whole path
    assert told(capsys, "search", "../index", "a cup of tea", "--k", 1)["queries"][0]["found"][0]["id"] == "tea"
    assert "other weights of tiny" in refused(capsys, "search", "../index", "a cup of tea", "--from", "../other")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert "run" in refused(capsys, "search", "../index", "a cup of tea")
    assert told(capsys, "search", "../index", "a cup of tea", "--from", "../moved")


def test_refused_in_one_line_and_nothing_written(
    tmp_path: Path, folder: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    (tmp_path / "empty.csv").write_text("id,text\n")
    (tmp_path / "twice.csv").write_text("id,text\na,one\na,two\n")
    (tmp_path / "none.txt").write_text("\n")
    new = tmp_path / "new"
    for words, message in [
        (("add", folder, "--documents", documents), "3 ids are in the index already, the first is 'roses'"),
        (("create", folder, "--documents", documents, "--from", "tiny"), "exists already"),
        (("create", new, "--documents", tmp_path / "empty.csv", "--from", "tiny"), "holds no rows"),
        (("create", new, "--documents", tmp_path / "twice.csv", "--from", "tiny"), "the id 'a' is already used"),
        (("create", new, "--documents", tmp_path / "nowhere.csv", "--from", "tiny"), "nowhere.csv"),
        (("create", new, "--documents", documents, "--from", "tinny"), "tinny"),
        (("create", new, "--documents", documents, "--from", "tiny", "--kind", "flat"), "invalid choice: 'flat'"),
        (("create", new, "--documents", documents, "--from", "tiny", "--links", "3"), "has no setting 'links'"),
        (("create", new), "--documents"),
        (("remove", folder, "--ids", "lawn,weed"), "the id 'weed' is not in the index"),
        (("remove", folder, "--ids", tmp_path / "none.txt"), "--ids names no document"),
        (("search", folder), "give either queries or --queries FILE"),
        (("search", folder, "x", "--queries", documents), "give either queries or --queries FILE"),
        (("search", folder, "x", "--k", "0"), "k is 0"),
        (("search", new, "x"), "is not an index"),
        (("info", tmp_path), "is not an index"),
        (("search", folder, "x", "--kk", "3"), "unknown option '--kk'"),
        (("dance", folder), "invalid choice: 'dance'"),
    ]:  # fmt: skip
        assert message in refused(capsys, *words)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert not new.exists()


@pytest.mark.parametrize("options", [[], ["--titles", "--skip-bad-rows"]], ids=["plain", "titles"])
def test_an_interrupted_command_says_how_to_go_on(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:  # fmt: skip
    if options:
        documents.write_text(documents.read_text() + "bad,,\n")
    monkeypatch.setattr(index_commands, "PART", 1)
    add = Index.add
    added: list[str] = []

    def interrupted(index: Index, ids: Any, texts: Any, by: Any) -> None:
        if len(added) == 2:
            raise KeyboardInterrupt
        added.extend(ids)
        add(index, ids, texts, by)

    monkeypatch.setattr(Index, "add", interrupted)
    made = ["index", "create", str(tmp_path / "index"), "--documents", str(documents), "--from", "tiny", *options]
    assert main(made) == 130
    line = capsys.readouterr().err
    assert "interrupted after 2 of 3 documents" in line
    monkeypatch.undo()
    command = line.partition("`everlearn ")[2].partition("`")[0].split()
    assert main(command) == 0
    index = Index.load(tmp_path / "index")
    assert index.ids == list(TEXTS)
    texts = [f"Title {id}. {text}" for id, text in TEXTS.items()] if options else list(TEXTS.values())
    expected = normalize(backbones.load("tiny").encode(texts)).numpy()  # the rest is read as the first ones were
    assert index.vectors(index.ids) == pytest.approx(expected, abs=1e-6)
