"""Next month's domain: a finished retriever learns it as a new version, with a verdict on its old indexes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_domains import TurningAway, TurningKept

import everlearn
from everlearn import versions
from everlearn.cli import main
from everlearn.errors import EverlearnError
from everlearn.model import load, update
from everlearn.retrieval import Index
from everlearn.streams import Record
from everlearn.testing.toy import toy_stream


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retriever") / "run"
    everlearn.run({"name": "finetune", "epochs": 1}, toy_stream(goal="ranking"), backbone="tiny", out=folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "garden.csv"
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("query", "positive"))
        writer.writerows((f"how to plant {n * n} roses", f"answer to how to plant {n * n} roses") for n in range(30))
    return file


def test_a_retriever_learns_a_new_domain_and_gives_a_verdict(
    run: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["update", str(run), "--data", str(pairs)]) == 0
    told = capsys.readouterr().out
    assert "learned 24 pairs of" in told and "nDCG@10 in % on held-out queries" in told and "index: " in told
    version = versions.versions(run)[0]
    assert version.learned == 24 and version.new["examples"] == 6
    first = json.loads((run / "results.json").read_text())
    assert version.old["examples"] == first["retrieval"]["domains"][0]["queries"] * 3
    # The model as it was before the update is the one at the end of the run, which encodes all documents again.
    assert version.old["before"] == pytest.approx(sum(first["accuracy_matrix"][-1]) / 3, abs=1e-6)
    domains = version.retrieval["domains"]
    assert [domain["documents"] for domain in domains] == [12, 12, 12, 30]
    assert version.retrieval["stale_documents"] == 36
    index = Index.load(versions.index_of(run, 2))
    assert len(index) == 30
    model = load(run)
    assert len(index.search(["how to plant 9 roses"], by=model, k=3)[0][0]) == 3
    # It goes on from what the folder keeps of the domain that it has just learned.
    second = update(run, pairs)[1]
    assert second.old["examples"] == version.old["examples"] + 6
    assert len(second.retrieval["domains"]) == 5
    assert versions.rollback(run) == (3, 2)
    assert update(run, pairs)[1].record | {"seconds": 0, "date": ""} == second.record | {
        "seconds": 0, "date": "", "version": 4}  # fmt: skip


@pytest.mark.parametrize(("cls", "answer"), [(TurningKept, "bridge"), (TurningAway, "re-index")])
def test_an_index_that_is_kept_is_judged_as_it_was_kept(cls: Any, answer: str, tmp_path: Path, pairs: Path) -> None:
    name = f"{cls.__module__}:{cls.__qualname__}"
    everlearn.run({"name": name}, toy_stream(goal="ranking"), backbone="tiny", out=tmp_path / "run")
    for stale in (36, 66):  # the second update finds the index that the first has made
        version = update(tmp_path / "run", pairs, method=cls)[1]
        assert version.retrieval["verdict"]["answer"] == answer
        assert version.retrieval["stale_documents"] == stale
        assert (version.old["after"] > 0.99) == (answer == "bridge")


def test_no_text_is_kept_where_that_was_asked(run: Path, pairs: Path, tmp_path: Path) -> None:
    everlearn.run({"name": "finetune", "epochs": 1}, toy_stream(goal="ranking"), backbone="tiny",
                  out=tmp_path / "none", keep=0)  # fmt: skip
    assert not list((tmp_path / "none").rglob("*.texts.json"))
    with pytest.raises(EverlearnError, match=r"cannot be judged: go back with .* or learn the run again"):
        update(tmp_path / "none", pairs)
    update(run, pairs, keep=0)
    assert len(list(run.rglob("*.texts.json"))) == 3


def test_a_large_domain_is_sampled_and_the_note_says_so(
    run: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everlearn.retrieval.kept.DOCUMENTS", 10)
    update(run, pairs)
    version = update(run, pairs)[1]
    assert "76 of 96 documents were searched" in version.notes[-1]
    assert [domain["documents"] for domain in version.retrieval["domains"]] == [12, 12, 12, 30, 30]


WRONG: dict[str, tuple[list[str], str]] = {
    "labelled data": (["--data", "labelled.csv"], "has classes, and the model ranks documents"),
    "a file for tests": (["--data", "garden.csv", "--test", "garden.csv"], "test does not apply to a retriever"),
    "a column": (["--data", "garden.csv", "--stream.text_column", "query"], "text_column does not apply to a"),
    "nothing": (["--data", "nothing.csv"], "nothing.csv"),
    "damaged texts": (["--data", "garden.csv"], "domain-001.texts.json is not what this version of everlearn writes "
                      "(a query asks for a document that is not there)"),
    "a damaged index": (["--data", "garden.csv"], "domain-001"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_learned_is_refused_in_one_line(
    case: str, run: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pairs.parent)
    Path("labelled.csv").write_text("text,label\n" + "".join(f"a text {n},{n % 2}\n" for n in range(9)))
    file = run / "indexes" / "domain-001.texts.json"
    if case == "damaged texts":
        kept = json.loads(file.read_text())
        kept["documents"] = kept["documents"][:-5]
        file.write_text(json.dumps(kept))
    if case == "a damaged index":
        kept = json.loads(file.read_text())
        kept["documents"].append({"id": "more", "text": "a document that the index lacks"})
        file.write_text(json.dumps(kept))
        config = (run / "config.yaml").read_text()
        assert "finetune" in config
        monkeypatch.setattr("everlearn.methods.finetune.Finetune.tags", TurningKept.tags)
    options, message = WRONG[case]
    assert main(["update", str(run), *options]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert message in told
    assert versions.current(run) == 1 and not (run / "versions" / "version-0002").exists()


def test_records_are_no_pairs(run: Path) -> None:
    with pytest.raises(EverlearnError, match="a retriever learns pairs of queries and documents"):
        update(run, [Record("a", "b")])


def test_an_index_of_an_older_version_is_searched_by_that_version(
    run: Path, pairs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    index, documents, queries = tmp_path / "index", tmp_path / "documents.csv", tmp_path / "queries.jsonl"
    documents.write_text("id,text\n" + "".join(f"d{n},answer to how to plant {n * n} roses\n" for n in range(30)))
    assert main(["index", "create", str(index), "--documents", str(documents), "--from", str(run)]) == 0
    assert main(["index", "search", str(index), "how to plant 9 roses"]) == 0
    before, told = capsys.readouterr()
    assert "note:" not in told
    update(run, pairs)
    assert main(["index", "search", str(index), "how to plant 9 roses"]) == 0
    after, told = capsys.readouterr()
    assert before.endswith(after)
    assert "note: the index is of version 1" in told and f"everlearn migrate {index} --to {run}" in told
    queries.write_text("".join(json.dumps({"query_id": f"q{n}", "text": f"how to plant {n * n} roses",
                                           "pos": [f"d{n}"]}) + "\n" for n in range(30)))  # fmt: skip
    assert main(["migrate", str(index), "--to", str(run), "--documents", str(documents), "--queries", str(queries),
                 "--reindex"]) == 0  # fmt: skip
    assert main(["index", "search", str(index), "how to plant 9 roses"]) == 0
    assert "note:" not in capsys.readouterr().err
    with pytest.raises(EverlearnError, match="has no version 7: it has 1, 2"):
        load(run, version=7)
