"""The feature store never serves a wrong feature: not from damaged files, and not for weights altered in secret."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import time
from pathlib import Path

import pytest
import torch

from everlearn import features, methods
from everlearn.backbones.digests import block_sums
from everlearn.backbones.tiny import TinyBackbone
from everlearn.backbones.two_towers import TwoTowers
from everlearn.cli import main
from everlearn.engine import learn
from everlearn.errors import EverlearnError
from everlearn.features import FeatureStore, cache_info, clear_cache, size_limit
from everlearn.method import Method, Tags
from everlearn.peft.delta import Delta
from everlearn.peft.lora import LoRA
from everlearn.peft.prefix import KeysValues
from everlearn.segments import open_segment
from everlearn.streams import Record, task_from

TEXTS = [f"request {i} of the day {'again ' * (i % 7)}" for i in range(40)]
ELSEWHERE = "0" * 32  # an identity that is none


@pytest.fixture
def tiny():
    return TinyBackbone()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of this process's feature store."""
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path))
    return tmp_path / "features"


def near(found, backbone, texts=TEXTS):
    return torch.allclose(found, backbone.infer(texts), rtol=1e-5, atol=1e-6)


def one_line(error):
    return "\n" not in str(error.value) and len(str(error.value)) < 1300


# -- damaged files -----------------------------------------------------------------------------
def test_of_200_damages_none_is_served_and_each_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", features.CHUNK)  # restored after the test
    file = Path(__file__).parents[1] / "bench" / "damage.py"
    spec = importlib.util.spec_from_file_location("damage", file)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    damaging = bench.Damaging(tmp_path, seed=1)
    for _ in range(200):
        damaging.once()
    assert damaging.wrong == 0 and damaging.noticed == 200, damaging.missed
    assert set(damaging.ways) == {way.__name__ for way in bench.WAYS}


@pytest.mark.parametrize("suffix", [".f32", ".keys"])
def test_a_damaged_segment_is_deleted_and_a_line_says_so(tmp_path, tiny, caplog, suffix):
    truth = FeatureStore(tmp_path).encode(tiny, TEXTS)
    (file,) = tmp_path.glob(f"*/*{suffix}")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    store = FeatureStore(tmp_path)
    assert torch.equal(store.encode(tiny, TEXTS), truth) and store.encoded == 40
    (line,) = [record.getMessage() for record in caplog.records if record.name == "everlearn"]
    assert "has dropped a damaged segment" in line and file.name in line and str(file.parent) in line
    assert "encoded again" in line and "\n" not in line
    assert not file.exists() and len(list(tmp_path.glob("*/*.f32"))) == len(list(tmp_path.glob("*/*.keys"))) == 1
    again = FeatureStore(tmp_path)
    assert torch.equal(again.encode(tiny, TEXTS), truth) and again.encoded == 0 and len(caplog.records) == 1


def test_many_damaged_segments_are_one_line(tmp_path, tiny, caplog, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 10)
    FeatureStore(tmp_path).encode(tiny, TEXTS)
    for file in tmp_path.glob("*/*.keys"):  # as everlearn wrote them once
        file.write_bytes(b"".join(open_segment(file, tiny.width).keys))
    store = FeatureStore(tmp_path)
    assert near(store.encode(tiny, TEXTS), tiny) and store.encoded == 40
    (record,) = caplog.records
    assert "4 damaged segments (the first: " in record.getMessage() and "version" in record.getMessage()


def test_the_line_goes_to_standard_error_and_a_run_is_the_same(root, tiny, capfd):
    def run():
        method = methods.get("simplecil")(TinyBackbone())
        learn(method, task_from([Record(text, f"class {i % 4}") for i, text in enumerate(TEXTS)]))
        return method.predict(TEXTS)

    before = run()
    for file in root.glob("*/*.f32"):
        file.write_bytes(bytes(file.stat().st_size))
    features._default = None
    logging.getLogger().handlers, handlers = [], logging.getLogger().handlers  # those of pytest
    try:
        assert torch.equal(run(), before)
    finally:
        logging.getLogger().handlers = handlers
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "damaged segment" in err


