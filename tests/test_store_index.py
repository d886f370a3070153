"""The index of the feature store: what it spares, and that no damage to it changes a feature."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from everlearn import features, shelves
from everlearn.backbones.tiny import TinyBackbone
from everlearn.features import FeatureStore
from everlearn.key_index import KeyIndex, as_array, positions, write_index
from everlearn.segments import Damaged, open_segment

TEXTS = [f"request {i} of the day" for i in range(60)]
LATER = [f"later {i}" for i in range(8)]


@pytest.fixture
def tiny():
    return TinyBackbone()


@pytest.fixture
def filled(tmp_path, tiny, monkeypatch):
    """The folder of an identity with 15 segments and an index of them, and its features."""
    monkeypatch.setattr(features, "CHUNK", 4)
    monkeypatch.setattr(shelves, "MANY", 3)
    truth = FeatureStore(tmp_path).encode(tiny, TEXTS)
    assert not list(tmp_path.glob("*/*.index"))  # nobody has opened many segments yet
    assert torch.equal(FeatureStore(tmp_path).encode(tiny, TEXTS), truth)
    (index,) = tmp_path.glob("*/*.index")
    assert len(KeyIndex(index).names) == len(list(index.parent.glob("*.keys"))) == 15
    return index.parent, truth


def opened(monkeypatch):
    """The names of the segments that are opened from now on."""
    seen = []

    def count(file, width):
        seen.append(file.stem)
        return open_segment(file, width)

    monkeypatch.setattr(shelves, "open_segment", count)
    return seen


def test_only_the_segments_that_hold_what_is_asked_are_opened(filled, tiny, monkeypatch):
    folder, truth = filled
    seen = opened(monkeypatch)
    store = FeatureStore(folder.parent)
    assert torch.equal(store.encode(tiny, TEXTS[4:9]), truth[4:9]) and store.encoded == 0 and len(seen) == 2
    assert len(store._shelf(tiny).index) == 5  # and nothing is kept of what was not asked for
    assert torch.equal(store.encode(tiny, TEXTS), truth) and len(seen) == 15


def test_what_is_missing_opens_no_old_segment_and_what_came_later_is_found(filled, tiny, monkeypatch):
    folder, truth = filled
    FeatureStore(folder.parent).encode(tiny, LATER)
    seen = opened(monkeypatch)
    store = FeatureStore(folder.parent)
    asked = [LATER[7], TEXTS[0], "never seen", LATER[0]]
    found = store.encode(tiny, asked)
    assert store.encoded == 1 and len(seen) == 3 and torch.equal(found[1], truth[0])
    assert torch.allclose(found, tiny.infer(asked), rtol=1e-5, atol=1e-6)


def test_the_index_is_made_anew_after_many_more_segments(filled, tiny):
    folder, _ = filled
    for text in LATER:
        FeatureStore(folder.parent).encode(tiny, [text])
    store = FeatureStore(folder.parent)
    store.encode(tiny, LATER)
    assert store.encoded == 0 and len(KeyIndex(folder / "all.index").names) > 15


def test_segments_that_are_gone_are_encoded_again(filled, tiny):
    folder, truth = filled
    for file in sorted(folder.glob("*.keys"))[:5]:
        file.with_suffix(".f32").unlink()
        file.unlink()
    store = FeatureStore(folder.parent)
    assert torch.allclose(store.encode(tiny, TEXTS), truth, rtol=1e-5, atol=1e-6) and store.encoded == 20


@pytest.mark.parametrize("suffix", [".f32", ".keys"])
def test_a_damaged_segment_of_the_index_is_dropped_with_a_line(filled, tiny, suffix, caplog):
    folder, truth = filled
    file = sorted(folder.glob(f"*{suffix}"))[7]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    store = FeatureStore(folder.parent)
    with caplog.at_level(logging.WARNING, "everlearn"):
        assert torch.allclose(store.encode(tiny, TEXTS), truth, rtol=1e-5, atol=1e-6) and store.encoded == 4
    assert len(caplog.records) == 1 and "dropped a damaged segment" in caplog.text and not file.exists()


def damaged_indexes(whole, foreign):
    draw = random.Random(0)
    for _ in range(40):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield bytes(data)
    for _ in range(10):
        yield whole[: draw.randrange(len(whole))]
    yield from (b"", whole + b"\0", bytes(len(whole)), whole[::-1], foreign, b"everlix0" + whole[8:])


def test_no_damage_to_the_index_changes_a_feature_and_each_is_one_line(filled, tiny, tmp_path, caplog):
    folder, truth = filled
    index = folder / "all.index"
    whole = index.read_bytes()
    other = folder.with_name("f" * 32)
    other.mkdir()
    held = [(file.stem, as_array([open_segment(file, 32).packed])) for file in folder.glob("*.keys")]
    write_index(other / "all.index", held)  # complete, but of another identity
    for number, data in enumerate(damaged_indexes(whole, (other / "all.index").read_bytes())):
        index.write_bytes(data)
        caplog.clear()
        store = FeatureStore(folder.parent)
        with caplog.at_level(logging.WARNING, "everlearn"):
            assert torch.equal(store.encode(tiny, TEXTS), truth) and store.encoded == 0, number
        assert ["dropped a damaged index" in record.getMessage() for record in caplog.records] == [True], number
        fresh = FeatureStore(folder.parent)
        assert torch.equal(fresh.encode(tiny, TEXTS), truth) and KeyIndex(index).names


def test_a_sealed_index_that_names_wrong_rows_gives_no_wrong_feature(filled, tiny, caplog):
    folder, truth = filled
    held = [(file.stem, as_array([open_segment(file, 32).packed])[::-1]) for file in sorted(folder.glob("*.keys"))]
    write_index(folder / "all.index", held)
    store = FeatureStore(folder.parent)
    with caplog.at_level(logging.WARNING, "everlearn"):
        assert torch.equal(store.encode(tiny, TEXTS), truth) and store.encoded == 0
    assert len(caplog.records) == 1 and "does not fit" in caplog.text
    assert torch.equal(FeatureStore(folder.parent).encode(tiny, TEXTS), truth) and (folder / "all.index").exists()


@pytest.mark.parametrize("what", ["of another version", "of other names"])
def test_a_store_with_nothing_to_be_indexed(filled, tiny, what, caplog):
    folder, truth = filled
    (folder / "all.index").unlink()
    for number, file in enumerate(sorted(folder.glob("*.keys"))):
        if what == "of another version":
            file.write_bytes(b"everlrn1" + file.read_bytes()[8:])
        else:
            for part in (file, file.with_suffix(".f32")):
                part.rename(folder / f"copy {number}{part.suffix}")
    store = FeatureStore(folder.parent)
    assert torch.equal(store.encode(tiny, TEXTS), truth)
    assert store.encoded == (len(TEXTS) if what == "of another version" else 0)
    assert len(caplog.records) == (what == "of another version")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_an_index_that_is_no_file(filled, tiny, make):
    folder, truth = filled
    (folder / "all.index").unlink()
    make(folder / "all.index")
    store = FeatureStore(folder.parent)
    assert torch.equal(store.encode(tiny, TEXTS), truth) and store.encoded == 0


def test_where_no_index_can_be_written_every_segment_is_opened(filled, tiny, monkeypatch):
    folder, truth = filled
    (folder / "all.index").unlink()

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("everlearn.key_index.write_whole", read_only)
    store = FeatureStore(folder.parent)
    assert torch.equal(store.encode(tiny, TEXTS), truth) and store.encoded == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_is_killed_while_writing_the_index_leaves_nothing_wrong(filled, tiny, when):
    folder, truth = filled
    (folder / "all.index").unlink()
    child = os.fork()
    if child == 0:
        rename = os.replace

        def kill(source, place):
            if when == "after":
                rename(source, place)
            os.kill(os.getpid(), signal.SIGKILL)

        os.replace = kill
        FeatureStore(folder.parent).encode(tiny, TEXTS)
        os._exit(0)  # not killed: the test is out of date
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    store = FeatureStore(folder.parent)
    assert torch.equal(store.encode(tiny, TEXTS), truth) and store.encoded == 0


WORKER = """
import random, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from everlearn import features, shelves
from everlearn.backbones.tiny import TinyBackbone
features.CHUNK, shelves.MANY = 4, 3
tiny, draw = TinyBackbone(), random.Random(int(sys.argv[2]))
texts = [f"request {i} of the day" for i in range(60)]
truth = tiny.infer(texts)
for _ in range(20):
    store = features.FeatureStore(sys.argv[1], limit=draw.choice((10**9, 3000)))
    for _ in range(3):
        rows = draw.sample(range(60), 7)
        assert torch.allclose(store.encode(tiny, [texts[row] for row in rows]), truth[rows], rtol=1e-5, atol=1e-6), rows
