"""The feature store: the features that a frozen backbone gives for the examples, each computed only once.

A feature is addressed by everything that determines it: the identity of the backbone (weights with attached
deltas, preprocessing, pooling, precision) and the content of the example. Methods, epochs, evaluations, runs
and processes share the store.

On disk there is one folder per identity, with segments of up to 2,048 features (`segments.py`). They appear completely
or not at all, so reading and adding need no lock. A segment is checked when it is opened: one that is damaged is
deleted, a line on standard error says so, and its examples are encoded again. Where segments are many, an index says
which of them holds an example (`key_index.py`), so that the others need not be opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from everlearn.errors import DataError, EverlearnError, printable
from everlearn.files import read_bytes
from everlearn.segments import KEY_BYTES, delete_segment, examples_in
from everlearn.shelves import Shelf, listing, usable
from everlearn.streams.inputs import Input, content, kind, original
from everlearn.strict import from_json

if TYPE_CHECKING:
    import torch

CHUNK = 2048
DEFAULT_LIMIT = 10 * 2**30

ONE_AT_A_TIME = threading.RLock()
"""Held by the thread that computes or looks up features. Meanwhile weights have another precision, a prompt is set and
shelves grow, so that a second thread, as of a web server, would get wrong features."""

_IDENTITY = re.compile(r"[0-9a-f]{32}")
_SECONDS_TO_WRITE_KEYS = 60.0


def cache_root() -> Path:
    """The folder of the feature store. It is in EVERLEARN_CACHE if that is set, else in ~/.cache/everlearn.

    Raises:
        EverlearnError: EVERLEARN_CACHE is not set, and there is no home folder.
    """
    try:
        return Path(os.environ.get("EVERLEARN_CACHE") or Path.home() / ".cache" / "everlearn") / "features"
    except RuntimeError:
        raise EverlearnError("there is no home folder for the feature store: set EVERLEARN_CACHE to a folder") from None


def size_limit() -> int:
    """The largest size of the feature store in bytes: EVERLEARN_CACHE_BYTES, or 10 GiB.

    Raises:
        EverlearnError: EVERLEARN_CACHE_BYTES is not a number of bytes.
    """
    given = os.environ.get("EVERLEARN_CACHE_BYTES") or str(DEFAULT_LIMIT)
    if not re.fullmatch("[0-9]{1,19}", given) or int(given) >= 2**63:
        raise EverlearnError(f"EVERLEARN_CACHE_BYTES is '{printable(given)}': give a number of bytes from 0 to "
                             f"{2**63 - 1}, such as {DEFAULT_LIMIT} for 10 GiB")  # fmt: skip
    return int(given)


class Encoder(Protocol):
    """What the store needs of a backbone."""

    name: str
    width: int
    precision: str

    @property
    def active(self) -> Sequence[Any]: ...

    @property
    def is_frozen(self) -> bool: ...

    def identity(self) -> str: ...

    def doubt(self) -> None: ...

    def infer(self, inputs: Sequence[Input]) -> torch.Tensor: ...


class FeatureStore:
    """Features, stored by the identity of the backbone and the content of the example.

    Args:
        root: the folder, which is created when the first feature is written.
        limit: the largest size in bytes, `size_limit()` by default. If the store is larger, the least recently
            used segments are deleted.

    Attributes:
        encoded: number of examples that this process has encoded through the store.
        served: number of examples whose features were already in the store.
        seconds: that encoding took. pretrained_seconds: those of them that pre-trained encoders took, which any other
            method would have needed too.
        on_progress: called with (done, total) while examples are encoded.

    Raises:
        EverlearnError: EVERLEARN_CACHE_BYTES is not a number of bytes, or there is no home folder.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> store, tiny = FeatureStore(tempfile.mkdtemp()), backbones.load("tiny")
    >>> features = store.encode(tiny, ["a cup of tea", "a sofa"])
    >>> again = store.encode(tiny, ["a sofa"])
    >>> tuple(features.shape), store.encoded, store.served
    ((2, 32), 2, 1)
    """

    def __init__(self, root: str | Path | None = None, *, limit: int | None = None) -> None:
        self.root = Path(root) if root else cache_root()
        self.limit = size_limit() if limit is None else limit
        self.encoded = self.served = 0
        self.seconds = self.pretrained_seconds = 0.0
        self.on_progress: Callable[[int, int], None] | None = None
        self._shelves: dict[str, Shelf] = {}
        self._bytes: int | None = None  # of the whole store, as this process knows it

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        return self  # copies of a method share the one store of the process

    def encode(self, backbone: Encoder, inputs: Sequence[Input]) -> torch.Tensor:
        """Return the features (n, width) in float32. Missing features are computed and stored.

        A view gets the features of its original image: the same view never occurs again, so its own features
        would not be worth storing, and the query features of an image are computed only once.

        The request is processed in chunks, and a chunk is stored completely or not at all. After a crash, the
        same request therefore forms the same batches, so the crash does not change any feature.

        Raises:
            EverlearnError: a feature is not finite, the weights change while they encode, or the folder of the store
                cannot be read or written.
        """
        import torch

        plain = [original(item) for item in inputs]
        keys = [content_key(item) for item in plain]
        with ONE_AT_A_TIME:
            for _ in range(2):
                shelf = self._shelf(backbone)
                encoded = self._complete(shelf, backbone, plain, keys)
                if encoded is not None:
                    self.encoded += encoded
                    self.served += len(keys) - encoded
                    return torch.from_numpy(shelf.read(keys))
        raise EverlearnError(f"the weights of backbone '{backbone.name}' change while it encodes: do not write to them "
                             "in its forward pass or its hooks")  # fmt: skip

    def _complete(self, shelf: Shelf, backbone: Encoder, plain: Sequence[Input], keys: Sequence[bytes]) -> int | None:
        """Encode and store what the shelf lacks. Returns the number of examples encoded; None if the weights turn out
        not to be those of the shelf. What was stored before is right, because each chunk is stored after this check."""
        missing_total = shelf.missing(keys)
        done = 0
        started = time.perf_counter()
        if missing_total and self.on_progress:
            self.on_progress(0, missing_total)
        for start in range(0, len(keys) if missing_total else 0, CHUNK):
            rows = range(start, min(start + CHUNK, len(keys)))
            missing = {keys[row]: row for row in reversed(rows) if keys[row] not in shelf.index}
            if not missing:
                continue
            wanted = sorted(missing.values())
            features = backbone.infer([plain[row] for row in wanted]).cpu()
            backbone.doubt()  # writes through `.data` or numpy leave no trace, and would poison the store for good
            if backbone.identity() != shelf.folder.name:
                return None
            _check_finite(features, [plain[row] for row in wanted], backbone)
            shelf.add([keys[row] for row in wanted], features.numpy())
            done += len(wanted)
            if self.on_progress:
                self.on_progress(done, missing_total)
        if done:
            spent = time.perf_counter() - started
            self.seconds += spent
            if backbone.is_frozen and not backbone.active:
                self.pretrained_seconds += spent
            self._evict(4 * done * backbone.width)
        return done

    def _shelf(self, backbone: Encoder) -> Shelf:
        identity = backbone.identity()
        if identity not in self._shelves:
            about = {"backbone": backbone.name, "width": backbone.width, "precision": backbone.precision,
                     "deltas": len(backbone.active)}  # fmt: skip
            self._shelves[identity] = Shelf(self.root / identity, backbone.width, about)
        return self._shelves[identity]

    def _evict(self, added: int) -> None:
        """Remove the least recently used segments until the store is within its limit.

        All segments are listed by the first call, and then only where this process may have gone beyond the limit.
        What others add meanwhile, they account for.
        """
        self._bytes = None if self._bytes is None else self._bytes + added
        if self._bytes is not None and self._bytes <= self.limit:
            return
        with usable(self.root, "read"):
            segments = [segment for shelf in _shelves(self.root) for segment in _files(shelf, ".f32")]
        self._bytes = sum(found.st_size for found, _ in segments)
        for found, file in sorted(segments, key=lambda pair: pair[0].st_mtime):
            if self._bytes <= self.limit:
                break
            if _is_being_written(found, file):
                continue
            with contextlib.suppress(OSError):  # that of another user, say
                delete_segment(file.with_suffix(".keys"))
                self._bytes -= found.st_size


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
    """Inside the `with` statement, `store` is the store of this process, whatever EVERLEARN_CACHE says.

    >>> import tempfile
    >>> from everlearn import backbones
    >>> with using_store(FeatureStore(tempfile.mkdtemp())) as store:
    ...     _ = backbones.load("tiny").encode(["a cup of tea"])
    >>> store.encoded
    1
    """
    global _override
    before, _override = _override, store
    try:
        yield store
    finally:
        _override = before


def cache_info() -> list[dict[str, Any]]:
    """The contents of the store, one entry per identity: description, examples, bytes, time of last use.

    Raises:
        EverlearnError: the folder of the store may not be read.

    >>> from everlearn import backbones
    >>> _ = backbones.load("tiny").encode(["a cup of tea"])
    >>> sorted(cache_info()[0])
    ['bytes', 'description', 'examples', 'identity', 'last_used']
    """
    entries = []
    root = cache_root()
    with usable(root, "read"):
        for folder in _shelves(root):
            features, keys = _files(folder, ".f32"), _files(folder, ".keys")
            used = [found.st_mtime for found, _ in features] or [found.st_mtime for found, _ in _files(folder, ".json")]
            entries.append({
                "identity": folder.name, "description": _description(folder),
                "examples": sum(examples_in(found.st_size) for found, _ in keys),
                "bytes": sum(found.st_size for found, _ in features), "last_used": max(used, default=0.0),
            })  # fmt: skip
    return entries


def clear_cache(identity: str | None = None) -> int:
    """Remove all features, or those of one identity. Returns the number of bytes freed.

    Raises:
        EverlearnError: something may not be removed.

    >>> import os, tempfile
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, EVERLEARN_CACHE=tempfile.mkdtemp()):
    ...     clear_cache()
    0
    """
    global _default
    _default = None
    freed = 0
    for entry in cache_info():
        if identity in (None, entry["identity"]):
            with usable(cache_root(), "cleared"):
                shutil.rmtree(cache_root() / entry["identity"])
            freed += entry["bytes"]
    return freed


def content_key(item: Input) -> bytes:
    """16 bytes that identify the content of an example. A text and an image of the same bytes get different keys."""
    if type(item) is str:  # as below, in half the time: a run asks for each text several times
        try:
            return hashlib.blake2b(item.encode(), digest_size=KEY_BYTES, person=b"text").digest()
        except UnicodeEncodeError:
            raise DataError(f"the text '{printable(item, 60)}' holds half a surrogate pair, which is no character: "
                            "decode it with errors='replace'") from None  # fmt: skip
    own = kind(item).encode()[: hashlib.blake2b.PERSON_SIZE]
    return hashlib.blake2b(content(item), digest_size=KEY_BYTES, person=own).digest()


def _shelves(root: Path) -> list[Path]:
    """The folders of the identities. What else there is, such as a link, is neither read nor deleted."""
    return sorted(folder for folder in listing(root)
                  if _IDENTITY.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink())  # fmt: skip


def _is_being_written(features: os.stat_result, file: Path) -> bool:
    """Whether another process has just written the features of a segment and is about to write its keys. Without keys,
    an older file is what a killed process left."""
    return time.time() - features.st_mtime < _SECONDS_TO_WRITE_KEYS and not file.with_suffix(".keys").exists()


def _files(shelf: Path, suffix: str) -> list[tuple[os.stat_result, Path]]:
    """The files of a shelf with this suffix, each with its stat, which is read only once, because another process may
    delete the file before a second read."""
    files = []
    for file in listing(shelf):
        if file.suffix == suffix:
            with contextlib.suppress(FileNotFoundError):
                files.append((file.lstat(), file))
    return files


def _description(shelf: Path) -> str:
    """What a shelf holds, as its about.json says."""
    file = shelf / "about.json"
    try:
        about = from_json(read_bytes(file, 2**16), file)
        name, precision, deltas = (about[key] for key in ("backbone", "precision", "deltas"))
        if not isinstance(name, str) or not isinstance(precision, str) or type(deltas) is not int:
            raise TypeError
    except (DataError, KeyError, TypeError):
        return "not known: its about.json is missing or damaged"
    return printable(f"{name}, {precision}, {deltas} deltas")


def _check_finite(features: torch.Tensor, inputs: Sequence[Input], backbone: Encoder) -> None:
    import torch

    finite = torch.isfinite(features).all(dim=1)
    if not finite.all():
        first = str(inputs[int((~finite).nonzero()[0])])[:60]
        cause = "its weights or this example are damaged; nothing was stored"
        raise EverlearnError(f"backbone '{backbone.name}' gives NaN or infinite features, first for {first!r}: {cause}")
