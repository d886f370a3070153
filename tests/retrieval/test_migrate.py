"""`everlearn migrate` and `everlearn index reindex`: from files to the verdict, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from known_encoders import Known, queries, texts

import everlearn
from everlearn import cli
from everlearn.errors import DataError, EverlearnError
from everlearn.retrieval import migrate as migration
from everlearn.retrieval.given import encoder, encoder_of, held_out, read_texts
from everlearn.retrieval.index import Index
from everlearn.retrieval.migrate import followed, migrate
from everlearn.retrieval.stamp import stamp_of
from everlearn.retrieval.verdict import Verdict
from everlearn.streams.retrieval import Entry

DOCUMENTS = texts(120)
ENCODERS = {
    "old": Known(noise=1.5), "child": Known(noise=0.5, turned=True), "same": Known(noise=0.1),
    "better": Known(family=1, noise=0.1), "worse": Known(family=1, noise=3.0),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of the encoder `old`, beside its documents and queries in files."""
    with Index.create(tmp_path / "index", stamp_of(ENCODERS["old"]), made_by={"backbone": "old"}) as index:
        index.add(list(DOCUMENTS), list(DOCUMENTS.values()), by=ENCODERS["old"])
    write(tmp_path / "documents.jsonl", [{"doc_id": id, "text": text} for id, text in DOCUMENTS.items()])
    asked = [{"query_id": query.id, "text": query.text, "pos": list(query.relevant)} for query in queries(120)]
    write(tmp_path / "queries.jsonl", asked)

    def known(name: str, method: str | None = None) -> Any:
        return (ENCODERS[name], {"backbone": name}) if name in ENCODERS else encoder(name, method)

    monkeypatch.setattr("everlearn.retrieval.migrate.encoder", known)
    monkeypatch.setattr("everlearn.retrieval.given.encoder", known)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "index"


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


GIVEN = ["--documents", "documents.jsonl", "--queries", "queries.jsonl"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(list(argv))
    out, error = capsys.readouterr()
    return code, out, error


def test_the_verdict_alone_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    code, out, _ = run(capsys, "migrate", "index", "--to", "child", *GIVEN)
    assert code == 0 and out.startswith("verdict: bridge\n")
    assert out.splitlines()[-1] == "nothing was changed; --apply puts the bridge into the index"
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_bridge_is_applied_and_searched_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "migrate", "index", "--to", "child", *GIVEN, "--apply", "--json")
    record = json.loads(out)
    assert code == 0 and (record["answer"], record["done"]) == ("bridge", "bridge")
    assert record["bill"]["documents"] == 120  # what it would cost; nothing was encoded
    index = Index.load(folder)
    assert index.stamp == stamp_of(ENCODERS["old"])
    found = index.search([query.text for query in queries(120)], by=ENCODERS["child"], k=10)[0]
    assert sum(f"d{i}" in row for i, row in enumerate(found)) > 110
    with pytest.raises(EverlearnError, match="another encoder"):
        index.search(["query 1"], by=ENCODERS["better"])


def test_serve_lets_its_queries_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = ENCODERS["moved"] = Known(noise=0.5, moved=0.001)
    code, out, _ = run(capsys, "migrate", "index", "--to", "moved", *GIVEN, "--apply")
    assert code == 0 and out.startswith("verdict: serve\n")
    assert "the queries of moved may search index now: `everlearn index search index --from moved QUERY`" in out
    found, scores = Index.load(folder).search(["query 5"], by=moved, k=1)
    assert found == [["d5"]]
    expected = moved.embed(["query 5"], "query").numpy() @ Index.load(folder).vectors(["d5"]).T
    assert scores[0, 0] == pytest.approx(expected[0, 0], abs=1e-2)


def test_the_command_that_comes_next_can_be_repeated_in_a_shell() -> None:
    told = followed(Verdict({"answer": "serve", "done": "serve"}, None), "my index", "my run")
    assert told.endswith("`everlearn index search 'my index' --from 'my run' QUERY`")


def test_an_encoder_of_the_same_documents_needs_nothing(folder: Path) -> None:
    verdict = migrate(folder, "same", "documents.jsonl", "queries.jsonl", apply=True)
    assert (verdict.answer, verdict.done) == ("serve", "serve")
    assert not Index.load(folder).bridges


