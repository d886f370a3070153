"""Inputs of every kind, tasks made of new records, and what a task hides."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everlearn import backbones
from everlearn.engine import learn
from everlearn.errors import ContractError, DataError
from everlearn.memory.memory import Memory
from everlearn.methods import SimpleCIL
from everlearn.streams import Record, task_from
from everlearn.streams.inputs import content, kind, original
from everlearn.streams.stream import HIDDEN, NO_EXAMPLES, PARTS, Corpus, Examples, Task
from everlearn.streams.views import View, views
from everlearn.testing import toy_stream


def png(shade: int = 0) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()


class Sound:
    """An input of one's own."""

    kind = "sound"

    def __init__(self, samples: list[int], of: Sound | None = None) -> None:
        self.samples, self.of = samples, of

    @property
    def original(self) -> Sound:
        return self.of or self

    def content(self) -> bytes:
        return bytes(self.samples)


# -- inputs ------------------------------------------------------------------------------------
def test_a_text_is_its_utf8_bytes_and_its_own_original():
    for text in ("", "a text", "é 你好 \n"):
        assert kind(text) == "text" and content(text) == text.encode("utf-8") and original(text) is text


def test_an_image_is_its_encoded_bytes_wherever_they_are(tmp_path):
    image, path = png(), tmp_path / "image.png"
    path.write_bytes(image)
    for item in (image, path):
        assert kind(item) == "image" and content(item) == image and original(item) is item
    assert kind(b"") == "image" and kind(Path("not there.png")) == "image"
    with pytest.raises(DataError, match=r"not there\.png: no such file; check the path"):
        content(tmp_path / "not there.png")


def test_a_view_is_an_image_with_content_of_its_own_and_an_original(tmp_path):
    image, path = png(50), tmp_path / "image.png"
    path.write_bytes(image)
    for item in (image, path):
        view = View(item, 3)
        assert kind(view) == "image" and original(view) is item and content(view) == view.content() != image
        assert np.asarray(Image.open(io.BytesIO(content(view)))).shape == (8, 8, 3)
        assert [original(again) for again in views([view, item], [1, 2])] == [item, item]  # no view of a view


def test_an_input_of_ones_own_says_what_it_is_and_is_kept_by_its_content():
    whole = Sound([1, 2, 3])
    part = Sound([2, 3], of=whole)
    assert kind(part) == "sound" and content(part) == b"\x02\x03" and original(part) is whole is original(whole)
    memory = Memory()
    memory.add(Examples([part, "text"], torch.tensor([0, 1]), ["a", "b"]))
    assert memory.examples().inputs == [b"\x01\x02\x03", "text"]
    one, other = (Examples([item], torch.tensor([0]), ["a"]) for item in (whole, part))
    assert one.digest() != other.digest()


# -- tasks of new records ----------------------------------------------------------------------
def test_a_task_of_old_and_new_labels_numbers_the_new_ones_behind():
    records = [
        Record("tea please", "drink"), Record("a sofa", "furniture"), Record("a red bus", "vehicle", id="bus"),
        Record("more tea", "drink"),
    ]  # fmt: skip
    task = task_from(records, known=["furniture", "animal"], index=2, name="monday")
    assert task.class_names == ("furniture", "animal", "drink", "vehicle")
    assert task.train.labels.tolist() == [2, 0, 3, 2] and task.train.labels.dtype == torch.long
    assert task.classes == (0, 2, 3)  # the animal has no example now
    assert task.train.inputs == [record.input for record in records]
    assert task.train.ids == ["0", "1", "bus", "3"]
    assert (task.index, task.name, task.input, task.goal) == (2, "monday", "text", "classes")
    assert len(task.test) == len(task.validation) == 0
    only_old = task_from(records[1:2], known=["furniture", "animal"])
    assert only_old.class_names == ("furniture", "animal") and only_old.classes == (0,)
    assert task_from(records).class_names == ("drink", "furniture", "vehicle")


