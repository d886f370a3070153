"""A distilled set in a file: tensors in safetensors, and in the file's header what they are and how they were made."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from everlearn.backbones.tensors import in_float32, read_tensors
from everlearn.errors import DataError, EverlearnError, one_line, printable
from everlearn.files import regular, write_whole
from everlearn.schemas.values import Name
from everlearn.strict import from_json

KEY, VERSION = "everlearn.distilled", 1
Kind = Literal["features", "texts", "soft", "soft pairs"]
AGAIN = "write it again with `everlearn distill`"


class Encoder(TypedDict):
    """The encoder that a set was made with."""

    name: Name
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Header(TypedDict):
    """What the header of a file says."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]
    version: Literal[1]
    kind: Kind
    class_names: list[Name]
    backbone: Encoder
    recipe: dict[str, Any]
    texts: list[str]
    ids: list[str]
    documents: list[str]


@dataclass(frozen=True)
class DistilledSet:
    """m examples.

    Args:
        kind: features, texts, soft (sequences), or soft pairs (sequences of queries, with those of documents or with
            the texts of real ones).
        class_names: the classes in the order of the labels; none where the goal is ranking.
        backbone: the name and the identity of the encoder that it was made with.
        recipe: how it was made: settings, stream, command, seed.
        tensors: by name. labels (m,); features (m, width); weights (m,); targets (m, classes); inputs, queries and
            documents (m, length, width); rates (steps,).
        texts: of kind texts, the m texts. ids: their names in the data.
        documents: of soft pairs with real documents, the m texts.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "set.safetensors"
    >>> made = DistilledSet("features", ("tea",), {"name": "tiny", "identity": "0" * 32},
    ...                     tensors={"features": torch.ones(1, 4), "labels": torch.tensor([0])})
    >>> made.save(file)
    >>> read(file).tensors["features"].tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    kind: Kind
    class_names: tuple[str, ...]
    backbone: Encoder
    recipe: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts) if self.kind == "texts" else len(self.tensors[_main(self.kind)])

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name."""
        return self.tensors[name]

    def save(self, file: Path) -> None:
        """Write it, completely or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        from safetensors.torch import save

        header: dict[str, Any] = {
            "version": VERSION, "kind": self.kind, "class_names": list(self.class_names), "backbone": self.backbone,
            "recipe": self.recipe, "texts": list(self.texts), "ids": list(self.ids), "documents": list(self.documents),
        }  # fmt: skip
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        write_whole(file, save(tensors, {KEY: json.dumps(header)}))

    def stored_bytes(self) -> int:
        """Bytes of the examples: tensors and texts, without names and the recipe."""
        tensors = sum(
            tensor.numel() * tensor.element_size() for name, tensor in self.tensors.items() if name != "rates"
        )
        return tensors + sum(len(text.encode()) for text in (*self.texts, *self.documents))

    def check_encoder(self, identity: str, name: str) -> None:
        """Refuse another encoder than that which the set was made with; real texts fit any.

        Raises:
            EverlearnError: the set means nothing to this encoder.
        """
        if self.kind != "texts" and identity != self.backbone["identity"]:
            made_with = f"'{self.backbone['name']}' ({self.backbone['identity'][:8]}…)"
            raise EverlearnError(f"the distilled set was made with the backbone {made_with}, and this is '{name}' "
                                 f"({identity[:8]}…), to which its vectors mean nothing: give that backbone, or distil "
                                 "--kind texts")  # fmt: skip


def read(file: str | Path) -> DistilledSet:
    """Read a distilled set. Everything in it is checked, and nothing is unpickled.

    Raises:
        DataError: there is no such file, it is no distilled set, or its parts do not fit together.

    >>> read("/dev/zero")
    Traceback (most recent call last):
    everlearn.errors.DataError: /dev/zero is not a regular file: give a file, not a pipe or a device
    """
    path = Path(file)
    header = _header(path)
    tensors = read_tensors(path)
    labels = tensors.pop("labels", None)
    found = in_float32(tensors, path)
    if labels is not None:
        found["labels"] = labels
    made = DistilledSet(header["kind"], tuple(header["class_names"]), header["backbone"], header["recipe"], found,
                        tuple(header["texts"]), tuple(header["ids"]), tuple(header["documents"]))  # fmt: skip
    if fault := _fault(made):
        raise DataError(f"{path}: {fault}: {AGAIN}")
    return made


def _header(path: Path) -> Header:
    from safetensors import safe_open

    with regular(path):
        pass  # a pipe is never opened by the library
    with one_line(path, AGAIN), safe_open(path, "pt") as opened:
        told = (opened.metadata() or {}).get(KEY)
    if told is None:
        raise DataError(f"{path} is no distilled set: give a file that `everlearn distill` wrote")
    plain = from_json(told.encode(), path, AGAIN)
    try:
        header: Header = _adapter().validate_python(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: its header is wrong at {printable(place)} ({first['msg']}): {AGAIN}") from None
    return header


@cache
def _adapter() -> TypeAdapter[Header]:
    return TypeAdapter(Header)


def _main(kind: Kind) -> str:
    """The tensor that has one row for each example."""
    return {"features": "features", "texts": "labels", "soft": "inputs", "soft pairs": "queries"}[kind]


def _fault(made: DistilledSet) -> str:
    """What does not fit together, if anything."""
    kind, tensors, classes = made.kind, made.tensors, len(made.class_names)
    if _main(kind) not in tensors or (kind != "soft pairs" and "labels" not in tensors):
        return f"a set of kind {kind} needs {_main(kind)}" + (" and labels" if kind != "soft pairs" else "")
    dims = {
        "features": 2,
        "labels": 1,
        "weights": 1,
        "targets": 2,
        "inputs": 3,
        "queries": 3,
        "documents": 3,
        "rates": 1,
    }
    for name, tensor in tensors.items():
        if name not in dims or tensor.dim() != dims[name]:
            return f"the tensor '{printable(name)}' of {tensor.dim()} dimensions has no place in it"
        if name != "rates" and len(tensor) != len(made):
            return f"the tensor '{printable(name)}' has {len(tensor)} rows for {len(made)} examples"
    labels = tensors.get("labels")
    if labels is not None and (labels.dtype != torch.int64 or not ((labels >= 0) & (labels < classes)).all()):
        return f"a label is not one of its {classes} classes"
    if "targets" in tensors and tensors["targets"].shape[1] != classes:
        return f"the targets are not of its {classes} classes"
    if "weights" in tensors and (tensors["weights"] <= 0).any():
        return "a weight is not above 0"
    if len(set(made.class_names)) < classes:
        return "two classes have one name"
    if kind == "soft pairs" and len(made.documents) != (0 if "documents" in tensors else len(made)):
        return f"{len(made)} queries do not have as many documents"
    if len(made.ids) not in (0, len(made)):
        return f"{len(made.ids)} ids are not those of {len(made)} examples"
    return ""