def test_a_better_stranger_is_re_indexed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "migrate", "index", "--to", "better", *GIVEN, "--apply")
    assert code == 0 and out.startswith("verdict: re-index\n")
    assert out.splitlines()[-1] == "index was re-indexed, and answers better"
    index = Index.load(folder)
    assert index.stamp == stamp_of(ENCODERS["better"]) and index.made_by == {"backbone": "better"}
    assert index.search(["query 5"], by=ENCODERS["better"], k=1)[0] == [["d5"]]


def test_roll_back_is_never_overruled_in_passing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "migrate", "index", "--to", "worse", *GIVEN, "--apply")
    assert code == 0 and out.startswith("verdict: roll back\n")
    assert out.splitlines()[-1] == "nothing was changed; leave the index and its encoder as they are"
    code, _, error = run(capsys, "migrate", "index", "--to", "worse", *GIVEN, "--reindex")
    assert code == 2 and "the verdict is roll back" in error
    assert Index.load(folder).stamp == stamp_of(ENCODERS["old"])
    # Who wants it all the same asks for it by its own name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everlearn.retrieval.given.encoder", lambda name, method: (ENCODERS[name], {}))
        code, out, _ = run(capsys, "index", "reindex", "index", "--to", "worse", "--documents", "documents.jsonl")
    assert code == 0 and "embedded" in out
    assert Index.load(folder).stamp == stamp_of(ENCODERS["worse"])


def test_re_index_whatever_the_verdict(folder: Path) -> None:
    verdict = migrate(folder, "child", "documents.jsonl", "queries.jsonl", always_reindex=True)
    assert (verdict.answer, verdict.done) == ("bridge", "re-index")
    assert Index.load(folder).stamp == stamp_of(ENCODERS["child"])


def test_an_index_that_was_re_indexed_meanwhile_gets_no_bridge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = migration.judge

    def judge(index: Index, *args: Any, **named: Any) -> Any:
        verdict = original(index, *args, **named)
        migration.reindex(Index.load(folder), DOCUMENTS, ENCODERS["better"])
        return verdict

    monkeypatch.setattr(migration, "judge", judge)
    with pytest.raises(EverlearnError, match="was re-indexed while the verdict was found"):
        migrate(folder, "child", "documents.jsonl", "queries.jsonl", apply=True)
    assert not Index.load(folder).bridges


def test_a_threshold_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "migrate", "index", "--to", "child", *GIVEN, "--threshold", "0.5")
    assert "threshold: 0.5 becomes 0." in out and "never transfers exactly" in out