def test_a_segment_that_is_not_asked_for_is_not_read(tmp_path, tiny, caplog):
    """A shelf may have gigabytes: its features are hashed when they are used."""
    FeatureStore(tmp_path).encode(tiny, TEXTS[:20])
    (damaged,) = tmp_path.glob("*/*.f32")
    FeatureStore(tmp_path).encode(tiny, TEXTS[20:])
    damaged.write_bytes(bytes(damaged.stat().st_size))
    store = FeatureStore(tmp_path)
    assert near(store.encode(tiny, TEXTS[20:]), tiny, TEXTS[20:]) and store.encoded == 0 and not caplog.records
    assert near(store.encode(tiny, TEXTS), tiny) and store.encoded == 20 and len(caplog.records) == 1


def test_what_another_process_has_evicted_is_no_damage(tmp_path, tiny, caplog):
    for part in (TEXTS[:20], TEXTS[20:]):
        FeatureStore(tmp_path).encode(tiny, part)
    store = FeatureStore(tmp_path)
    store.encode(tiny, TEXTS[:1])  # reads all keys, and the features of one segment
    for file in [*tmp_path.glob("*/*.keys"), *tmp_path.glob("*/*.f32")]:
        file.unlink()
    assert near(store.encode(tiny, TEXTS), tiny) and store.encoded == 20 and not caplog.records


def test_where_one_of_two_copies_is_damaged_the_other_is_served(tmp_path, tiny, caplog):
    """Two processes may encode the same examples at the same time."""
    one, two = FeatureStore(tmp_path), FeatureStore(tmp_path)
    shelves_of_both = [store._shelf(tiny) for store in (one, two)]
    assert [shelf.missing([]) for shelf in shelves_of_both] == [0, 0]
    keys, rows = [features.content_key(text) for text in TEXTS], tiny.infer(TEXTS).numpy()
    for shelf in shelves_of_both:
        shelf.add(keys, rows)
    file = min(tmp_path.glob("*/*.f32"))
    file.write_bytes(bytes(file.stat().st_size))
    store = FeatureStore(tmp_path)
    assert near(store.encode(tiny, TEXTS), tiny) and store.encoded == 0 and len(caplog.records) == 1


def test_features_are_on_the_disk_before_their_keys(tmp_path, tiny, monkeypatch):
    done = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append(Path(new).suffix), replace(old, new)))
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("flush"), fsync(file)))
    FeatureStore(tmp_path).encode(tiny, TEXTS)
    assert done == ["flush", ".json", "flush", ".f32", "flush", ".keys"]


@pytest.mark.parametrize("suffix", [".f32", ".keys"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "endless link"])
def test_what_is_no_regular_file_is_not_read(tmp_path, tiny, suffix, what):
    FeatureStore(tmp_path).encode(tiny, TEXTS)
    (file,) = tmp_path.glob(f"*/*{suffix}")
    file.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path),
     "endless link": lambda path: os.symlink(path, path)}[what](file)  # fmt: skip
    store = FeatureStore(tmp_path)
    if what == "endless link":
        with pytest.raises(EverlearnError, match=r"feature store at .* cannot be read") as error:
            store.encode(tiny, TEXTS)
        assert one_line(error)
    else:
        assert near(store.encode(tiny, TEXTS), tiny) and store.encoded == 40


# -- the folder --------------------------------------------------------------------------------
DAMAGED_ABOUT = {
    "empty": b"", "no JSON": b"{", "no UTF-8": b'{"backbone": "\xff"}', "a list": b"[1]", "a number": b"3",
    "no width": b"{}", "wrong types": b'{"backbone": [1], "width": "x", "precision": 1, "deltas": null}',
    "repeated": b'{"backbone": "a", "backbone": "b", "precision": "float32", "deltas": 0}',
    "huge": b'{"backbone": "' + b"x" * 100_000 + b'", "precision": "float32", "deltas": 0}',
    "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("about", DAMAGED_ABOUT.values(), ids=DAMAGED_ABOUT)
def test_a_damaged_about_json_breaks_neither_cache_nor_clear(root, tiny, capsys, about):
    tiny.encode(TEXTS)
    (file,) = root.glob("*/about.json")
    file.write_bytes(about)
    (entry,) = cache_info()
    assert entry["examples"] == 40 and entry["bytes"] == 40 * 32 * 4 and "about.json" in entry["description"]
    assert main(["cache"]) == 0 and tiny.identity()[:10] in capsys.readouterr().out
    assert near(FeatureStore(root).encode(tiny, TEXTS), tiny)
    assert main(["cache", "--clear", tiny.identity()]) == 0 and cache_info() == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir, None])
