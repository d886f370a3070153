"""Mistakes in one's own file: named in one line with the remedy, without a false alarm on real data."""

from __future__ import annotations

import json

import pytest

from everlearn import streams
from everlearn.errors import EverlearnError


def refusal(*arguments, **options) -> str:
    with pytest.raises(EverlearnError) as error:
        streams.load(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


# -- domains -----------------------------------------------------------------------------------
def test_a_named_domain_column_makes_each_domain_a_task(write_csv, rows):
    path = write_csv([{**row, "shop": row["domain"]} for row in rows()])
    stream = streams.load(path, domain_column="shop")
    assert (stream.kind, [task.name for task in stream]) == ("domain-incremental", ["phone", "shop"])
    assert stream.fingerprint() == streams.load(**stream.config).fingerprint()
    assert streams.load(path).kind == "class-incremental"


def test_a_domain_column_that_would_do_nothing_is_refused(write_csv, rows):
    path = write_csv(rows())
    told = refusal(path, domain_column="domain", kind="class-incremental")
    assert "domain_column does not apply to a stream of kind class-incremental" in told and "leave it out" in told
    told = refusal(path, domain_column="domain", tasks=2)
    assert "tasks does not apply to a stream of kind domain-incremental (with domain_column, each domain is" in told


# -- exchanged columns -------------------------------------------------------------------------
def test_exchanged_columns_are_noticed(write_csv):
    rows = [{"text": "ab"[i % 2], "label": f"a long message number {i}\nfor the shop"} for i in range(20)]
    told = refusal(write_csv(rows))
    assert "shop.csv: the columns of texts and labels seem to be exchanged ('label' holds 20 different" in told
    assert told.endswith("give text_column=label and label_column=text")
    assert len(streams.load(write_csv(rows), text_column="label", label_column="text").class_names) == 2


def test_a_column_of_numbers_as_texts_is_noticed_too(tmp_path):
    path = tmp_path / "shop.jsonl"
    path.write_text("\n".join(json.dumps({"text": i % 3, "label": f"a long message number {i}"}) for i in range(30)))
    assert "seem to be exchanged" in refusal(str(path))


def test_a_test_file_with_one_example_per_class_is_no_mistake(write_csv, rows):
    train = write_csv(rows(20), "shop_train.csv")
    write_csv(rows(20, 1), "shop_test.csv")
    assert len(streams.load(train.removesuffix("_train.csv")).class_names) == 20


# -- several labels in a cell ------------------------------------------------------------------
@pytest.mark.parametrize(
    "labels",
    [
        ["card", "lost", "card;lost"],
        ["card|lost", "lost|fee", "card|fee"],
        ["card", "fee", "fee, card"],
        ["['card', 'lost']", "['card']", "['fee']"],
        ['["card", "lost"]', '["card"]', '["fee"]'],
    ],
)
def test_several_labels_in_a_cell_are_noticed(write_csv, labels):
    path = write_csv([{"text": f"text {i}", "label": labels[i % 3]} for i in range(30)])
    told = refusal(path)
    assert "shop.csv, line" in told and "seems to be several labels" in told and "keep the main one" in told


def test_lists_in_cells_say_what_to_do(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["x"] * 4, "label": [["a", "b"]] * 4}), tmp_path / "shop.parquet")
    assert "'label' holds lists" in (told := refusal(str(tmp_path / "shop.parquet"))) and "the main one" in told
    (tmp_path / "shop.jsonl").write_text('{"text": "x", "label": ["a", "b"]}')
    assert "line 1: the label is a list; give one class per row, of several the main one" in refusal(
        str(tmp_path / "shop.jsonl")
    )


@pytest.mark.parametrize(
    "labels",
    [
        ["animal|cat", "animal|dog", "plant|rose", "plant|oak"],
        ["en;good", "en;bad", "de;good", "de;bad"],
        ["animal", "animal|cat", "animal|dog", "plant"],
        ["1,0", "1,5", "5,0", "5,1"],
        ["what, me worry?", "yes, please", "no; thanks", "a|b"],
        ["comp.sys", "comp.os", "rec.autos", "misc"],
    ],
)
def test_separators_inside_of_names_are_no_mistake(write_csv, labels):
    path = write_csv([{"text": f"text {i}", "label": labels[i % 4]} for i in range(40)])
    assert set(streams.load(path).class_names) == set(labels)


# -- contradicting labels ----------------------------------------------------------------------
def test_a_few_contradicting_labels_are_kept_and_told(write_csv, rows):
    path = write_csv([*rows(), {"text": "class 1 text 4", "label": "class 3", "domain": "phone"}])
    stream = streams.load(path, split_seed=1)
    (note,) = [note for note in stream.notes if "more than one label" in note]
    assert note.startswith("1 training input has more than one label, and all rows are used: ")
    assert "'class 1 text 4' is 'class 1' at shop.csv, line" in note and "and 'class 3' at shop.csv, line 42" in note
    assert sum(len(task.train) + len(task.test) for task in stream) == 41


def test_labels_that_contradict_nearly_everywhere_are_refused(write_csv):
    path = write_csv([{"text": f"text {i // 2}", "label": "ab"[i % 2]} for i in range(60)])
    told = refusal(path)
    assert "training rows have an input with several labels" in told and "keep one label of each" in told


def test_another_label_in_another_domain_is_no_contradiction(write_csv):
    rows = [{"text": f"text {i // 2}", "label": "ab"[i % 2], "domain": "xy"[i % 2]} for i in range(80)]
    stream = streams.load(write_csv(rows), domain_column="domain")
    assert not [note for note in stream.notes if "label" in note]


# -- no false alarm ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["clinc150", "banking77", "digits"])
def test_shipped_data_raise_no_alarm(name):
    assert not [note for note in streams.load(name).notes if "label" in note]


@pytest.mark.parametrize("name", ["trec6", "20newsgroups", "dbpedia14", "agnews", "amazon", "yelp"])
def test_real_data_raise_no_alarm(shared, name):
    notes = [note for note in streams.load(str(shared / "text" / name)).notes if "label" in note]
    # Eight posts stand in two of the news groups, word for word.
    assert [note[:22] for note in notes] == (["8 training inputs have"] if name == "20newsgroups" else [])