MIGRATE, DOCUMENTS_ONLY = ["migrate", "index", "--to", "child"], ["--documents", "documents.jsonl"]
BAD = {
    "no index": (["migrate", "nowhere", "--to", "child", *GIVEN], "nowhere is not an index"),
    "no model": (["migrate", "index", "--to", "minilmm", *GIVEN], "unknown backbone 'minilmm'"),
    "texts are missing": ([*MIGRATE, "--documents", "fewer.jsonl"],
                          "lacks the texts of 2 of the 120 documents of index, the first is 'd118'"),
    "no ids": ([*MIGRATE, "--documents", "no_id.jsonl"], "no_id.jsonl, line 1: the id is missing"),
    "no file": ([*MIGRATE, "--documents", "none.jsonl"], "none.jsonl: no such file"),
    "unknown relevant document": ([*MIGRATE, *DOCUMENTS_ONLY, "--queries", "odd.jsonl"],
                                  "the relevant document 'd999' is not in the corpus"),
    "too few queries": ([*MIGRATE, *DOCUMENTS_ONLY, "--queries", "few.jsonl"],
                        "1 queries whose relevant documents are in the index are too few"),
    "no queries, and documents too short to make some": ([*MIGRATE, *DOCUMENTS_ONLY], "only 0 could be made from"),
    "another old encoder": ([*MIGRATE, "--from", "better", *GIVEN], "better is not the encoder of index as it was"),
    "a sample of none": ([*MIGRATE, "--sample", "0", *GIVEN], "--sample"),
    "threshold beyond all": ([*MIGRATE, "--threshold", "7", *GIVEN], "the threshold 7 does not divide the scores"),
    "re-index without texts": (["index", "reindex", "index", "--to", "child", "--documents", "fewer.jsonl"],
                               "lacks the texts of 2 of the 120 documents"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    write(folder.parent / "fewer.jsonl", [{"id": id, "text": text} for id, text in texts(118).items()])
    write(folder.parent / "no_id.jsonl", [{"text": "a"}])
    write(folder.parent / "odd.jsonl", [{"query_id": "q", "text": "query 1", "pos": ["d999"]}])
    write(folder.parent / "few.jsonl", [{"query_id": "q", "text": "query 1", "pos": ["d1"]}])
    argv, message = BAD[case]
    code, out, error = run(capsys, *argv)
    told = [line for line in error.splitlines() if line.startswith("everlearn: ")]
    assert code == 2 and not out
    assert len(told) == 1 and message in told[0]
    assert Index.load(folder).stamp == stamp_of(ENCODERS["old"]) and not Index.load(folder).bridges


def test_without_queries_sentences_of_the_documents_are_asked(folder: Path) -> None:
    with Index.load(folder) as index:
        index.remove(list(DOCUMENTS))
        longer = {id: f"a first sentence of {id}. then a second of {id}. {text}" for id, text in DOCUMENTS.items()}
        index.add(list(longer), list(longer.values()), by=ENCODERS["old"])
    write(folder.parent / "longer.jsonl", [{"id": id, "text": text} for id, text in longer.items()])
    asked = migration.pseudo(longer, 200)
    assert len(asked) == 120 and {id for query in asked for id in query.relevant} == {*longer}
    assert all(query.text in longer[query.id] for query in asked)
    assert len({query.text.split()[0] for query in asked}) == 3  # not the same sentence of each
    assert migration.pseudo(longer, 200) == asked
    assert migration.pseudo(longer, 50) == asked[:50]
    verdict = migrate(folder, "same", "longer.jsonl")
    assert verdict.relevance == "pseudo" and verdict.queries == {"fitted": 30, "chose": 30, "reported": 60}


def test_an_index_that_does_not_remember_its_encoder_asks_for_it(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", stamp_of(ENCODERS["old"]))
    with pytest.raises(EverlearnError, match=r"does not remember its encoder .* name it with --from"):
        encoder_of(index)


# -- what is read ----------------------------------------------------------------------------------
def test_documents_and_queries_of_a_packaged_stream() -> None:
    collection = read_texts("domains4", None)
    assert len(collection.documents) == 2000 and len(collection.queries) == 1969


@pytest.mark.parametrize("column", ["doc_id", "_id", "id"])
def test_the_id_may_have_three_names(tmp_path: Path, column: str) -> None:
    write(tmp_path / "d.jsonl", [{column: 7, "text": "water at six", "title": "Roses"}])
    assert read_texts(str(tmp_path / "d.jsonl"), None).documents["7"].text == "water at six"
    assert read_texts(str(tmp_path / "d.jsonl"), None, titles=True).documents["7"].text == "Roses. water at six"


def test_a_folder_in_the_format_of_beir(tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", [{"_id": "a", "text": "water at six"}])
    write(tmp_path / "queries.jsonl", [{"_id": "q", "text": "when"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    collection = read_texts(str(tmp_path), None)
    assert list(collection.documents) == ["a"] and collection.queries[0].relevant == {"a": 1}


def test_bad_rows_are_left_out_if_asked(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", [{"id": "a", "text": "water"}, {"id": "b", "text": ""}])
    with pytest.raises(DataError, match="line 2"):
        read_texts(str(tmp_path / "d.jsonl"), None)
    found = read_texts(str(tmp_path / "d.jsonl"), None, skip_bad_rows=True)
    assert list(found.documents) == ["a"]
    assert [note.partition(":")[0] for note in found.notes] == ["left out 1 bad row"]


def test_queries_that_were_learned_are_not_asked() -> None:
    def entry(id: str, split: str | None) -> Entry:
        return Entry(id, id, "", split, {"a": 1})

    train, test, none = entry("1", "train"), entry("2", "test"), entry("3", None)
    assert held_out([train, test, none]) == [test]
    assert held_out([train, none]) == [none]
    assert held_out([train]) == [train]


def test_a_run_is_an_encoder(tmp_path: Path) -> None:
    small = {"name": "domains4", "domains": ["people"]}
    everlearn.run("frozen", small, backbone="tiny", out=tmp_path / "run")
    found, made_by = encoder(str(tmp_path / "run"))
    assert made_by == {"run": str(tmp_path / "run")}
    assert stamp_of(found) == stamp_of(encoder("tiny")[0])