def test_an_about_json_that_is_no_file(root, tiny, make):
    tiny.encode(TEXTS)
    (file,) = root.glob("*/about.json")
    file.unlink()
    if make:
        make(file)
    assert cache_info()[0]["examples"] == 40 and clear_cache() == 40 * 32 * 4 and cache_info() == []


def test_a_description_has_no_control_characters(root, tiny):
    tiny.encode(TEXTS)
    (file,) = root.glob("*/about.json")
    file.write_text(json.dumps({"backbone": "a\x1b[2J\nb", "width": 32, "precision": "float32", "deltas": 0}))
    assert cache_info()[0]["description"] == "a\\x1b[2J b, float32, 0 deltas"


def test_nothing_is_deleted_through_a_link(tmp_path, root, tiny):
    outside = tmp_path / "outside"
    FeatureStore(outside).encode(tiny, TEXTS)
    (real,) = outside.iterdir()
    kept = {file: file.read_bytes() for file in real.iterdir()}
    root.mkdir()
    (root / ELSEWHERE).symlink_to(real)
    (root / "notes").mkdir()
    (root / "notes" / "mine.f32").write_text("not of the store")
    FeatureStore(root, limit=0).encode(TinyBackbone(width=16), TEXTS)  # everything is evicted
    assert ELSEWHERE not in [entry["identity"] for entry in cache_info()]
    clear_cache()
    assert (root / "notes" / "mine.f32").exists() and (root / ELSEWHERE).is_symlink()
    (root / tiny.identity()).symlink_to(real)
    next(file for file in real.glob("*.f32")).write_bytes(b"damaged")
    with pytest.raises(EverlearnError, match="is a link, and the feature store keeps to its own folder") as error:
        FeatureStore(root).encode(tiny, TEXTS)
    assert one_line(error) and {file for file in real.iterdir()} == set(kept)


@pytest.mark.parametrize("given", ["abc", "-1", "1e9", "1_000", "٣", " ", "9" * 19, "1" * 5000, "5\n", "\x1b[2J"])
def test_a_limit_that_is_no_number_of_bytes_is_one_clear_line(root, monkeypatch, given):
    monkeypatch.setenv("EVERLEARN_CACHE_BYTES", given)
    with pytest.raises(EverlearnError, match=r"EVERLEARN_CACHE_BYTES is .*: give a number of bytes") as error:
        FeatureStore(root)
    assert one_line(error) and "\x1b" not in str(error.value)


def test_limits_from_nothing_to_the_largest(monkeypatch):
    for given, limit in (("0", 0), ("9223372036854775807", 2**63 - 1), ("", features.DEFAULT_LIMIT)):
        monkeypatch.setenv("EVERLEARN_CACHE_BYTES", given)
        assert size_limit() == limit


@pytest.mark.parametrize("call", [cache_info, clear_cache, lambda: TinyBackbone().encode(TEXTS)])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_folder_that_may_not_be_listed_is_one_clear_line(root, tiny, monkeypatch, call, code):
    tiny.encode(TEXTS)
    features._default = None

    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(EverlearnError, match=r"feature store at .* cannot be read .*set EVERLEARN_CACHE") as error:
        call()
    assert one_line(error)


def test_a_file_that_may_not_be_read_is_one_clear_line_and_is_kept(root, tiny, monkeypatch):
    tiny.encode(TEXTS)
    kept = set(root.glob("*/*"))

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("everlearn.segments.open", refused, raising=False)
    with pytest.raises(EverlearnError, match=r"cannot be read .Permission denied") as error:
        FeatureStore(root).encode(tiny, TEXTS)
    assert one_line(error) and set(root.glob("*/*")) == kept


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "a/" * 3000])
def test_a_path_that_no_folder_can_have_is_one_clear_line(tmp_path, tiny, name):
    with pytest.raises(EverlearnError, match=r"feature store at .* cannot be read") as error:
        FeatureStore(f"{tmp_path}/{name}").encode(tiny, TEXTS)
    assert one_line(error)


