"""Pairs and triplets of texts: queries with the documents that answer them, in files and in memory."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

import everlearn
from everlearn import backbones, streams
from everlearn.config import DEFAULT_METHODS, build_config
from everlearn.errors import DataError, EverlearnError
from everlearn.losses import multiple_negatives_ranking
from everlearn.memory.memory import Memory
from everlearn.methods import get
from everlearn.streams.peek import goal_of, input_of
from everlearn.streams.stream import Examples

ROWS = [
    {"query": f"{domain} question {i}", "positive": f"{domain} answer {i}", "domain": domain,
     "negative": f"{domain} answer {(i + 1) % 6}", "split": "test" if i > 3 else "train"}
    for domain in ("card", "home")
    for i in range(6)
]  # fmt: skip


def test_formats_give_the_same_stream(tmp_path, write_csv):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    found = [streams.load(name) for name in (write_csv(ROWS), str(tmp_path / "t.jsonl"), str(tmp_path / "t.parquet"))]
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    found.append(streams.from_pairs(columns["query"], columns["positive"], columns["domain"],
                                    negatives=columns["negative"], splits=columns["split"]))  # fmt: skip
    assert len({stream.fingerprint() for stream in found}) == 1
    card, home = found[0]
    assert (card.name, home.name, card.goal) == ("card", "home", "ranking")
    assert card.train.inputs == [f"card question {i}" for i in range(4)]
    assert card.train.positives == [f"card answer {i}" for i in range(4)]
    assert card.train.negatives == [[f"card answer {i + 1}"] for i in range(4)]
    assert sorted(card.corpus.texts) == [f"card answer {i}" for i in range(6)]
    assert [list(relevant) for relevant in card.test.relevant] == [
        [card.corpus.ids[card.corpus.texts.index(f"card answer {i}")]] for i in (4, 5)
    ]


def test_files_of_a_stem_are_the_splits_and_the_stem_is_the_domain(write_csv):
    plain = [{"query": row["query"], "positive": row["positive"]} for row in ROWS]
    write_csv(plain[:8], "faq_train.csv")
    name = write_csv(plain[8:], "faq_test.csv").removesuffix("_test.csv")
    stream = streams.load(name)
    assert (len(stream), stream[0].name) == (1, "faq")
    assert (len(stream[0].train), len(stream[0].test), len(stream[0].corpus)) == (8, 4, 12)
    assert stream[0].train.negatives is None
    assert goal_of(name) == "ranking"
    assert build_config({"stream": {"name": name}})[0]["method"]["name"] == DEFAULT_METHODS["ranking"]


def test_files_in_a_folder_are_the_splits_and_the_folder_is_the_domain(tmp_path, write_csv):
    plain = [{"query": row["query"], "positive": row["positive"]} for row in ROWS]
    for split, some in (("training", plain[:8]), ("test", plain[8:])):
        write_csv(some, f"faq/{split}.csv")
    (stream,) = streams.load(tmp_path / "faq")
    assert (stream.name, len(stream.train), len(stream.test)) == ("faq", 8, 4)
    assert goal_of(str(tmp_path / "faq")) == "ranking"


def test_a_folder_with_a_table_of_texts_is_learned_with_the_settings_for_texts(tmp_path, write_csv):
    for split in ("train", "test"):
        name = write_csv([{"text": f"{split} {i}", "label": "ab"[i % 2]} for i in range(12)], f"faq/{split}.csv")
    folder = {"name": name.removesuffix("/test.csv")}
    assert streams.load(**folder).input == input_of(folder) == "text"
    recipe = build_config({"stream": folder, "method": "er"})[1]
    assert recipe.parent.name == "clinc150"
    write_csv([{"image": "1.png", "label": "a"}], "pictures/train.csv")
    assert input_of({"name": str(tmp_path / "pictures")}) == input_of({"name": str(tmp_path)}) == "image"


def test_equal_texts_are_one_query_and_one_document():
    queries = ["when to water", "when to water", "is it wet", "what is wet"] * 5
    documents = ["at six", "in the morning", "at six", "in the morning"] * 5
    (task,) = streams.from_pairs(queries, documents, test=0.34)
    assert len(task.corpus) == 2 and len(set(task.corpus.ids)) == 2
    wet = [{task.corpus.ids[task.corpus.texts.index(text)]: 1} for text in ("at six", "in the morning")]
    found = dict(
        zip([*task.train.inputs, *task.test.inputs], [*task.train.positives, *task.test.relevant], strict=True)
    )
    assert found["is it wet"] in ("at six", wet[0]) and len(task.train) + len(task.test) in (3, 4)
    once, _ = streams.from_pairs(
        ["a", "a", "b"] * 2, ["x", "y", "x"] * 2, [*"uuuvvv"], splits=["train", "train", "test"] * 2
    )
    assert once.train.inputs == ["a", "a"] and once.train.positives == ["x", "y"] and len(set(once.train.ids)) == 2
    assert once.test.inputs == ["b"] and len(once.corpus) == 2


def test_the_same_text_in_two_domains_is_searched_in_both():
    stream = streams.from_pairs(["a", "b"] * 2, ["yes", "no"] * 2, ["x", "x", "y", "y"], test=0.5)
    assert [sorted(task.corpus.texts) for task in stream] == [["no", "yes"]] * 2
    assert not {*stream[0].corpus.ids} & {*stream[1].corpus.ids}


def test_several_negatives_come_from_a_list_or_from_columns(tmp_path):
    rows = [
        {"query": f"q{i}", "positive": f"p{i}", "negative": [f"n{i}", f"m{i}"] if i % 2 else None} for i in range(4)
    ]
    (tmp_path / "listed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = streams.load(str(tmp_path / "listed.jsonl"), test=0.25)[0]
    for query, own in zip(task.train.inputs, task.train.negatives, strict=True):
        assert own == ([f"n{query[1:]}", f"m{query[1:]}"] if int(query[1:]) % 2 else [])
    assert len(task.corpus) == 8
    named = [{"query": f"q{i}", "positive": f"p{i}", "negative_1": f"n{i}", "negative_2": ""} for i in range(4)]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    task = streams.load(str(tmp_path / "named.jsonl"), test=0.25)[0]
    assert [own for own in task.train.negatives] == [[f"n{query[1:]}"] for query in task.train.inputs]


GOOD = [
    {"query": f"q{i}", "positive": f"p{i}", "negative": f"n{i}", "split": "test" if i > 2 else ""} for i in range(6)
]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"query": " ", "positive": "p"}, "line 8: the text is empty; fill it in"),
        ({"query": "q", "positive": None}, "line 8: the text is empty"),
        ({"query": ["q"], "positive": "p"}, "line 8: the text is a list"),
        ({"query": "q", "positive": "p", "negative": "p"}, "line 8: the negative is the positive; give a document"),
        ({"query": "q0", "positive": "p", "negative": "p0"}, "line 8: a document is a positive of its query here and"),
        ({"query": "q0", "positive": "n0"}, "line 8: a document is a positive of its query here and a negative in"),
        ({"query": "q0", "positive": "p", "split": "test"}, "line 8: the query stands in the split train at .*line 1"),
        ({"query": "q", "positive": "p", "split": "exam"}, "line 8: unknown split 'exam'"),
        ({"query": "q", "positive": "p", "negative": [3]}, "line 8: the text is a int"),
        ({"query": "q", "positive": "p", "negative": {"a": 1}}, "line 8: the text is a dict"),
        ({"query": "q", "positive": "p", "domain": ["x"]}, "line 8: the domain is a list"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_in_one_line_or_left_out(tmp_path, row, message):
    file = tmp_path / "faq.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GOOD) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message) as raised:
        streams.load(str(file))
    assert "\n" not in str(raised.value) and "faq.jsonl" in str(raised.value)
    stream = streams.load(str(file), skip_bad_rows=True)
    assert len(stream[0].train) == 3 and "left out 1 bad row" in stream.notes[-1]
    assert len(stream[0].corpus) == 12


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"positive": "p", "rank": 1}], "a column 'positive' without a column 'query'; the columns are pos"),
        ([{"query": "q", "negative": "n"}], "a column 'query' without a column 'positive'; the columns are q"),
        ([{"query": "q", "topic": "t"}], "no label column; the columns are query, topic: name one with "
         "--stream.label_column \\(in Python label_column\\), or add a column positive for pairs"),
    ],
)  # fmt: skip
def test_a_missing_column_is_named_and_nothing_is_written(tmp_path, write_csv, rows, message):
    with pytest.raises(DataError, match=message):
        everlearn.run("frozen", write_csv(rows), backbone="tiny", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_file_and_empty_lists_are_one_line(tmp_path):
    (tmp_path / "faq.csv").write_text("query,positive\n")
    with pytest.raises(DataError, match=r"faq.csv: .*give a file with at least one row|faq.csv: .*rows"):
        streams.load(str(tmp_path / "faq.csv"))
    with pytest.raises(DataError, match="pairs: there are no rows"):
        streams.from_pairs([], [])
    with pytest.raises(EverlearnError, match="different lengths"):
        streams.from_pairs(["a"], ["b", "c"])
    with pytest.raises(DataError, match="shop, row 1: the text is empty"):
        streams.from_pairs(["a", ""], ["b", "c"], name="shop")
    with pytest.raises(DataError, match="no test queries in the domain 'pairs'"):
        streams.from_pairs(["a"], ["b"])


def test_options_of_other_data_are_refused(write_csv):
    name = write_csv(ROWS)
    with pytest.raises(EverlearnError, match="titles does not apply to pairs;"):
        streams.load(name, titles=True)
    with pytest.raises(EverlearnError, match="tasks does not apply to pairs;"):
        streams.load(name, tasks=2)
    with pytest.raises(EverlearnError, match="kind=online needs labelled examples"):
        streams.load(name, kind="online")


def test_words_in_texts_and_columns_of_labels_do_not_make_pairs(tmp_path, write_csv, rows):
    file = tmp_path / "mood.jsonl"
    file.write_text('{"text": "query", "label": "positive"}\n')
    assert goal_of(str(file)) == "classes"
    flags = [{"text": "a", "label": "b", "positive": 1, "negative": 0}]
    assert goal_of(write_csv(flags)) == "classes" and goal_of(write_csv(rows())) == "classes"
    assert input_of({"name": str(file)}) == "text"
    long = [{"query": "q" * 50_000, "positive": "p" * 50_000}]
    file.write_text(json.dumps(long[0]) + "\n")
    assert goal_of(str(file)) == "ranking"
    (tmp_path / "wide.csv").write_text("query,positive\na,b\n", encoding="utf-16")
    assert goal_of(str(tmp_path / "wide.csv")) == "ranking"


def test_pairs_in_memory_are_learned_and_resumed(tmp_path):
    queries, documents, domains, negatives = ([row[name] for row in ROWS] for name in [*ROWS[0]][:4])
    stream = streams.from_pairs(queries, documents, domains, negatives=negatives)
    result = everlearn.run(stream=stream, backbone="tiny", out=tmp_path / "run")
    assert result.results["method"] == DEFAULT_METHODS["ranking"] and len(result.accuracy_matrix) == 2
    again = everlearn.resume(tmp_path / "run", stream=stream)
    assert again.results["accuracy_matrix"] == result.results["accuracy_matrix"]


# -- negatives ---------------------------------------------------------------------------------------

NONE = torch.empty(0, dtype=torch.long)


def batch(negatives):
    return Examples(["tea", "sofa"], NONE, ["1", "2"], positives=["a hot drink", "a long seat"], negatives=negatives)


def test_the_gradient_is_that_of_the_loss_with_the_negatives_appended():
    method = get("finetune")(backbones.load("tiny"))
    method.begin_task(streams.from_pairs(["a", "b"], ["c", "d"], test=0.5)[0].sealed())
    own = batch([["a cold drink", "a chair"], ["a bed"]])

    def gradient(loss):
        method.zero_grad()
        loss.mean().backward()
        return torch.cat([p.grad.flatten() for p in method.backbone.parameters() if p.grad is not None])

    texts = [*own.positives, "a cold drink", "a chair", "a bed"]
    wanted = multiple_negatives_ranking(method.features(own.inputs, "query"), method.features(texts, "document"), texts)
    found = gradient(method.losses(own))
    assert torch.allclose(found, gradient(wanted), atol=1e-6)
    assert not torch.allclose(found, gradient(method.losses(batch(None))), atol=1e-3)


def test_a_negative_that_is_the_positive_of_another_query_is_masked_only_for_that_one():
    method = get("finetune")(backbones.load("tiny"))
    plain, doubled = method.losses(batch(None)), method.losses(batch([["a long seat"], []]))
    assert doubled[0] > plain[0] and torch.isclose(doubled[1], plain[1])


def test_examples_carry_their_negatives():
    own = batch([["a"], ["b", "c"]])
    assert own[[1]].negatives == [["b", "c"]] and batch(None)[[1]].negatives is None
    mixed = Examples.concatenate([own, batch(None)])
    assert [list(row) for row in mixed.negatives] == [["a"], ["b", "c"], [], []]
    assert Examples.concatenate([batch(None), batch(None)]).negatives is None
    assert len({batch(None).digest(), own.digest(), batch([["a"], ["b", "d"]]).digest()}) == 3
    assert own.digest() == batch([("a",), ("b", "c")]).digest()


def test_a_memory_keeps_negatives_counts_their_bytes_and_saves_them():
    memory, bare = Memory(), Memory()
    memory.add(batch([["é" * 100], ()]))
    bare.add(batch(None))
    assert memory.stored_bytes() >= bare.stored_bytes() + 200
    memory.add(batch(None))
    read = Memory()
    read.load_state_dict(memory.state_dict())
    assert [list(own) for own in read.examples().negatives] == [["é" * 100], [], [], []]
    assert read.examples().digest() == memory.examples().digest()
    small = Memory(bytes=150)
    small.add(batch([["x" * 1000], []]))
    assert [name for name in small.examples().ids] == ["2"]
