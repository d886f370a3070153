"""Remembered backbones: what an earlier load found out about an encoder, so that it is loaded only where it encodes.

To load an encoder takes seconds, most of them for the import of its library. A run whose features are all in the
feature store needs only its name, its width, its settings and the digests of its weights. These are kept beside the
store. They are found by the content of all files that the encoder is made of, which are read in full every time, by
the versions of the libraries and by the code of this package: after any change, the encoder is loaded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from typing_extensions import TypedDict

from everlearn.backbones.backbone import Backbone
from everlearn.backbones.precision import has_bfloat16
from everlearn.errors import EverlearnError, printable
from everlearn.features import cache_root
from everlearn.files import read_bytes, sha256_of, write_whole
from everlearn.schemas.values import STRICT, valid
from everlearn.strict import from_json

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "sentence-transformers", "timm", "openvino")
"""What decides, beside the files and our own code, how an encoder is loaded."""

NEVER_READ = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".md")
"""Endings of files in the folder of an encoder that everlearn never reads."""

KNOWN = frozenset((
    "active", "attached", "class_features", "depth", "device", "digests", "doubt", "encode", "encoders", "eval",
    "identity", "is_frozen", "is_image_text", "is_loaded", "layers", "name", "named_modules", "origin", "place",
    "precision", "pretrained", "reads", "rounding", "settings", "state_dict", "together", "train", "training",
    "training_precision", "width",
))  # fmt: skip
"""The attributes that are answered without the encoder."""

SET_FREELY = ("attached", "origin", "place", "training")
"""Those that may be set without it; to set any other one loads it first."""

FACTS = ("name", "width", "layers", "depth", "precision", "training_precision", "settings")
MOST_BYTES = 16 * 2**20

_log = logging.getLogger("everlearn")


class Facts(TypedDict):
    """What is known of an encoder that is not loaded."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    name: str
    reads: list[str]
    width: int
    layers: int
    depth: int
    precision: str
    training_precision: str
    settings: dict[str, Any]
    digests: dict[str, str]


class Remembered(Backbone):
    """A frozen encoder that is not loaded yet. With the first question that only the encoder can answer it becomes
    the encoder: the same object, of the encoder's class.

    Until then it is a module without parameters. Whoever asks it for its parameters or modules loads it; whoever goes
    through those of a method that holds it does not, since a frozen encoder has none to train or to save.

    Args:
        facts: what an earlier load found out.
        load: loads the encoder.
    """

    is_loaded = False

    def __init__(self, facts: Facts, load: Callable[[], Backbone]) -> None:
        super().__init__()
        for name, value in facts.items():
            if name in FACTS:
                setattr(self, name, value)
        self.reads, self.training = tuple(facts["reads"]), False
        self.place = torch.empty(0)  # goes where the method goes
        self._facts, self._load = facts, load

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in KNOWN and "_load" in self.__dict__:  # built, and not loaded
            self._become()
            return getattr(self, name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in SET_FREELY and "_load" in self.__dict__:
            self._become()
            setattr(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def is_frozen(self) -> bool:
        return True

    def digests(self) -> dict[str, str]:
        return dict(self._facts["digests"])

    def train(self, mode: bool = True) -> Remembered:
        self.training = mode
        return self

    def named_modules(self, memo: Any = None, *args: Any, **more: Any) -> Iterator[tuple[str, torch.nn.Module]]:
        if memo is not None:  # the method that holds it is gone through
            return super().named_modules(memo, *args, **more)
        self._become()
        return self.named_modules()

    def state_dict(self, *args: Any, destination: Any = None, **more: Any) -> Any:
        if destination is not None:
            return destination
        self._become()
        return self.state_dict(*args, **more)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Remembered:
        self.place = fn(self.place)
        return self

    def _become(self) -> None:
        encoder, origin = self._load(), self.origin
        if facts_of(encoder) != self._facts:
            raise EverlearnError(f"the files of backbone '{printable(self.name)}' were changed while they were in use: "
                                 "start again")  # fmt: skip
        encoder.to(self.place.device).train(self.training)
        encoder.origin = origin
        object.__setattr__(self, "__dict__", encoder.__dict__)
        object.__setattr__(self, "__class__", type(encoder))


def remembered(name: str, files: list[Path], load: Callable[[], Backbone]) -> Backbone:
    """The encoder of these files. If it was loaded before, with the same files, libraries and code, it is loaded again
    only where more is asked than what is known of it.

    Args:
        name: as the user wrote it.
        files: all that the encoder is made of.

    Raises:
        EverlearnError: a file may not be read, or the encoder cannot be loaded.
    """
    kept = cache_root().parent / "backbones" / f"{_key(name, files)}.json"
    if (facts := _recall(kept)) is not None:
        return Remembered(facts, load)
    encoder = load()
    if len(encoder.encoders()) > 1:
        return encoder
    facts = facts_of(encoder)
    if type(encoder).identity is Backbone.identity and kept.stem == _key(name, files):
        with contextlib.suppress(OSError, TypeError):  # a cache that is read only, or settings that are no JSON
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, json.dumps({"sha256": _sha256(facts), "facts": facts}))
    return encoder


def facts_of(encoder: Backbone) -> Facts:
    """What is worth remembering of an encoder, as JSON gives it back."""
    facts = {
        "name": encoder.name, "reads": list(encoder.reads), "width": encoder.width, "layers": encoder.layers,
        "depth": encoder.depth, "precision": encoder.precision,
        "training_precision": encoder.training_precision, "settings": encoder.settings, "digests": encoder.digests(),
    }  # fmt: skip
    return cast(Facts, json.loads(json.dumps(facts)))


def files_in(folder: Path) -> list[Path]:
    """All files of an encoder's folder that everlearn could read, at any depth, without hidden ones."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names)
                  if not name.startswith(".") and not name.lower().endswith(NEVER_READ)]  # fmt: skip
    return found


def _recall(file: Path) -> Facts | None:
    """What was remembered there; None if there is no such file. A damaged one is dropped with a line."""
    if not file.exists():
        return None
    try:
        kept = from_json(read_bytes(file, MOST_BYTES), file)
        facts: Facts = valid(kept["facts"], Facts, file)
        if kept["sha256"] == _sha256(facts):
            return facts
    except (EverlearnError, KeyError, TypeError):
        pass
    _log.warning("%s", printable(f"{file} is damaged and was dropped; the backbone is loaded instead", 600))
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
    return None


def _key(name: str, files: list[Path]) -> str:
    """A hash of all that decides what an encoder is."""
    versions = {library: _version(library) for library in LIBRARIES}
    hasher = hashlib.sha256(json.dumps([name, versions, has_bfloat16()]).encode())
    for file in [*sorted(Path(__file__).parent.glob("*.py")), *files]:
        hasher.update(json.dumps([str(file), _file_sha256(file)]).encode())
    return hasher.hexdigest()[:32]


def _file_sha256(file: Path) -> str | None:
    """The digest of a file's content; None for what is no regular file, which no encoder is read from."""
    if not file.is_file():
        return None
    try:
        with open(file, "rb") as opened:
            return sha256_of(opened)
    except OSError as error:
        raise EverlearnError(f"{file} cannot be read ({error.strerror}): correct its permissions") from error


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sha256(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
