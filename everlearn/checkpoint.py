"""Checkpoints: complete, atomic, safetensors and JSON only.

A checkpoint is a folder `task-002-step-000120` (before that step of that task) with

* `method.safetensors`: the method's state, without the backbone's tensors that are as pre-trained;
* `training.safetensors`: optimizer and random state, inside a task only;
* `state.json`: position, results so far, and the SHA-256 of the other files and of itself.

It is written beside its final place and renamed, so that it exists whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from everlearn.errors import EverlearnError
from everlearn.files import replace_folder

KEEP = 2
"""Checkpoints kept: the newest, and one before it should a disk lose the newest."""


@dataclass
class Checkpoint:
    """What a run needs to go on: where it was, and everything that it held."""

    state: dict[str, Any]
    method: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor]


def save(folder: Path, name: str, checkpoint: Checkpoint) -> None:
    """Write `folder/name` whole or not at all, then remove all but the newest two.

    Raises:
        EverlearnError: the folder cannot be written; what was there is untouched.
    """
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {"method.safetensors": checkpoint.method, "training.safetensors": checkpoint.training}
        checks = {}
        for file, tensors in files.items():
            save_file(_separate(tensors), temporary / file)
            checks[file] = {"bytes": (temporary / file).stat().st_size, "sha256": _sha256(temporary / file)}
        state = {**checkpoint.state, "files": checks}
        (temporary / "state.json").write_text(json.dumps({"sha256": _json_sha256(state), **state}, indent=1))
        for written in temporary.iterdir():
            _flush(written)
        replace_folder(temporary, folder / name)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        raise EverlearnError(
            f"checkpoint {folder / name} could not be written ({getattr(error, 'strerror', None) or error}): "
            "earlier checkpoints are untouched; make room or choose another --out"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    killed = [place.name for place in folder.glob(".task-*")]  # what a save that was killed has left
    for old in [*_names(folder)[:-KEEP], *killed]:
        shutil.rmtree(folder / old)


def newest(folder: Path) -> str | None:
    """The name of the newest checkpoint, or None."""
    names = _names(folder)
    return names[-1] if names else None


def load(folder: Path, name: str) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        EverlearnError: it is truncated, altered, or in a pickle format. Nothing is ever unpickled.
    """
    place = folder / name
    for file in place.iterdir():
        if file.suffix in (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"):
            raise EverlearnError(
                f"{file} is in a pickle format, which can run code when it is read: everlearn never does; "
                "convert it to safetensors on a machine where you trust it"
            )
    remedy = f"remove {place} to go on from the checkpoint before it, or start again"
    try:
        state = json.loads((place / "state.json").read_text())
        if state.pop("sha256") != _json_sha256(state):
            raise EverlearnError(f"{place / 'state.json'} was altered (its SHA-256 differs): {remedy}")
        tensors = {}
        for file, check in state["files"].items():
            if _is_pickle(place / file):
                raise EverlearnError(f"{place / file} is in a pickle format, which everlearn never reads: {remedy}")
            size = (place / file).stat().st_size
            if size != check["bytes"]:
                raise EverlearnError(f"{place / file} is truncated ({size} of {check['bytes']} bytes): {remedy}")
            if _sha256(place / file) != check["sha256"]:
                raise EverlearnError(f"{place / file} was altered (its SHA-256 differs): {remedy}")
            tensors[file] = load_file(place / file)
        return Checkpoint(state, tensors["method.safetensors"], tensors["training.safetensors"])
    except (OSError, AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise EverlearnError(f"checkpoint {place} is damaged ({error}): {remedy}") from error


def method_state(method: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a method must keep: all of its state, but not what the pre-trained backbone
    comes with anyway."""
    backbone: Any = method.backbone
    state = method.state_dict()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    digests = backbone.digests()
    for name in backbone.state_dict():
        if name not in trained and digests[name] == backbone.origin[name]:
            del state[f"backbone.{name}"]
    return state


def load_method_state(method: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put back what `method_state` gave; the backbone's other tensors stay as pre-trained.

    Raises:
        EverlearnError: the state is of another method or of other settings.
    """
    try:
        result = method.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise EverlearnError(f"the checkpoint does not fit the method: {reason}") from error
    missing = [name for name in result.missing_keys if not name.startswith("backbone.")]
    if missing or result.unexpected_keys:
        raise EverlearnError(
            f"the checkpoint does not fit the method: missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}"
        )


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name, and the rest as JSON."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for number, slots in state["state"].items():
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{slot}"] = value
            else:
                plain[f"{number}.{slot}"] = value
    return tensors, {"groups": state["param_groups"], "slots": plain}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], plain: dict[str, Any]
) -> None:
    """Put back what `optimizer_state` gave."""
    slots: dict[int, dict[str, Any]] = {}
    prefixed = ((name.removeprefix("optimizer."), t) for name, t in tensors.items() if name.startswith("optimizer."))
    for name, value in [*prefixed, *plain["slots"].items()]:
        number, _, slot = name.partition(".")
        slots.setdefault(int(number), {})[slot] = value
    # JSON turned tuples into lists; torch takes either for betas.
    optimizer.load_state_dict({"state": slots, "param_groups": plain["groups"]})


def _names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.glob("task-*-step-*") if place.is_dir())


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that share no memory, as safetensors asks."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        shared = tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in seen
        separate[name] = tensor.clone() if shared else tensor
        seen.add(tensor.data_ptr())
    return separate


def _sha256(file: Path) -> str:
    hasher = hashlib.sha256()
    with open(file, "rb") as opened:
        for block in iter(lambda: opened.read(1 << 20), b""):
            hasher.update(block)
    return hasher.hexdigest()


def _json_sha256(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _is_pickle(file: Path) -> bool:
    """Whether a file begins as torch.save's zip archives or bare pickles do."""
    with open(file, "rb") as opened:
        start = opened.read(4)
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(file: Path, text: str) -> None:
    """The file holds `text` whole, or what it held before."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _flush(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file that are whole: a full disk, or a reader too early, may find the last one cut."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_line(file: Path, line: dict[str, Any]) -> None:
    """Write one more line."""
    with open(file, "a", encoding="utf-8") as opened:
        opened.write(json.dumps(line) + "\n")


def rewrite_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Replace the lines atomically."""
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))


def origin_hash(backbone: Any) -> str:
    """One hash of the weights that a backbone came with."""
    return hashlib.sha256(json.dumps(backbone.origin, sort_keys=True).encode()).hexdigest()
