"""The feature store: the features that a frozen backbone gives for the examples, each computed only once.

A feature is addressed by everything that determines it: the identity of the backbone (weights with attached
deltas, preprocessing, pooling, precision) and the content of the example. Methods, epochs, evaluations, runs
and processes share the store.

On disk there is one folder per identity. It holds segments of up to 2,048 features: `NAME.keys` (16 bytes per
example) and `NAME.f32` (float32 rows, memory-mapped). Each file is written under a temporary name and then
renamed, the keys last. So a crash leaves no half-written segment, and reading and adding need no lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from everlearn.errors import EverlearnError
from everlearn.files import write_whole
from everlearn.streams.inputs import Input, content, kind, original

if TYPE_CHECKING:
    import torch

CHUNK = 2048
DEFAULT_LIMIT = 10 * 2**30
KEY_BYTES = 16


def cache_root() -> Path:
    """The folder of the feature store. It is in EVERLEARN_CACHE if that is set, else in ~/.cache/everlearn."""
    return Path(os.environ.get("EVERLEARN_CACHE") or Path.home() / ".cache" / "everlearn") / "features"


class Encoder(Protocol):
    """What the store needs of a backbone."""

    name: str
    width: int
    precision: str

    @property
    def active(self) -> Sequence[Any]: ...

    def identity(self) -> str: ...

    def infer(self, inputs: Sequence[Input]) -> torch.Tensor: ...


class FeatureStore:
    """Features, stored by the identity of the backbone and the content of the example.

    Args:
        root: the folder, which is created when the first feature is written.
        limit: the largest size in bytes, EVERLEARN_CACHE_BYTES by default. If the store is larger, the least
            recently used segments are deleted.

    Attributes:
        encoded: number of examples that this process has encoded through the store.
        served: number of examples whose features were already in the store.
        on_progress: called with (done, total) while examples are encoded.
    """

    def __init__(self, root: str | Path | None = None, *, limit: int | None = None) -> None:
        self.root = Path(root) if root else cache_root()
        self.limit = limit if limit is not None else int(os.environ.get("EVERLEARN_CACHE_BYTES", DEFAULT_LIMIT))
        self.encoded = self.served = 0
        self.seconds = 0.0
        self.on_progress: Callable[[int, int], None] | None = None
        self._shelves: dict[str, _Shelf] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self  # copies of a method share the one store of the process

    def encode(self, backbone: Encoder, inputs: Sequence[Input]) -> torch.Tensor:
        """Return the features (n, width) in float32. Missing features are computed and stored.

        A view gets the features of its original image: the same view never occurs again, so its own features
        would not be worth storing, and the query features of an image are computed only once.

        The request is processed in chunks, and a chunk is stored completely or not at all. After a crash, the
        same request therefore forms the same batches, so the crash does not change any feature.

        Raises:
            EverlearnError: a feature is not finite, or the folder of the store cannot be written.
        """
        import torch

        plain = [original(item) for item in inputs]
        shelf = self._shelf(backbone)
        keys = [_key(item) for item in plain]
        missing_total = shelf.missing(keys)
        done = 0
        started = time.perf_counter()
        for start in range(0, len(keys) if missing_total else 0, CHUNK):
            rows = range(start, min(start + CHUNK, len(keys)))
            missing = {keys[row]: row for row in reversed(rows) if keys[row] not in shelf.index}
            if not missing:
                continue
            wanted = sorted(missing.values())
            features = backbone.infer([plain[row] for row in wanted]).cpu()
            _check_finite(features, [plain[row] for row in wanted], backbone)
            shelf.add([keys[row] for row in wanted], features.numpy())
            done += len(wanted)
            if self.on_progress:
                self.on_progress(done, missing_total)
        if done:
            self.seconds += time.perf_counter() - started
            self._evict()
        self.encoded += done
        self.served += len(keys) - done
        return torch.from_numpy(shelf.read(keys))

    def _shelf(self, backbone: Encoder) -> _Shelf:
        identity = backbone.identity()
        if identity not in self._shelves:
            about = {"backbone": backbone.name, "width": backbone.width, "precision": backbone.precision,
                     "deltas": len(backbone.active)}  # fmt: skip
            self._shelves[identity] = _Shelf(self.root / identity, backbone.width, about)
        return self._shelves[identity]

    def _evict(self) -> None:
        """Remove the least recently used segments until the store is within its limit."""
        segments = _existing(self.root.glob("*/*.f32"))
        total = sum(stat.st_size for stat, _ in segments)
        for stat, file in sorted(segments, key=lambda pair: pair[0].st_mtime):
            if total <= self.limit:
                break
            # The keys first, so that another process never finds keys without features.
            file.with_suffix(".keys").unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            total -= stat.st_size


class _Shelf:
    """The stored features of one backbone identity."""

    def __init__(self, folder: Path, width: int, about: dict[str, Any]) -> None:
        self.folder, self.width, self.about = folder, width, about
        self.index: dict[bytes, tuple[np.ndarray, int]] = {}
        self._known: set[str] = set()

    def missing(self, keys: Sequence[bytes]) -> int:
        """How many different keys are missing, even after reading the segments that other processes have added."""
        if self._known and all(key in self.index for key in keys):
            return 0
        for _, file in sorted(_existing(self.folder.glob("*.keys")), key=lambda pair: pair[1]):
            if file.stem not in self._known:
                self._open(file)
        return len(set(keys) - self.index.keys())

    def _open(self, file: Path) -> None:
        try:
            packed = file.read_bytes()
            rows = np.memmap(file.with_suffix(".f32"), np.float32, "r").reshape(-1, self.width)
        except (FileNotFoundError, ValueError):
            return  # evicted by another process in the meantime, or truncated: its examples are encoded again
        if len(packed) != KEY_BYTES * len(rows):
            return  # truncated as well
        self._known.add(file.stem)
        for row in range(len(rows)):
            self.index.setdefault(packed[row * KEY_BYTES : (row + 1) * KEY_BYTES], (rows, row))

    def add(self, keys: Sequence[bytes], features: np.ndarray) -> None:
        """Store one chunk completely or not at all."""
        name = uuid.uuid4().hex
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "about.json"
            if not about.exists():
                _write(about, json.dumps(self.about).encode())
            _write(self.folder / f"{name}.f32", np.ascontiguousarray(features, np.float32).tobytes())
            _write(self.folder / f"{name}.keys", b"".join(keys))
        except OSError as error:
            with contextlib.suppress(OSError):
                (self.folder / f"{name}.f32").unlink(missing_ok=True)
            raise EverlearnError(
                f"the feature store at {self.folder.parent} cannot be written ({error.strerror or error}): "
                "free disk space, or set EVERLEARN_CACHE to another folder"
            ) from error
        self._open(self.folder / f"{name}.keys")
        for row, key in enumerate(keys):
            self.index.setdefault(key, (features, row))  # if another process has already deleted the segment

    def read(self, keys: Sequence[bytes]) -> np.ndarray:
        """The feature rows of `keys`, gathered segment by segment."""
        out = np.empty((len(keys), self.width), np.float32)
        places: dict[int, tuple[np.ndarray, list[int], list[int]]] = {}
        for position, key in enumerate(keys):
            rows, row = self.index[key]
            _, at, taken = places.setdefault(id(rows), (rows, [], []))
            at.append(position)
            taken.append(row)
        for rows, at, taken in places.values():
            out[at] = rows[taken]
            if isinstance(rows, np.memmap) and rows.filename:
                with contextlib.suppress(OSError):  # a read-only store works too, but keeps no time of last use
                    os.utime(rows.filename)
        return out


_default: FeatureStore | None = None
_override: FeatureStore | None = None


def default_store() -> FeatureStore:
    """The store of this process. A new one is made when EVERLEARN_CACHE has changed."""
    global _default
    if _override is not None:
        return _override
    if _default is None or _default.root != cache_root():
        _default = FeatureStore()
    return _default


@contextlib.contextmanager
def using_store(store: FeatureStore) -> Iterator[FeatureStore]:
    """Inside the `with` statement, `store` is the store of this process, whatever EVERLEARN_CACHE says."""
    global _override
    before, _override = _override, store
    try:
        yield store
    finally:
        _override = before


def cache_info() -> list[dict[str, Any]]:
    """The contents of the store, one entry per identity: description, examples, bytes, time of last use."""
    entries = []
    for made, folder in sorted(_existing(cache_root().glob("*")), key=lambda pair: pair[1]):
        files = _existing(folder.glob("*.f32"))
        about = folder / "about.json"
        if not about.exists():
            continue
        known = json.loads(about.read_text())
        size = sum(stat.st_size for stat, _ in files)
        entries.append({
            "identity": folder.name,
            "description": f"{known['backbone']}, {known['precision']}, {known['deltas']} deltas",
            "examples": size // (4 * known["width"]), "bytes": size,
            "last_used": max((stat.st_mtime for stat, _ in files), default=made.st_mtime),
        })  # fmt: skip
    return entries


def clear_cache(identity: str | None = None) -> int:
    """Remove all features, or those of one identity. Returns the number of bytes freed."""
    freed = 0
    for entry in cache_info():
        if identity in (None, entry["identity"]):
            shutil.rmtree(cache_root() / entry["identity"])
            freed += entry["bytes"]
    global _default
    _default = None
    return freed


def _key(item: Input) -> bytes:
    """16 bytes that identify the content of an example. A text and an image of the same bytes get different keys."""
    return hashlib.blake2b(content(item), digest_size=KEY_BYTES, person=kind(item).encode()).digest()


def _write(file: Path, data: bytes) -> None:
    write_whole(file, data, flush=False)  # a feature that a power failure loses is computed again


def _existing(found: Iterable[Path]) -> list[tuple[os.stat_result, Path]]:
    """The files of a glob that still exist, each with its stat. Each stat is read only once, because another
    process may delete the file before a second read."""
    files = []
    for file in found:
        with contextlib.suppress(FileNotFoundError):
            files.append((file.stat(), file))
    return files


def _check_finite(features: torch.Tensor, inputs: Sequence[Input], backbone: Encoder) -> None:
    import torch

    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        first = str(inputs[int((~finite).nonzero()[0])])[:60]
        cause = "its weights or this example are damaged; nothing was stored"
        raise EverlearnError(f"backbone '{backbone.name}' gives NaN or infinite features, first for {first!r}: {cause}")
