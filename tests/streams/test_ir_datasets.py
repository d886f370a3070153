"""Data sets of ir_datasets by name. There is no network here, so those that are read are registered by the test, as
ir_datasets itself reads local files."""

from __future__ import annotations

import sys

import pytest

from everlearn import streams
from everlearn.config import DEFAULT_METHODS, build_config
from everlearn.errors import DataError, EverlearnError
from everlearn.streams.peek import goal_of, input_of


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Register a data set of three files under a name, for this test alone."""
    library = pytest.importorskip("ir_datasets")
    monkeypatch.setattr(library, "registry", library.util.Registry())

    def add(name, documents=None, queries=None, judgements=None):
        paths = {}
        for part, rows in (("docs_tsv", documents), ("queries_tsv", queries), ("qrels_trec", judgements)):
            if rows is not None:
                path = tmp_path / f"{name.replace('/', '-')}-{part}"
                path.write_text("".join(row + "\n" for row in rows))
                paths[part] = str(path)
        library.registry.register(name, library.create_dataset(**paths))

    return add


DOCUMENTS = [f"{i}\tdocument {i}" for i in range(1, 6)]


def test_the_parts_of_a_data_set_are_the_splits(register):
    register("shop", DOCUMENTS)
    register("shop/train", DOCUMENTS, ["a\tquery a", "b\tquery b"], ["a 0 1 1", "b 0 2 1", "b 0 3 0"])
    register("shop/dev", DOCUMENTS, ["c\tquery c"], ["c 0 3 1"])
    register("shop/test", DOCUMENTS, ["d\tquery d"], ["d 0 4 2", "d 0 5 1", "d 0 1 -2"])
    stream = streams.load("ir_datasets:shop")
    (task,) = stream
    assert (stream.goal, task.name) == ("ranking", "shop")
    assert task.train.inputs == ["query a", "query b"] and task.train.positives == ["document 1", "document 2"]
    assert task.validation.ids == ["c"] and task.test.relevant == [{"4": 2, "5": 1}] and len(task.corpus) == 5
    assert streams.load(**stream.config).fingerprint() == stream.fingerprint()


def test_several_names_are_a_task_each_and_a_whole_data_set_is_divided(register):
    for name in ("shop/test", "bank"):
        register(
            name,
            DOCUMENTS,
            [f"{q}\tquery {q} of {name}" for q in "abcd"],
            [f"{q} 0 {i} 1" for i, q in enumerate("abcd", 1)],
        )
    stream = streams.load("ir_datasets:bank, shop/test", test=0.5)
    assert [(task.name, len(task.train), len(task.test)) for task in stream] == [("bank", 2, 2), ("shop/test", 2, 2)]
    assert all(id.startswith("shop/test/") for id in [*stream[1].test.ids, *stream[1].corpus.ids])


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"queries": ["a\tq", "e\tq"]}, "ir_datasets:shop, query 'e': no document is relevant for the query"),
        ({"judgements": ["a 0 9 1"]}, "ir_datasets:shop, judgement of 'a' and '9': the document '9' is not"),
        ({"judgements": ["e 0 1 1"]}, "judgement of 'e' and '1': the query 'e' is unknown"),
        ({"documents": ["1\t "]}, "ir_datasets:shop, document '1': the text is empty"),
        ({"documents": ["1\ta", "1\tb"]}, "ir_datasets:shop, document '1': its id is already used"),
        ({"documents": []}, "the document '1' is not in the corpus"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_line(register, rows, message):
    register("shop", **{"documents": ["1\td"], "queries": ["a\tq"], "judgements": ["a 0 1 1"], **rows})
    with pytest.raises(DataError, match=message) as raised:
        streams.load("ir_datasets:shop")
    assert "\n" not in str(raised.value)


def test_what_cannot_be_read_is_one_line(register, tmp_path):
    register("shop", DOCUMENTS, ["a\tq"])
    with pytest.raises(EverlearnError, match="ir_datasets:shop: the data set has no qrels in ir_datasets"):
        streams.load("ir_datasets:shop")
    with pytest.raises(EverlearnError, match="ir_datasets:ship: ir_datasets has no data set of this name"):
        streams.load("ir_datasets:ship")
    with pytest.raises(EverlearnError, match="ir_datasets: needs the name of a data set"):
        streams.load("ir_datasets: ,")
    with pytest.raises(EverlearnError, match="names a data set twice"):
        streams.load("ir_datasets:shop,shop")
    register("gone", DOCUMENTS, ["a\tq"], ["a 0 1 1"])
    (tmp_path / "gone-docs_tsv").unlink()
    with pytest.raises(DataError, match=r"ir_datasets:gone cannot be read .* check the network"):
        streams.load("ir_datasets:gone")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(EverlearnError, match=r"pip install 'everlearn\[ir-datasets\]'"):
        streams.load("ir_datasets:beir/scifact")


def test_a_name_is_accepted_before_anything_is_loaded():
    config = build_config({"stream": {"name": "ir_datasets:beir/scifact/test,beir/nfcorpus"}})[0]
    assert config["method"]["name"] == DEFAULT_METHODS["ranking"] and goal_of("ir_datasets:vaswani") == "ranking"
    assert input_of({"name": "ir_datasets:vaswani"}) == "text"
