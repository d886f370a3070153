"""Hub data sets, through the `datasets` library and a local folder, which it loads the same way."""

from __future__ import annotations

import sys

import pytest

from everlearn import streams
from everlearn.errors import DataError, EverlearnError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "id": datasets.Value("int32"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["z", "a"]),
        }
    )

    def write(splits: dict[str, int]):
        for split, count in splits.items():
            rows = {
                "id": range(count),
                "text": [f"{split} {i}" for i in range(count)],
                "label": [i % 2 for i in range(count)],
            }
            path = tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        return f"hub:{tmp_path / 'set'}"

    return write


def test_splits_and_class_names_are_read(folder):
    stream = streams.load(folder({"train": 8, "validation": 4, "test": 6}), class_order="given")
    assert stream.class_names == ("z", "a")
    parts = [part for task in stream for part in (task.train, task.validation, task.test)]
    assert [len(part) for part in parts] == [8, 4, 6]
    assert parts[0].inputs[:3] == ["train 0", "train 1", "train 2"] and parts[0].labels[:3].tolist() == [0, 1, 0]


def test_ids_that_repeat_in_every_split_are_read_only_when_asked_for(folder):
    name = folder({"train": 8, "test": 6})
    assert streams.load(name)[0].train.ids[0].endswith("(train):1")
    task = streams.load(name, id_column="id")[0]
    assert task.train.ids[0] == "0" and task.test.ids[0].endswith("(test):0")


def refusal() -> str:
    with pytest.raises(EverlearnError) as error:
        streams.load("no/set")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python does where an import must fail
    assert "install it with `pip install 'everlearn[hub]'`" in refusal()


def test_without_a_network_the_remedy_is_named(monkeypatch, caplog):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = refusal()
    assert message.startswith("no/set: cannot load") and "check the name and the network" in message
    assert not caplog.records


def saved(tmp_path, table) -> str:
    import pyarrow.parquet as pq

    (tmp_path / "odd").mkdir()
    pq.write_table(table, tmp_path / "odd" / "train.parquet")
    return f"hub:{tmp_path / 'odd'}"


def test_images_are_taken_as_they_are_stored(folder, tmp_path, png, monkeypatch):
    import pyarrow as pa

    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("an image was decoded"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(8)], "label": ["a", "b"] * 4}
    table = datasets.Dataset.from_dict(rows, features=features).data.table
    assert isinstance(table, pa.Table)
    stream = streams.load(saved(tmp_path, table), class_order="given")
    inputs = [*stream[0].train.inputs, *stream[0].test.inputs]
    assert sorted(inputs) == sorted(png(i) for i in range(8))


def test_odd_values_of_the_hub_are_one_line(folder, tmp_path):
    import pyarrow as pa

    table = pa.table({"text": list("abcd"), "label": pa.array([2**62] * 4, pa.duration("s"))})
    with pytest.raises(DataError, match=r"column 'label' cannot be read \(OverflowError: .*\): give a local CSV"):
        streams.load(saved(tmp_path, table))


@pytest.mark.parametrize("name", ["hub:", "hub:a\0b", "hub:" + "n" * 10_000, "hub:/dev/null"])
def test_names_that_the_hub_cannot_have_are_one_line(monkeypatch, name):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(EverlearnError) as error:
        streams.load(name)
    assert str(error.value).isprintable() and len(str(error.value)) < 1300