@pytest.mark.parametrize("call", [cache_info, clear_cache])
def test_a_cache_that_is_a_file_is_one_clear_line(tmp_path, monkeypatch, call):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path / "file"))
    with pytest.raises(EverlearnError, match=r"cannot be read .Not a directory") as error:
        call()
    assert one_line(error)


def test_without_a_home_folder_one_line_says_what_to_set(monkeypatch):
    monkeypatch.delenv("EVERLEARN_CACHE")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))
    with pytest.raises(EverlearnError, match=r"no home folder.*set EVERLEARN_CACHE"):
        cache_info()


def test_a_read_only_store_serves(tmp_path, tiny, monkeypatch):
    truth = FeatureStore(tmp_path).encode(tiny, TEXTS)

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("utime", "unlink", "replace", "mkdir"):
        monkeypatch.setattr(os, name, read_only)
    store = FeatureStore(tmp_path, limit=0)
    assert torch.equal(store.encode(tiny, TEXTS), truth) and store.encoded == 0
    (file,) = tmp_path.glob("*/*.f32")
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(EverlearnError, match=r"cannot be written .Read-only file system") as error:
        FeatureStore(tmp_path).encode(tiny, TEXTS)
    assert one_line(error)


# -- weights written to in secret --------------------------------------------------------------
def by_data(tensor):
    tensor.data.view(-1)[3] += 1.0


def by_numpy(tensor):
    tensor.detach().numpy().reshape(-1)[3] += 1.0


def by_a_new_memory(tensor):
    tensor.data = 1.5 * tensor.data.flip(0)


WRITES = pytest.mark.parametrize("write", [by_data, by_numpy, by_a_new_memory])


@WRITES
def test_features_of_altered_weights_are_not_stored_under_the_old_identity(tmp_path, tiny, write):
    FeatureStore(tmp_path).encode(tiny, TEXTS[:20])
    pristine = tiny.identity()
    write(tiny.positions)
    assert tiny.identity() == pristine  # torch does not count such writes
    store = FeatureStore(tmp_path)
    assert near(store.encode(tiny, TEXTS), tiny) and tiny.identity() != pristine
    later = FeatureStore(tmp_path)
    assert near(later.encode(TinyBackbone(), TEXTS), TinyBackbone())
    assert not near(later.encode(TinyBackbone(), TEXTS), tiny) and later.encoded == 20


@WRITES
def test_a_doubt_finds_the_write_and_the_return(tiny, write):
    before, kept = tiny.identity(), tiny.positions.detach().clone()
    write(tiny.positions)
    tiny.doubt()
    after = tiny.identity()
    tiny.positions.data.copy_(kept)
    tiny.doubt()
    assert after != before == tiny.identity()


def test_a_doubt_without_a_write_hashes_nothing(tiny, monkeypatch):
    before = tiny.identity()
    tiny.doubt()
    monkeypatch.setattr("everlearn.backbones.digests.digest", lambda tensor: pytest.fail("hashed again"))
    assert tiny.identity() == before


def test_a_doubt_reaches_deltas_and_towers(tiny):
    delta = tiny.attach(LoRA(32, 32, rank=2), tiny.block(0).value)
    both = TwoTowers(image=TinyBackbone(), text=tiny)
    before = both.identity()
    by_data(delta.b)
    both.doubt()
    assert both.identity() != before


def test_in_inference_the_exact_weights_are_compared(tiny):
    tiny.precision = "bfloat16"
    before = tiny.identity()
    with tiny.inference():
        tiny.doubt()
        assert tiny.identity() == before
    assert tiny.identity() == before
    by_data(next(m for m in tiny.modules() if isinstance(m, torch.nn.Linear)).weight)
    tiny.doubt()
    with tiny.inference():
        assert tiny.identity() != before


class Sneaky(Method):
    """Writes to the frozen backbone where torch does not count it."""

    tags = Tags(family="baseline", trains="head")
    place, write = "", staticmethod(by_data)

    def __init__(self, backbone):
        super().__init__(backbone, epochs=1, batch_size=20)
        backbone.requires_grad_(False)

    def now(self, place):
        if place == self.place:
            self.write(self.backbone.positions)

    def begin_task(self, task):
        super().begin_task(task)
        self.now("begin_task")

    def step(self, batch, optimizer_step):
        self.backbone.encode(TEXTS)
        self.now("step")
        return super().step(batch, optimizer_step)

    def end_task(self, task):
        self.now("end_task")


