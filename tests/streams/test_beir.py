"""Folders in the format of BEIR: one is one domain, and a folder of several is a stream of domains."""

from __future__ import annotations

import json

import pytest

import everlearn
from everlearn import streams
from everlearn.cli import main
from everlearn.config import DEFAULT_METHODS, build_config
from everlearn.errors import DataError
from everlearn.streams.peek import goal_of, input_of


def write(folder, corpus=(), queries=(), judgements=(), without=()):
    """Four documents and four queries: a and b for training, c for validation, d for testing; and what is given."""
    (folder / "qrels").mkdir(parents=True)
    docs = [{"_id": id, "title": f"title {id}", "text": f"text {id} of {folder.name}", "metadata": {}} for id in "1234"]
    asked = [{"_id": id, "text": f"query {id} of {folder.name}"} for id in "abcd"]
    for name, rows in (("corpus", [*docs, *corpus]), ("queries", [*asked, *queries])):
        if name not in without:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = {"train": ["a\t1\t1", "b\t2\t1", "b\t3\t0"], "dev": ["c\t3\t1"], "test": ["d\t4\t2", "d\t1\t1", "d\t2\t-1"]}
    for split, own in lines.items():
        rows = ["query-id\tcorpus-id\tscore", *own, *(judgements if split == "test" else ())]
        if split not in without:
            (folder / "qrels" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return str(folder)


def test_a_folder_is_one_domain(tmp_path):
    stream = streams.load(write(tmp_path / "shop"))
    (task,) = stream
    assert (stream.goal, stream.kind, task.name) == ("ranking", "domain-incremental", "shop")
    assert task.train.ids == ["a", "b"] and task.train.positives == ["text 1 of shop", "text 2 of shop"]
    assert task.validation.inputs == ["query c of shop"] and task.validation.positives == ["text 3 of shop"]
    assert task.test.ids == ["d"] and task.test.relevant == [{"4": 2, "1": 1}]
    assert task.corpus.ids == ["1", "2", "3", "4"]
    assert streams.load(**stream.config).fingerprint() == stream.fingerprint()


def test_a_folder_of_folders_is_a_task_each_and_ids_that_coincide_stay_apart(tmp_path):
    for name in ("zoo", "shop", "bank"):
        write(tmp_path / name)
    (tmp_path / "notes").mkdir()
    stream = streams.load(str(tmp_path))
    assert [task.name for task in stream] == ["bank", "shop", "zoo"]
    assert stream[1].test.ids == ["shop/d"] and stream[1].test.relevant == [{"shop/4": 2, "shop/1": 1}]
    assert stream[1].corpus.ids[0] == "shop/1" and stream[1].corpus.texts[0] == "text 1 of shop"
    chosen = streams.load(str(tmp_path), domains="zoo,bank")
    assert [task.name for task in chosen] == ["zoo", "bank"]


def test_titles_stand_before_texts_on_request_and_for_a_document_without_a_text(tmp_path):
    extra = [{"_id": "5", "title": "only a title", "text": ""}]
    name = write(tmp_path / "shop", corpus=extra)
    plain, titled = streams.load(name)[0].corpus, streams.load(name, titles=True)[0].corpus
    assert plain.texts[0] == "text 1 of shop" and titled.texts[0] == "title 1. text 1 of shop"
    assert plain.texts[4] == titled.texts[4] == "only a title"


def test_judgements_of_a_test_split_alone_are_divided(tmp_path):
    name = write(tmp_path / "shop", without=("train", "dev"), judgements=["a\t1\t1", "b\t2\t1", "c\t3\t1"])
    with pytest.raises(DataError, match="no train queries in the domain 'shop'"):
        streams.load(name)


def test_it_is_known_for_what_it_is_without_reading_it(tmp_path):
    name = write(tmp_path / "shop")
    assert goal_of(name) == goal_of(str(tmp_path)) == "ranking"
    assert input_of({"name": name}) == "text" and goal_of(str(tmp_path / "shop" / "qrels")) == "classes"
    assert build_config({"stream": {"name": name}})[0]["method"]["name"] == DEFAULT_METHODS["ranking"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"judgements": ["d\t4"]}, r"test.tsv, line 5: 2 cells, but the header has 3"),
        ({"judgements": ["e\t1\t1"]}, "test.tsv, line 5: the query 'e' is unknown; add it to the queries"),
        ({"judgements": ["d\t9\t1"]}, "test.tsv, line 5: the document '9' is not in the corpus"),
        ({"judgements": ["d\t4\t1"]}, "line 5: the document '4' is already judged for the query 'd'"),
        ({"judgements": ["a\t2\t1"]}, "line 5: the query 'a' is already judged in the split train; keep each query in"),
        ({"judgements": ["d\t3\tgood"]}, "line 5: the score 'good' is not usable; write a whole number"),
        ({"judgements": ["d\t3\t1.5"]}, "line 5: the score '1.5' is not usable"),
        ({"judgements": ["d\t3\t9999999"]}, "line 5: the score '9999999' is not usable"),
        ({"judgements": ["d\t\t1"]}, "line 5: the id is missing"),
        ({"queries": [{"_id": "e", "text": "e"}]}, "queries.jsonl, line 5: no document is relevant for the query 'e'"),
        ({"queries": [{"_id": "a", "text": "again"}]}, r"line 5: the id 'a' is already used at .*jsonl, line 1"),
        ({"queries": [{"_id": "e", "text": " "}]}, "queries.jsonl, line 5: the text is empty"),
        ({"corpus": [{"_id": "1", "text": "again"}]}, r"corpus.jsonl, line 5: the id '1' is already used at .*line 1"),
        ({"corpus": [{"_id": "5", "text": "", "title": ""}]}, "corpus.jsonl, line 5: the text is empty"),
        ({"corpus": [{"text": "no id"}]}, "corpus.jsonl, line 5: the id is missing"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_in_one_line_or_left_out(tmp_path, given, message):
    name = write(tmp_path / "shop", **given)
    with pytest.raises(DataError, match=message) as raised:
        streams.load(name)
    assert "\n" not in str(raised.value) and "skip_bad_rows" in str(raised.value)
    stream = streams.load(name, skip_bad_rows=True)
    assert len(stream[0].test) == 1 and "left out 1 bad row" in stream.notes[-1]


def test_a_query_whose_grades_are_all_0_is_a_bad_row(tmp_path):
    name = write(tmp_path / "shop", queries=[{"_id": "e", "text": "e"}], judgements=["e\t1\t0"])
    with pytest.raises(DataError, match=r"no document is relevant for the query 'e': each of its judgements has .* 0"):
        streams.load(name)


@pytest.mark.parametrize(
    "without, message",
    [
        (("corpus",), "corpus.jsonl: no such file"),
        (("queries",), "queries.jsonl: no such file"),
        (("train", "dev", "test"), r"qrels: no train.tsv, dev.tsv or test.tsv; add the judgements"),
    ],
)
def test_a_missing_file_is_named(tmp_path, without, message):
    with pytest.raises(DataError, match=message):
        streams.load(write(tmp_path / "shop", without=without))


def test_an_empty_corpus_and_a_missing_header_are_named_and_nothing_is_written(tmp_path):
    name = write(tmp_path / "shop")
    (tmp_path / "shop" / "qrels" / "dev.tsv").write_text("c\t3\t1\nd\t4\t1\n")
    with pytest.raises(DataError, match=r"dev.tsv: no column 'query-id'; the columns are c, 3, 1: write the header"):
        streams.load(name)
    (tmp_path / "shop" / "corpus.jsonl").write_text("")
    with pytest.raises(DataError, match=r"corpus.jsonl: the file is empty; give a file with at least one row"):
        everlearn.run("frozen", name, backbone="tiny", out=tmp_path / "run")
    (tmp_path / "shop" / "corpus.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"corpus.jsonl"):
        everlearn.run("frozen", name, backbone="tiny", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    name = write(tmp_path / "shop", judgements=["e\t1\t1"])
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--stream", name, "--backbone", "tiny", "--recipe", "none"]) == 2
    told = capsys.readouterr().err.strip()
    assert told.count("\n") == 0 and "test.tsv, line 5: the query 'e' is unknown" in told
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_it_is_learned(tmp_path):
    for name in ("shop", "bank"):
        write(tmp_path / name)
    result = everlearn.run({"name": "finetune", "epochs": 1}, str(tmp_path), backbone="tiny")
    assert [task["name"] for task in result.results["tasks"]] == ["bank", "shop"]
