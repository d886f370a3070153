"""The kinds of stream: which classes and examples stand in which task."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from everlearn import streams
from everlearn.errors import DataError, EverlearnError
from everlearn.streams.class_incremental import task_sizes


def ids(stream, split):
    return [id for task in stream for id in getattr(task, split).ids]


def labels(task, split="train"):
    return getattr(task, split).labels.unique().tolist()


def test_class_incremental_tasks_partition_the_classes_in_label_order(write_csv, rows):
    stream = streams.load(write_csv(rows(7, 10)), tasks=3)
    assert [task.classes for task in stream] == [(0, 1, 2), (3, 4), (5, 6)]
    for task in stream:
        assert labels(task) == labels(task, "test") == list(task.classes)
        assert len(task.class_names) == max(task.classes) + 1
        assert task.class_names == stream.class_names[: len(task.class_names)]
    assert (stream.kind, stream.input, stream.goal) == ("class-incremental", "text", "classes")


def test_labels_name_the_class_of_the_text(write_csv, rows):
    for task in streams.load(write_csv(rows(5, 10)), tasks=2):
        for split in (task.train, task.test):
            for text, label in zip(split.inputs, split.labels.tolist(), strict=True):
                assert text.startswith(task.class_names[label] + " text")


def test_shuffled_order_is_the_permutation_of_the_literature(write_csv, rows):
    path = write_csv(rows(9, 5))
    names = sorted(f"class {i}" for i in range(9))
    for seed in (1993, 5):
        expected = [names[i] for i in np.random.RandomState(seed).permutation(9)]
        assert list(streams.load(path, class_seed=seed).class_names) == expected


def test_given_order_is_that_of_the_file(write_csv, rows):
    stream = streams.load(write_csv(rows(6, 5)[::-1]), class_order="given")
    assert list(stream.class_names) == [f"class {i}" for i in range(5, -1, -1)]


def test_own_splits_are_kept_and_parts_are_disjoint(write_csv, rows):
    given = [{**row, "split": ("train", "dev", "test")[i // 4 % 3]} for i, row in enumerate(rows(4, 12))]
    stream = streams.load(write_csv(given), tasks=2)
    assert [len(ids(stream, split)) for split in ("train", "validation", "test")] == [16, 16, 16]
    assert all(given[int(id.split(":")[1]) - 2]["split"] == "dev" for id in ids(stream, "validation"))


@pytest.mark.parametrize("kind", ["class-incremental", "domain-incremental"])
def test_made_splits_are_disjoint_complete_and_stratified(write_csv, rows, kind):
    path = write_csv(rows(4, 20))
    stream = streams.load(path, kind=kind, test=0.2, validation=0.1)
    parts = [ids(stream, split) for split in ("train", "validation", "test")]
    assert sorted(id for part in parts for id in part) == sorted(f"shop.csv:{i}" for i in range(2, 82))
    assert [len(part) for part in parts[1:]] == [8, 16]
    for task in stream:
        assert set(np.bincount(task.test.labels)[list(task.classes)]) == {len(task.test) // len(task.classes)}
    other = streams.load(path, kind=kind, test=0.2, validation=0.1, split_seed=1)
    assert ids(other, "test") != parts[2]


def test_no_validation_unless_asked(write_csv, rows):
    assert ids(streams.load(write_csv(rows())), "validation") == []


@pytest.mark.parametrize(
    "arguments, sizes",
    [
        ((100, 10, None, None), [10] * 10),
        ((100, None, 50, 10), [50] + [10] * 5),
        ((100, None, None, 20), [20] * 5),
        ((100, None, 60, 30), [60, 30, 10]),
        ((150, None, None, None), [15] * 10),
        ((10, None, None, None), [2] * 5),
        ((3, None, None, None), [3]),
    ],
)
def test_task_sizes(arguments, sizes):
    assert task_sizes(*arguments) == sizes


def test_base_and_increment_reach_the_stream(write_csv, rows):
    stream = streams.load(write_csv(rows(8, 5)), base=4, increment=2)
    assert [len(task.classes) for task in stream] == [4, 2, 2]


def test_task_incremental_has_the_tasks_of_class_incremental(write_csv, rows):
    path = write_csv(rows(6, 5))
    one, other = (streams.load(path, kind=kind, tasks=3) for kind in ("task-incremental", "class-incremental"))
    assert one.kind == "task-incremental"
    assert [task.classes for task in one] == [task.classes for task in other]
    assert ids(one, "train") == ids(other, "train")


def test_online_sets_the_batch_size_and_mixes_the_classes(write_csv, rows):
    path = write_csv(sorted(rows(4, 20), key=lambda row: row["label"]))
    online, plain = streams.load(path, kind="online", tasks=2, batch_size=7), streams.load(path, tasks=2)
    assert [task.batch_size for task in online] == [7, 7]
    assert [task.batch_size for task in plain] == [None, None]
    assert sorted(ids(online, "train")) == sorted(ids(plain, "train"))
    assert labels(online[0]) == [0, 1] and len(set(online[0].train.labels[:16].tolist())) == 2
    assert len(set(plain[0].train.labels[:16].tolist())) == 1


def test_domain_incremental_takes_domains_in_order_of_appearance_or_as_asked(write_csv, rows):
    path = write_csv(rows())
    stream = streams.load(path, kind="domain-incremental")
    assert [task.name for task in stream] == ["phone", "shop"]
    for asked in ("shop,phone", ["shop", "phone"], "shop"):
        other = streams.load(path, domains=asked)
        assert other.kind == "domain-incremental"
        assert [task.name for task in other] == (asked.split(",") if isinstance(asked, str) else asked)
    assert all(len(task.class_names) == 4 for task in stream)


def test_a_class_gets_its_number_in_the_first_domain_that_has_it(write_csv, rows):
    given = [row for row in rows(4, 20) if not (row["domain"] == "phone" and row["label"] == "class 0")]
    stream = streams.load(write_csv(given), kind="domain-incremental", class_order="given")
    assert stream[0].class_names == ("class 1", "class 2", "class 3")
    assert stream.class_names == ("class 1", "class 2", "class 3", "class 0")
    assert stream[1].classes == (0, 1, 2, 3)


def test_test_rows_of_a_class_not_shown_yet_are_left_out_and_noted(write_csv, rows):
    given = [{**row, "split": "test" if i % 5 == 0 else "train"} for i, row in enumerate(rows(4, 20))]
    for row in given:
        if row["label"] == "class 0" and row["domain"] == "phone":
            row["split"] = "test"
    stream = streams.load(write_csv(given), kind="domain-incremental")
    assert stream[0].test.labels.max() < 3
    assert any("left out 10 examples of phone" in note for note in stream.notes)


def test_old_then_new_by_share(write_csv, rows):
    stream = streams.load(write_csv(rows(5, 5)), kind="old-then-new", old=0.6)
    assert [(task.name, task.classes) for task in stream] == [("old", (0, 1, 2)), ("new", (3, 4))]


def test_old_then_new_by_file_may_repeat_old_classes(write_csv, rows):
    old = write_csv(rows(3, 10), "a/day.csv")
    later = [{**row, "text": row["text"] + " again"} for row in rows(2, 10)] + rows(2, 10, "fresh")
    new = write_csv(later, "b/day.csv")
    stream = streams.load(old, new=new)
    assert stream.kind == "old-then-new"
    assert stream[0].classes == (0, 1, 2)
    assert set(stream[1].class_names[3:]) == {"fresh 0", "fresh 1"}
    assert len(stream[1].classes) == 4 and len(set(stream[1].classes) & {0, 1, 2}) == 2
    everything = ids(stream, "train") + ids(stream, "test")
    assert len(set(everything)) == len(everything) == 70
    assert f"{new}:2" in everything


def test_limits_apply_to_each_class_and_are_seeded(write_csv, rows):
    path = write_csv(rows(4, 20))
    stream = streams.load(path, tasks=2, max_train_per_class=3, max_test_per_class=1)
    for task in stream:
        assert np.bincount(task.train.labels)[list(task.classes)].tolist() == [3, 3]
        assert np.bincount(task.test.labels)[list(task.classes)].tolist() == [1, 1]
    assert ids(streams.load(path, tasks=2, max_train_per_class=3, split_seed=4), "train") != ids(stream, "train")
    by_domain = streams.load(path, kind="domain-incremental", max_train_per_class=3)
    assert [len(task.train) for task in by_domain] == [12, 12]


def test_config_has_what_differs_and_builds_the_stream_again(write_csv, rows):
    stream = streams.load(write_csv(rows()), domains="shop, phone", test=0.4)
    assert {**stream.config, "name": "x"} == {"name": "x", "domains": ["shop", "phone"], "test": 0.4}
    assert streams.load(**stream.config).fingerprint() == stream.fingerprint()


def test_fingerprint_is_equal_in_another_process(write_csv, rows):
    path = write_csv(rows(6, 10))
    code = f"from everlearn import streams; print(streams.load({path!r}, tasks=3).fingerprint())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == streams.load(path, tasks=3).fingerprint()


@pytest.mark.parametrize(
    "change",
    [{"tasks": 2}, {"class_seed": 1}, {"split_seed": 1}, {"test": 0.3}, {"max_train_per_class": 4}, {"kind": "online"}],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_differs_on_any_change_of_options(write_csv, rows, change):
    path = write_csv(rows(6, 10))
    assert streams.load(path, tasks=3).fingerprint() != streams.load(path, **{"tasks": 3, **change}).fingerprint()


@pytest.mark.parametrize("key, value", [("text", "other words"), ("label", "class 1")])
def test_fingerprint_differs_on_a_change_of_one_cell(write_csv, rows, key, value):
    given = rows(3, 10)
    before = streams.load(write_csv(given)).fingerprint()
    given[0][key] = value
    assert streams.load(write_csv(given)).fingerprint() != before


def test_test_inputs_that_stand_in_train_are_noted(write_csv, rows):
    given = [{**row, "split": "train"} for row in rows()] + [{**row, "split": "test"} for row in rows(4, 1)]
    assert streams.load(write_csv(given)).notes == ("4 of 4 test inputs also occur in train",)
    tested = [{**row, "text": f"another {row['text']}"} for row in given[-4:]]
    validated = [*given[:-4], *tested, *({**row, "split": "validation"} for row in rows(4, 1))]
    assert streams.load(write_csv(validated)).notes == ("4 of 4 validation inputs also occur in train",)


def test_equal_inputs_are_drawn_into_one_part(write_csv, rows):
    stream = streams.load(write_csv(2 * rows(3, 20)), tasks=3, validation=0.2, test=0.2)
    parts = [
        [text for task in stream for text in getattr(task, part).inputs] for part in ("train", "test", "validation")
    ]
    assert [len(part) for part in parts] == [78, 24, 18] and stream.notes == ()
    assert sum(len(set(part)) for part in parts) == 60


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "class-incrementl"}, "did you mean 'class-incremental'"),
        ({"class_order": "random"}, "give shuffled or given"),
        ({"tasks": 9}, "4 classes cannot fill tasks=9; give tasks from 1 to 4"),
        ({"tasks": 0}, "stream.tasks: 0 is out of range: give a whole number from 1 "),
        ({"base": 2}, "base=2 needs increment"),
        ({"tasks": 2, "increment": 2}, "both given"),
        ({"base": 9, "increment": 2}, "do not fit 4 classes"),
        ({"kind": "domain-incremental", "tasks": 2}, "tasks does not apply to a stream of kind domain-incremental"),
        ({"batch_size": 5}, "it applies to online"),
        ({"titles": True}, "it applies to retrieval files"),
        ({"domains": "shop,fone"}, "did you mean 'phone'"),
        ({"domains": "shop,shop"}, "given twice"),
        ({"kind": "old-then-new", "old": 1.0}, "puts all 4 classes into one task"),
        ({"kind": "online", "batch_size": 0}, "stream.batch_size: 0 is out of range: give a whole number from 1 "),
        ({"test": 1.5}, "stream.test: 1.5 is out of range: give a number of at least 0 and below 1 or a text"),
        ({"max_train_per_class": 0}, "stream.max_train_per_class: 0 is out of range: give a whole number from 1 "),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_in_one_line(write_csv, rows, options, message):
    with pytest.raises(EverlearnError) as error:
        streams.load(write_csv(rows()), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_share_of_a_split_that_the_data_has_is_refused():
    with pytest.raises(EverlearnError, match=r"has its own validation split; drop validation=0\.1"):
        streams.load("clinc150", validation=0.1)


def test_a_task_without_test_examples_is_refused(write_csv, rows):
    given = [
        {**row, "split": "test" if row["label"] == "class 0" and i < 8 else "train"} for i, row in enumerate(rows())
    ]
    with pytest.raises(DataError, match="no test examples in task"):
        streams.load(write_csv(given), tasks=4)