@WRITES
@pytest.mark.parametrize("place", ["begin_task", "step", "end_task"])
def test_weights_that_a_method_writes_to_in_secret_do_not_poison_later_runs(root, tiny, place, write):
    method = Sneaky(tiny)
    method.place, method.write = place, write
    pristine = tiny.identity()
    tiny.encode(TEXTS[:30])
    learn(method, task_from([Record(text, f"class {i % 4}") for i, text in enumerate(TEXTS)]))
    assert tiny.identity() != pristine
    assert near(tiny.encode(TEXTS), tiny) and torch.equal(method.embed(TEXTS), tiny.encode(TEXTS))
    fresh = FeatureStore(root)
    assert near(fresh.encode(TinyBackbone(), TEXTS), TinyBackbone())


class Restless(Delta):
    """Alters a weight of the backbone in every pass."""

    def forward(self, x, y):
        assert self.site is not None
        by_data(self.site.weight)
        return y


def test_weights_that_change_while_they_encode_are_one_clear_line(tmp_path, tiny):
    tiny.attach(Restless(), tiny.block(0).value)
    with pytest.raises(EverlearnError, match="the weights of backbone 'tiny' change while it encodes") as error:
        FeatureStore(tmp_path).encode(tiny, TEXTS)
    assert one_line(error) and not list(tmp_path.glob("*/*.f32"))


def test_given_keys_and_values_are_part_of_the_identity(root, tiny):
    delta = tiny.attach(KeysValues(), tiny.block(0).heads)
    tiny.encode(TEXTS)
    for value in (1.0, 2.0):
        with delta.given(torch.full((1, 2, 32), value), torch.full((1, 2, 32), value)):
            assert near(tiny.encode(TEXTS), tiny)
    assert near(tiny.encode(TEXTS), TinyBackbone())


def test_block_sums_tell_contents_apart():
    def drawn(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    large = drawn(600, 384)
    others = [large.clone() for _ in range(7)]
    others[0][:2] = large[[1, 0]]
    others[1][3, [0, 2]] = large[3, [2, 0]]
    others[2].copy_(large.flip(1))
    others[3].copy_(large.roll(2, 1))
    others[4].view(torch.int32)[599, 383] ^= 1
    others[5].view(torch.int32)[0, 0] ^= -(2**31)
    others[6].copy_(large[:, torch.randperm(384, generator=torch.Generator().manual_seed(1))])
    assert len({block_sums(tensor) for tensor in [large, *others]}) == 8
    assert block_sums(large) == block_sums(large.clone()) == block_sums(large.t().contiguous().t())
    assert len(block_sums(large)) < large.nbytes / 5
    for small in (torch.tensor(1.5), torch.ones(0), torch.ones(7, dtype=torch.bool), torch.ones(3).bfloat16()):
        assert block_sums(small) == block_sums(small.clone()) and len(block_sums(small)) == small.nbytes
    offset = drawn(100_001)[1:]
    assert block_sums(offset) == block_sums(offset.clone())


def test_features_whose_keys_another_process_is_about_to_write_are_not_evicted(tmp_path, tiny, caplog):
    FeatureStore(tmp_path).encode(tiny, TEXTS)
    (keys,) = tmp_path.glob("*/*.keys")
    written = keys.read_bytes()
    keys.unlink()  # as between the two writes of another process
    FeatureStore(tmp_path, limit=0).encode(tiny, ["another text"])
    assert keys.with_suffix(".f32").exists()
    keys.write_bytes(written)
    store = FeatureStore(tmp_path)
    assert near(store.encode(tiny, TEXTS), tiny) and store.encoded == 0 and not caplog.records
    keys.unlink()
    long_ago = time.time() - 3600
    os.utime(keys.with_suffix(".f32"), (long_ago, long_ago))  # a killed process left it
    FeatureStore(tmp_path, limit=0).encode(tiny, ["a third text"])
    assert not keys.with_suffix(".f32").exists()
