"""Streams that learn from documents alone: sentences stand in for queries, and the tests stay what they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from everlearn import streams
from everlearn.cli import main
from everlearn.config import goal_of
from everlearn.errors import EverlearnError
from everlearn.streams.stream import Task

TEXT = "The {0} of row {1} is here. It has {1} red leaves. Water it at {1} in the morning."
DOCUMENTS = [{"doc_id": f"{domain}{n}", "domain": domain, "text": TEXT.format(domain, n)}
             for domain in ("rose", "oak") for n in range(10)]  # fmt: skip
QUERIES = [
    {"query_id": f"q{n}", "domain": "rose", "text": f"where is rose {n}", "pos": [f"rose{n}"],
     "split": "train" if n < 6 else "test"} for n in range(10)
]  # fmt: skip


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def documents(tmp_path: Path) -> str:
    return write(tmp_path / "plants_corpus.jsonl", DOCUMENTS)


def text_of(id: str) -> str:
    return next(row["text"] for row in DOCUMENTS if row["doc_id"] == id)


def learned_from(task: Task) -> set[str]:
    """The ids of the documents that the training pairs of a task come from: each sentence tells its row."""
    return {task.name + "".join(filter(str.isdigit, query)) for query in task.train.inputs}


def test_documents_alone(documents: str) -> None:
    stream = streams.load(documents, pseudo_queries=True, test=0.3)
    assert [task.name for task in stream] == ["rose", "oak"]
    for task in stream:
        assert task.corpus is not None and sorted(task.corpus.ids) == sorted(f"{task.name}{n}" for n in range(10))
        assert sorted(task.corpus.texts) == sorted(map(text_of, task.corpus.ids))
        assert len(task.train) == 7 and len(task.test) == 3
        held_out = [next(iter(relevant)) for relevant in task.test.relevant or ()]
        assert all(query in text_of(id) for query, id in zip(task.test.inputs, held_out, strict=True))
        assert learned_from(task) == set(task.corpus.ids) - set(held_out)
    assert "test queries of 2 domains without any are sentences of held-out documents" in stream.notes[1]
    assert streams.load(**stream.config).fingerprint() == stream.fingerprint()
    assert streams.load(documents, pseudo_queries=True, test=0.3, split_seed=1).fingerprint() != stream.fingerprint()


def test_the_datas_own_test_queries_stay(documents: str, tmp_path: Path) -> None:
    write(tmp_path / "plants_queries.jsonl", QUERIES)
    stem = str(tmp_path / "plants")
    own, stream = streams.load(stem, domains="rose"), streams.load(stem, pseudo_queries=True)
    assert len(stream) == 2
    rose = stream[0]
    assert (rose.test.inputs, rose.test.relevant, rose.corpus) == (
        own[0].test.inputs,
        own[0].test.relevant,
        own[0].corpus,
    )
    assert len(rose.train) == 10 and not set(rose.train.inputs) & set(own[0].train.inputs)
    assert rose.corpus is not None and learned_from(rose) == set(rose.corpus.ids)
    assert stream.notes[1].startswith("the test queries of 1 domains")


def test_data_with_test_queries_only_can_be_learned(documents: str, tmp_path: Path) -> None:
    write(tmp_path / "plants_queries.jsonl", [{**query, "split": "test"} for query in QUERIES])
    with pytest.raises(EverlearnError, match="no train queries"):
        streams.load(str(tmp_path / "plants"), domains="rose")
    assert len(streams.load(str(tmp_path / "plants"), domains="rose", pseudo_queries=True)[0].test) == 10


def test_without_a_test_split_a_share_of_the_own_queries_is_asked() -> None:
    questions, answers = [f"where is rose {n}" for n in range(10)], [row["text"] for row in DOCUMENTS[:10]]
    own, made = (streams.from_pairs(questions, answers, pseudo_queries=pseudo)[0] for pseudo in (False, True))
    assert made.test.inputs == own.test.inputs and made.corpus == own.corpus
    assert len(own.train) == 8 and len(made.train) == 10


def test_validation_pairs_are_pseudo_queries_too(documents: str) -> None:
    task = streams.load(documents, pseudo_queries=True, validation=0.25)[0]
    assert (len(task.train), len(task.validation), len(task.test)) == (6, 2, 2)


def test_a_run_learns_documents_alone(documents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert goal_of(documents) == "ranking"
    done = main(["run", "--stream", documents, "--stream.pseudo_queries", "true", "--method", "lora", "--method.side",
                 "query", "--method.epochs", "1", "--backbone", "tiny", "--out", str(tmp_path / "run")])  # fmt: skip
    assert done == 0
    assert "sentences of held-out documents" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("options", "message"), [
    ({}, "holds documents without queries: give --stream.pseudo_queries true"),
    ({"pseudo_queries": True, "test": 0.0}, "no test queries in the domain 'rose'"),
    ({"pseudo_queries": True, "tasks": 2}, "tasks does not apply to a retrieval stream"),
])  # fmt: skip
def test_what_cannot_be_learned(documents: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EverlearnError, match=message):
        streams.load(documents, **options)


def test_too_short_documents_and_labelled_data_are_refused(tmp_path: Path) -> None:
    short = write(tmp_path / "short_corpus.jsonl", [{"doc_id": "a", "text": "tea"}, {"doc_id": "b", "text": "a sofa"}])
    with pytest.raises(EverlearnError, match=r"short_corpus\.jsonl: no document is long enough"):
        streams.load(short, pseudo_queries=True)
    with pytest.raises(EverlearnError, match="pseudo_queries does not apply to a stream of kind class-incremental"):
        streams.load("clinc150", pseudo_queries=True)
