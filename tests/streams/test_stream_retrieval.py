"""Retrieval streams: queries, relevant documents and the corpus of each domain."""

from __future__ import annotations

import json

import pytest

import everlearn
from everlearn import streams
from everlearn.errors import DataError, EverlearnError


@pytest.fixture
def medical(tmp_path):
    """Two domains; query q3 has two documents, and test query t1 needs one of the train split."""

    def write(corpus=(), queries=()):
        docs = [
            {"doc_id": f"{d}{i}", "title": f"title {d}{i}", "text": f"doc {d}{i}", "domain": d, "split": split}
            for d in ("heart", "skin")
            for i, split in enumerate(["train", "train", "train", "test", "test"])
        ]
        asked = [
            {"query_id": f"{d}-{i}", "text": f"query {d} {i}", "pos": [f"{d}{k}" for k in pos], "split": s, "domain": d}
            for d in ("heart", "skin")
            for i, (pos, s) in enumerate([([0], "train"), ([1, 2], "train"), ([3], "test"), ([4, 0], "test")])
        ]
        for name, rows in (("corpus", [*docs, *corpus]), ("queries", [*asked, *queries])):
            (tmp_path / f"med_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / "med")

    return write


def test_pairs_tests_and_corpora(medical):
    stream = streams.load(medical())
    assert (stream.kind, stream.input, stream.goal) == ("domain-incremental", "text", "ranking")
    assert stream.class_names == ()
    heart = stream[0]
    assert [task.name for task in stream] == ["heart", "skin"] and heart.classes == ()
    assert heart.train.inputs == ["query heart 0", "query heart 1", "query heart 1"]
    assert heart.train.positives == ["doc heart0", "doc heart1", "doc heart2"]
    assert heart.train.ids == ["heart-0", "heart-1 heart1", "heart-1 heart2"] and len(heart.train.labels) == 0
    assert heart.test.relevant == [{"heart3": 1}, {"heart4": 1, "heart0": 1}]
    assert sorted(heart.corpus.ids) == ["heart0", "heart3", "heart4"]
    assert heart.corpus.texts[heart.corpus.ids.index("heart3")] == "doc heart3"
    assert len(heart.train[[2, 0]]) == 2 and heart.train[[2, 0]].positives == ["doc heart2", "doc heart0"]


def test_titles_on_request(medical):
    stream = streams.load(medical(), titles=True, domains="skin")
    assert stream[0].train.positives[0] == "title skin0. doc skin0"
    assert streams.load(**stream.config).fingerprint() == stream.fingerprint()
    assert streams.load(medical(), domains="skin").fingerprint() != stream.fingerprint()


def test_grades_are_kept(medical):
    graded = {
        "query_id": "g",
        "text": "g",
        "pos": ["skin3", "skin4"],
        "grade": [4, 1],
        "split": "test",
        "domain": "skin",
    }
    assert streams.load(medical(queries=[graded]))[1].test.relevant[-1] == {"skin3": 4, "skin4": 1}


def test_a_seeded_test_split_where_the_set_has_none(tmp_path, medical):
    path = tmp_path / "med_queries.jsonl"
    name = medical()
    rows = [{**json.loads(line), "split": "train"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = streams.load(name, test=0.5)
    for task in stream:
        assert len(task.test) == 2 and len(task.corpus) == 5
        assert not {id.split()[0] for id in task.train.ids} & set(task.test.ids)
    assert streams.load(name, test=0.5).fingerprint() == stream.fingerprint()


def test_a_query_that_is_asked_twice_is_never_on_both_sides(tmp_path):
    documents = [{"doc_id": f"d{i}", "text": f"document {i}"} for i in range(20)]
    queries = [{"query_id": f"q{i}", "text": f"query {i % 20}", "pos": [f"d{i % 20}"]} for i in range(40)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / f"faq_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = streams.load(tmp_path / "faq", validation=0.2)
    sides = [set(part.inputs) for part in (task.train, task.validation, task.test)]
    assert list(map(len, sides)) == [13, 3, 4] and len(set.union(*sides)) == 20
    queries[30]["split"] = "test"
    (tmp_path / "faq_queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    assert streams.load(tmp_path / "faq").notes == ("1 of 1 test inputs also occur in train",)


def test_domains_without_both_parts_are_left_out_or_refused(medical):
    extra = {"query_id": "e", "text": "e", "pos": ["skin0"], "split": "train", "domain": "eye"}
    stream = streams.load(medical(queries=[extra]))
    assert len(stream) == 2 and "left out 1 domain" in stream.notes[0]
    with pytest.raises(DataError, match="no test queries in the domain 'eye'"):
        streams.load(medical(queries=[extra]), domains="eye")


QUERY = {"query_id": "n", "text": "new", "pos": ["skin0"], "split": "train", "domain": "skin"}


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            {"queries": [{**QUERY, "pos": ["skin9"]}]},
            r"med_queries.jsonl, line 9: the relevant document 'skin9' is not in",
        ),
        ({"queries": [{**QUERY, "pos": []}]}, "line 9: pos is not a list of document ids"),
        ({"queries": [{**QUERY, "grade": [1, 2]}]}, "line 9: 2 grades for 1 documents"),
        ({"queries": [{**QUERY, "text": " "}]}, "line 9: the text is empty"),
        ({"queries": [{**QUERY, "pos": ["skin0", "skin1", "skin0"]}]}, "line 9: pos names the document 'skin0' twice"),
        ({"queries": [{**QUERY, "pos": [["skin0"]]}]}, "line 9: the id is a list"),
        ({"queries": [{**QUERY, "pos": [None]}]}, "line 9: the id is missing"),
        ({"queries": [{**QUERY, "pos": {"skin0": 1}}]}, "line 9: pos is not a list of document ids"),
        ({"queries": [{**QUERY, "grade": 3}]}, "line 9: grade is a int, not a list"),
        ({"queries": [{**QUERY, "grade": [-1]}]}, "line 9: the grade -1 is not usable; write a whole number from 0 to"),
        ({"queries": [{**QUERY, "grade": [1.5]}]}, "line 9: the grade 1.5 is not usable"),
        ({"queries": [{**QUERY, "grade": [float("inf")]}]}, "line 9: the grade inf is not usable"),
        ({"queries": [{**QUERY, "grade": [float("nan")]}]}, "line 9: the grade nan is not usable"),
        ({"queries": [{**QUERY, "grade": [1e300]}]}, "line 9: the grade 1e\\+300 is not usable"),
        ({"queries": [{**QUERY, "grade": [True]}]}, "line 9: the grade of type bool is not usable"),
        ({"queries": [{**QUERY, "grade": ["1"]}]}, "line 9: the grade 1 is not usable"),
        ({"queries": [{**QUERY, "grade": [[1]]}]}, "line 9: the grade of type list is not usable"),
        ({"queries": [{**QUERY, "grade": [0]}]}, "line 9: every grade is 0, so no document is relevant"),
        ({"queries": [{**QUERY, "domain": ["skin"]}]}, "line 9: the domain is a list"),
        ({"queries": [{**QUERY, "split": {}}]}, "line 9: unknown split of type dict"),
        ({"queries": [{**QUERY, "query_id": None}]}, "line 9: the id is missing"),
        ({"queries": [{**QUERY, "query_id": "a\n\nb"}]}, "line 9: the id 'a b' holds a control character"),
        ({"corpus": [{"doc_id": ["d"], "text": "d", "domain": "skin"}]}, "corpus.jsonl, line 11: the id is a list"),
        ({"queries": [QUERY, QUERY]}, r"line 10: the id 'n' is already used at .*line 9"),
        ({"corpus": [{"doc_id": "d", "text": "", "domain": "skin"}]}, r"med_corpus.jsonl, line 11: the text is empty"),
    ],
)
def test_bad_rows_are_refused_or_left_out(medical, rows, message):
    name = medical(**rows)
    with pytest.raises(DataError, match=message):
        streams.load(name)
    assert "left out 1 bad row" in streams.load(name, skip_bad_rows=True).notes[-1]


def test_grades_may_be_whole_floats_and_a_document_of_grade_0_is_not_learned(medical):
    rows = [
        {**QUERY, "pos": ["skin0", "skin1"], "grade": [2.0, 0.0]},
        {**QUERY, "query_id": "m", "pos": ["skin3", "skin4"], "grade": [0, 3], "split": "test"},
    ]
    skin = streams.load(medical(queries=rows))[1]
    assert [text for query, text in zip(skin.train.inputs, skin.train.positives, strict=True) if query == "new"] == [
        "doc skin0"
    ]
    assert skin.test.relevant[-1] == {"skin4": 3} and type(skin.test.relevant[-1]["skin4"]) is int


def test_ids_that_are_numbers_are_found(tmp_path):
    (tmp_path / "n_corpus.jsonl").write_text("".join(f'{{"doc_id": {i}, "text": "d{i}"}}\n' for i in range(4)))
    rows = (f'{{"query_id": {i}, "text": "q{i}", "pos": [{i}]}}\n' for i in range(4))
    (tmp_path / "n_queries.jsonl").write_text("".join(rows))
    stream = streams.load(str(tmp_path / "n"), test=0.5)
    assert len(stream[0].train) == len(stream[0].test) == 2 and len(stream[0].corpus) == 4


def test_titles_are_texts(medical):
    name = medical(corpus=[{"doc_id": "d", "text": "d", "title": ["x"], "domain": "skin"}])
    with pytest.raises(DataError, match="line 11: the text is a list"):
        streams.load(name, titles=True)
    assert len(streams.load(name)) == 2


def test_a_data_set_without_a_usable_query_is_one_line(tmp_path):
    (tmp_path / "n_corpus.jsonl").write_text('{"doc_id": "a", "text": "b"}\n')
    (tmp_path / "n_queries.jsonl").write_text('{"query_id": "a", "text": "b", "pos": ["c"]}\n')
    with pytest.raises(DataError, match=r"n_queries.jsonl: no rows are left to make tasks of"):
        streams.load(str(tmp_path / "n"), skip_bad_rows=True)


def test_an_empty_corpus_is_one_line_and_nothing_is_written(tmp_path, medical, monkeypatch):
    name = medical()
    monkeypatch.chdir(tmp_path)
    for content, message in (("", "med_corpus.jsonl: the file is empty"), ("\n", "med_corpus.jsonl: .*no rows|rows")):
        (tmp_path / "med_corpus.jsonl").write_text(content)
        with pytest.raises(DataError, match=message):
            everlearn.run("frozen", name, backbone="tiny", out=tmp_path / "run")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["med_corpus.jsonl", "med_queries.jsonl"]


def test_options_of_labelled_streams_are_refused(medical):
    with pytest.raises(EverlearnError, match="tasks does not apply to a retrieval stream"):
        streams.load(medical(), tasks=3)
    with pytest.raises(EverlearnError, match="kind=online needs labelled examples"):
        streams.load(medical(), kind="online")
    with pytest.raises(EverlearnError, match="did you mean 'heart'"):
        streams.load(medical(), domains="hart")


def test_missing_columns_are_named(tmp_path, medical):
    name = medical()
    (tmp_path / "med_corpus.jsonl").write_text('{"doc": "a", "text": "b"}\n')
    with pytest.raises(DataError, match="no column 'doc_id'; the columns are doc, text"):
        streams.load(name)


def test_shared_medquad(shared):
    stream = streams.load(str(shared / "retrieval" / "medquad"), domains="NHLBI,NIDDK")
    assert [(t.name, len(t.test), len(t.corpus)) for t in stream] == [("NHLBI", 138, 138), ("NIDDK", 107, 147)]
    for task in stream:
        assert all(id in task.corpus.ids for relevant in task.test.relevant for id in relevant)
