"""An index after damage, on a full disk, and after a kill at every call of the operating system."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as safetensors_bytes

from everlearn.errors import EverlearnError
from everlearn.retrieval import Index, Stamp
from everlearn.retrieval.bridge import Bridge
from everlearn.retrieval.logged import LoggedGeneration

BENCH = Path(__file__).parents[2] / "bench" / "kill_index.py"
D = 8
HERE, THERE = Stamp("here", "generated", D, "dot"), Stamp("there", "generated", D, "dot")


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def made(folder: Path, kind: Any = "exact") -> Path:
    """An index of 30 documents and a bridge, of which the last ten documents were added after it was saved."""
    with Index.create(folder, HERE, kind) as index:
        index.add([f"d{i}" for i in range(20)], vectors(20), HERE)
        index.remove(["d3"])
        index.allow(THERE, Bridge(np.eye(D), np.zeros(D)))
        index.save()
        index.add([f"d{i}" for i in range(20, 30)], vectors(30)[20:], HERE)
    return folder / "g000001"


def refused(folder: Path, message: str | None = None) -> str:
    """The one line in which an index, its search or its check is refused."""
    with pytest.raises(EverlearnError, match=message) as error:
        index = Index.load(folder)
        index.search(vectors(1), HERE)
        index.check()
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def test_opening_takes_no_more_memory_than_the_log_and_no_look_at_all_rows_for_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, counted = Index.load(made(tmp_path / "index").parent), []
    for row in range(30, 60):
        index.add([f"d{row}"], vectors(1), HERE)
    monkeypatch.setattr(LoggedGeneration, "__len__", lambda self: counted.append(1) or self.alive.count(1))
    tracemalloc.start()
    try:
        assert Index.load(index.folder).ids == index.ids
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(counted) < 10


# -- files that are cut or altered -------------------------------------------------------------
@pytest.mark.parametrize("file", ["vectors.f32", "log", "index.json", "saved.json", "nearby.json", "nearby-20.faiss",
                                  "bridge", "../current"])  # fmt: skip
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_a_file_that_was_cut_is_found_out(tmp_path: Path, file: str, share: float) -> None:
    pytest.importorskip("faiss")
    folder = made(tmp_path / "index", "hnsw")
    (path,) = folder.glob(f"{file}*") if "/" not in file else [folder / file]
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    if file == "log" and share == 0.999:  # the last line lost its end, and is one that was never acknowledged
        assert len(Index.load(tmp_path / "index")) == 19
        return
    assert path.name.split(".")[0] in refused(tmp_path / "index")


@pytest.mark.parametrize("file", ["vectors.f32", "log", "index.json", "nearby.json", "nearby-20.faiss"])
def test_a_file_that_is_missing_is_found_out(tmp_path: Path, file: str) -> None:
    pytest.importorskip("faiss")
    folder = made(tmp_path / "index", "hnsw")
    (folder / file).unlink()
    if file == "nearby.json":  # what makes the search fast is derived
        assert Index.load(tmp_path / "index").search(vectors(1), HERE, 1)[0]
        return
    assert file in refused(tmp_path / "index")


@pytest.mark.parametrize("file", ["vectors.f32", "log", "nearby-20.faiss", "bridge"])
def test_one_altered_bit_is_found_out(tmp_path: Path, file: str) -> None:
    pytest.importorskip("faiss")
    folder = made(tmp_path / "index", "ivf")
    (path,) = folder.glob(f"{file}*")
    data = bytearray(path.read_bytes())
    data[40 if file != "bridge" else -1] ^= 0x7F  # in the bridge it makes a number that is not finite
    data[-1 if file == "bridge" else 40] |= 0x7F
    data[-2 if file == "bridge" else 40] |= 0x80 if file == "bridge" else 0
    path.write_bytes(data)
    refused(tmp_path / "index")
    if file == "vectors.f32":  # and no compaction gives it a new checksum
        with Index.load(tmp_path / "index") as index, pytest.raises(EverlearnError, match="damaged from 'd0' on"):
            index.remove([f"d{i}" for i in range(10, 25)])
            index.save()


def test_a_reader_outlives_the_return_to_the_last_save(tmp_path: Path) -> None:
    """The system kills a process that reads what was cut off from a file."""
    with Index.create(tmp_path / "index", HERE) as index:
        index.add(["first"], vectors(1), HERE)
        index.save()
        index.add([f"d{i}" for i in range(2000)], vectors(2000), HERE)
    reader = Index.load(index.folder)
    expected = reader.search(vectors(1, seed=1), HERE)[0]
    assert len(Index.restore(index.folder)) == 1
    child = os.fork()
    if child == 0:
        os._exit(reader.search(vectors(1, seed=1), HERE)[0] != expected)
    assert os.waitpid(child, 0)[1] == 0
    Index.load(index.folder).check()


def test_after_a_loss_of_power_the_last_save_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    folder = made(tmp_path / "index", "hnsw")
    log = folder / "log"
    saved = json.loads((folder / "saved.json").read_text())["log_bytes"]
    for damage in (lambda: os.truncate(folder / "vectors.f32", 4 * D * 20 + 5),
                   lambda: log.write_bytes(log.read_bytes()[:saved] + b"\x00" * 100 + b"\n")):  # fmt: skip
        damage()
        assert "`everlearn index restore` goes back to the last save" in refused(tmp_path / "index")
        assert len(Index.restore(tmp_path / "index")) == 19
        with Index.load(tmp_path / "index") as index:
            index.check()
            assert list(index.bridges) == ["there"]
            index.add(["more"], vectors(1, seed=3), HERE)
            index.remove(["more"])
    log.write_bytes(log.read_bytes()[: saved - 5])
    assert "restore" not in refused(tmp_path / "index", "was saved: take a copy")
    with pytest.raises(EverlearnError, match="take a copy of the index from before"):
        Index.restore(tmp_path / "index")
    with pytest.raises(EverlearnError, match="is not an index"):
        Index.restore(tmp_path)


def line(text: str) -> bytes:
    return f"{text}\t{zlib.crc32(text.encode()):08x}\n".encode()


@pytest.mark.parametrize("text", [
    '{"add": ["d1"], "crc": 1}', '{"remove": ["d99"]}', '{"remove": ["d3"]}', '{"add": ["a", "a"], "crc": 1}',
    "{}", "[]", "null", "7", "[" * 100_000, '{"add": "abc", "crc": 1}', '{"add": [1], "crc": 1}',
    '{"add": [], "crc": 1}',
    '{"remove": {"d1": 2}}', '{"add": ["x"], "crc": 1, "remove": ["d1"]}', '{"add": ["x"]}', "not JSON", "",
])  # fmt: skip
def test_a_forged_line_of_the_log_is_refused(tmp_path: Path, text: str) -> None:
    folder = made(tmp_path / "index")
    with open(folder / "log", "ab") as log:
        log.write(line(text))
    with open(folder / "vectors.f32", "ab") as stored:
        stored.write(bytes(4 * D * 2))
    assert "log" in refused(tmp_path / "index")


@pytest.mark.parametrize("change", [
    {"format": 2}, {"format": "1"}, {"kind": "flat"}, {"settings": {"links": 10**9}}, {"settings": {"links": 1}},
    {"settings": {"other": 3}}, {"stamp": {}}, {"made_by": {"run": 7}}, {"more": 1}, {"made_by": None},
])  # fmt: skip
def test_a_forged_index_json_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = made(tmp_path / "index", "exact") / "index.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, **({"kind": "hnsw"} if "settings" in change else {}), **change}))
    assert "index.json" in refused(tmp_path / "index")


@pytest.mark.parametrize("dimension", [0, -1, 7, 9, 10**6 + 1, 2.0, "8"])
def test_a_forged_dimension_is_refused(tmp_path: Path, dimension: Any) -> None:
    file = made(tmp_path / "index") / "index.json"
    told = json.loads(file.read_text())
    told["stamp"]["dimension"] = dimension
    file.write_text(json.dumps(told))
    refused(tmp_path / "index")


def test_a_current_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "index")
    for name in ("../index/g000001", "g1", "/etc", "", "g000001\nx", "g000009", "\u00b2"):
        (tmp_path / "index" / "current").write_text(name)
        refused(tmp_path / "index")


STAMP = json.dumps(THERE.record)
EYE, ZERO = np.eye(D, dtype=np.float32), np.zeros(D, np.float32)


@pytest.mark.parametrize(("tensors", "metadata"), [
    ({"matrix": EYE}, {"stamp": STAMP}), ({"matrix": EYE, "shift": ZERO}, None),
    ({"matrix": EYE, "shift": ZERO}, {"stamp": "{}"}), ({"matrix": EYE, "shift": ZERO}, {"other": STAMP}),
    ({"matrix": EYE, "shift": ZERO}, {"stamp": "[" * 100_000}),
    ({"matrix": EYE[:5], "shift": ZERO}, {"stamp": STAMP}), ({"matrix": EYE, "shift": ZERO[:3]}, {"stamp": STAMP}),
    ({"matrix": EYE[:, :3], "shift": ZERO[:3]}, {"stamp": STAMP}), ({"matrix": EYE, "shift": EYE}, {"stamp": STAMP}),
    ({"matrix": EYE * np.nan, "shift": ZERO}, {"stamp": STAMP}),
    ({"matrix": EYE, "shift": ZERO + np.float32(np.inf)}, {"stamp": STAMP}),
    ({"matrix": EYE.astype(np.int64), "shift": ZERO}, {"stamp": STAMP}),
])  # fmt: skip
def test_a_forged_bridge_is_refused(tmp_path: Path, tensors: Any, metadata: Any) -> None:
    (file,) = made(tmp_path / "index").glob("bridge-*")
    file.write_bytes(safetensors_bytes(tensors, metadata))
    assert "bridge-" in refused(tmp_path / "index", "fit the bridge again with `everlearn migrate`")


def test_a_structure_of_another_index_is_refused(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    folder = made(tmp_path / "index", "hnsw")
    seal = json.loads((folder / "nearby.json").read_text())
    for other in (faiss.IndexFlatIP(D), faiss.IndexHNSWFlat(D + 1, 4, faiss.METRIC_INNER_PRODUCT),
                  faiss.IndexHNSWFlat(D, 4, faiss.METRIC_L2), b"no structure"):  # fmt: skip
        file = folder / seal["file"]
        if isinstance(other, bytes):
            file.write_bytes(other)
        else:
            other.add(vectors(20) if other.d == D else np.ones((20, D + 1), np.float32))
            faiss.write_index(other, str(file))
        forged = {**seal, "bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        (folder / "nearby.json").write_text(json.dumps(forged))
        assert "nearby" in refused(tmp_path / "index", "everlearn index save")
    (folder / "nearby.json").unlink()
    with Index.load(tmp_path / "index") as index:
        index.save()  # as the message says
        assert index.search(vectors(1), HERE, 1)[0] == [["d0"]] or len(index) == 29
        index.check()


# -- a full disk -------------------------------------------------------------------------------
@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Inside the block no file may be larger, which the system says as it says that a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "lance"])
def test_a_full_disk_is_one_line_and_the_index_is_as_before(tmp_path: Path, kind: Any) -> None:
    pytest.importorskip({"lance": "lancedb", "exact": "numpy"}.get(kind, "faiss"))
    index = Index.create(tmp_path / "index", HERE, kind)
    ids = [f"document number {i}" for i in range(2000)]
    index.add(ids[:1000], vectors(1000), HERE)
    index.save()
    before = index.search(vectors(5, seed=1), HERE)
    changes: dict[str, Callable[[], Any]] = {"add": lambda: index.add(ids[1000:], vectors(1000, seed=2), HERE)}
    if kind != "lance":
        changes["remove"] = lambda: index.remove(ids[:700])
    for change in changes.values():
        for size in (0, 300, 20_000, 33_000):
            with disk_of(size), pytest.raises(EverlearnError, match="cannot be written") as error:
                change()
            assert "\n" not in str(error.value)
            for opened in (index, Index.load(tmp_path / "index")):
                assert opened.ids == ids[:1000]
                found = opened.search(vectors(5, seed=1), HERE)
                assert found[0] == before[0] and np.allclose(found[1], before[1], atol=1e-5)
    index.remove(ids[:700])
    if kind != "lance":
        with disk_of(5000), pytest.raises(EverlearnError, match="cannot be written"):
            index.save()  # which would compact
        assert index.ids == Index.load(tmp_path / "index").ids == ids[700:1000]
        assert not (tmp_path / "index" / ".compacting").exists()
    index.save()
    index.add(ids[1000:], vectors(1000, seed=2), HERE)
    index.save()
    index.check()
    assert len(Index.load(tmp_path / "index")) == 1300


# -- kills -------------------------------------------------------------------------------------
def killed(*options: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCH), "--kind", "exact", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not told["wrong"]
    return told


def test_killed_at_any_call_it_is_as_before_or_after() -> None:
    told = killed("--every-call", "--documents", "40")
    assert set(told["within"]) == {"add", "remove", "save", "create", "build", "take over"}
    assert told["within"]["save"] > 30 and told["within"]["take over"] > 40 and told["kills"] > 100


def test_killed_at_random_moments_nothing_acknowledged_is_lost() -> None:
    assert killed("--kills", "3", "--documents", "200")["kills"] == 3