"""


def test_two_processes_that_make_indexes_and_room_are_both_right(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path / "store")]
    workers = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True) for seed in (1, 2)]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0] and errors == ["", ""], errors


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_every_key_is_found_where_it_is_and_no_other(tmp_path, count):
    draw = np.random.default_rng(count)
    keys = np.unique(draw.integers(0, 256, (count, 16), np.uint8), axis=0)
    keys[::3, -1] = 0  # numpy leaves out zero bytes at the end of a text
    keys = as_array([draw.permutation(keys).tobytes()])
    halves = np.array_split(keys, 2) if count > 1 else [keys]
    segments = [(f"{number:032x}", half) for number, half in enumerate(halves)]
    folder = tmp_path / ("0" * 32)
    folder.mkdir()
    write_index(folder / "all.index", segments)
    index = KeyIndex(folder / "all.index")
    others = as_array([draw.integers(0, 256, (count, 16), np.uint8).tobytes()])
    wanted = np.concatenate([others, keys])
    found = {}
    for name, asked, rows in index.find(wanted):
        found |= {int(place): (name, int(row)) for place, row in zip(asked, rows, strict=True)}
    assert sorted(found) == list(range(count, 2 * count))
    for place, (name, row) in found.items():
        assert dict(segments)[name][row] == wanted[place]
    assert index.find(keys[:0]) == []


def test_positions_among_none():
    assert positions(as_array([b"a" * 16]), as_array([])).tolist() == [-1]


def test_an_index_in_the_folder_of_another_identity_is_damaged(filled):
    folder, _ = filled
    other = folder.with_name("f" * 32)
    other.mkdir()
    (other / "all.index").write_bytes((folder / "all.index").read_bytes())
    with pytest.raises(Damaged, match=r"digest of all\.index differs"):
        KeyIndex(other / "all.index")


def test_room_is_counted_once_and_again_only_beyond_the_limit(tmp_path, tiny, monkeypatch):
    listed = []
    files = features._files
    monkeypatch.setattr(features, "_files", lambda *given: listed.append(given) or files(*given))
    store = FeatureStore(tmp_path, limit=5 * 4 * 32 * 4)
    for start in range(0, 20, 4):
        store.encode(tiny, TEXTS[start : start + 4])
    assert len(listed) == 1  # the first time
    store.encode(tiny, TEXTS[20:24])
    assert len(listed) == 2 and len(list(tmp_path.glob("*/*.f32"))) == 5


def test_small_segments_are_joined_and_lose_nothing(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(shelves, "MOST_SMALL", 8)
    monkeypatch.setattr(shelves, "SMALL", 20)
    store, other = FeatureStore(tmp_path), FeatureStore(tmp_path)
    for number, text in enumerate(TEXTS):  # as a model does that is asked one text at a time
        store.encode(tiny, [text])
        if number == 30:
            other.encode(tiny, TEXTS[:31])  # segments that are deleted later
    assert len(list(tmp_path.glob("*/*.keys"))) == len(list(tmp_path.glob("*/*.f32"))) < 12
    for asked in (store, other, FeatureStore(tmp_path)):
        encoded = asked.encoded
        assert torch.allclose(asked.encode(tiny, TEXTS), tiny.infer(TEXTS), rtol=1e-5, atol=1e-6)
        assert asked.encoded == encoded