def test_a_task_of_images_says_so(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png())
    assert task_from([Record(path, "a"), Record(png(9), "b"), Record(View(path, 1), "b")]).input == "image"


def test_records_of_mixed_kinds_and_no_records_are_refused():
    with pytest.raises(DataError, match="the records mix image and text: give one kind of input per task"):
        task_from([Record("a text", "a"), Record(png(), "b")])
    for none in ([], ()):
        with pytest.raises(DataError, match="there are no records to learn from: give at least one"):
            task_from(none, known=["a"])


def test_a_model_learns_a_task_of_new_records_and_keeps_the_old_classes():
    stream = toy_stream(tasks=2)
    method = SimpleCIL(backbones.load("tiny"))
    learn(method, stream[0])
    fresh = stream[1].train
    records = [Record(text, f"class {k}") for text, k in zip(fresh.inputs, fresh.labels.tolist(), strict=True)]
    learn(method, task_from([*records, Record(stream[0].train.inputs[0], "class 0")], known=method.head.class_names,
                            index=1))  # fmt: skip
    assert method.head.class_names == tuple(f"class {k}" for k in range(4))
    assert method.head.counts.tolist() == [17, 16, 16, 16]
    right = method.predict(fresh.inputs).argmax(1) == fresh.labels
    assert right.double().mean() > 0.75


# -- what a task hides -------------------------------------------------------------------------
def test_test_data_is_hidden_while_a_task_is_learned():
    task = toy_stream()[1]
    learning = task.for_learning()
    assert learning.train is task.train and learning.validation is NO_EXAMPLES
    with pytest.raises(ContractError, match=r"the method read the test data of task 1; .*: learn from train") as error:
        _ = learning.test
    assert HIDDEN[("test",)] in str(error.value) and "\n" not in str(error.value)
    assert "test" not in learning.examples and len(task.test) > 0  # not there either, and the whole task keeps it
    for again in (learning.for_learning(), replace(learning, name="other")):
        with pytest.raises(ContractError, match="test data"):
            _ = again.test


@pytest.mark.parametrize("part", PARTS)
def test_a_sealed_task_hides_all_its_data_and_says_which_was_read(part):
    task = replace(toy_stream()[2], corpus=Corpus(["a"], ["text"]))
    told = f"the method read the {part} data of task 2; begin_task may change structure only"
    restored = Task.from_metadata(json.loads(json.dumps(task.metadata())))
    for sealed in (task.sealed(), task.for_learning().sealed(), restored):
        with pytest.raises(ContractError, match=told) as error:
            getattr(sealed, part)
        assert "\n" not in str(error.value)
        assert not sealed.examples and sealed.corpus is None
        assert sealed == replace(task, examples={}, corpus=None, hidden=PARTS)


def test_the_metadata_of_a_task_is_plain_json_of_all_but_its_data():
    task = replace(toy_stream("image", kind="online")[1], augment=True)
    assert task.batch_size == 4
    metadata = task.metadata()
    assert json.loads(json.dumps(metadata)) == metadata
    assert Task.from_metadata(metadata) == task.sealed()


def test_rows_and_joins_of_examples_keep_their_columns():
    columns = {"logits": torch.eye(3), "age": torch.ones(3)}
    examples = Examples(list("abc"), torch.arange(3), list("123"), columns=columns)
    chosen = examples[[2, 0]]
    assert torch.equal(chosen.columns["logits"], torch.eye(3)[[2, 0]]) and list(chosen.inputs) == ["c", "a"]
    plain = Examples(["d"], torch.tensor([3]), ["4"], columns={"logits": torch.zeros(1, 3)})
    joined = Examples.concatenate([examples, NO_EXAMPLES, plain])
    assert joined.columns.keys() == {"logits"}  # what all parts have
    assert torch.equal(joined.columns["logits"], torch.cat([torch.eye(3), torch.zeros(1, 3)]))
