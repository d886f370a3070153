"""Checkpoints: complete, atomic, safetensors and JSON only.

A checkpoint is a folder such as `task-002-step-000120` (120 steps of the third task are done) with

* `method.safetensors`: the state of the method, without tensors of a backbone that still have their pre-trained values;
* `training.safetensors`: the states of the optimizer and of the random generators, only inside a task;
* `state.json`: position, results so far, and the SHA-256 of the other files and of itself.

It is written under another name and renamed, so that it exists completely or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from everlearn.errors import EverlearnError
from everlearn.files import flush_to_disk, replace_folder

FORMAT = 2
"""Of what a checkpoint holds. Another format is refused: the same name may mean another thing there."""

KEEP = 2
"""Checkpoints kept during a run: the newest, and the one before it should a disk lose the newest."""


@dataclass
class Checkpoint:
    """What a run needs to continue: its position, and everything that it had learned."""

    state: dict[str, Any]
    method: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor]


def save(folder: Path, name: str, checkpoint: Checkpoint, keep: int = KEEP) -> None:
    """Write `folder/name` completely or not at all, then remove all but the newest `keep` checkpoints.

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
        state = {"format": FORMAT, **checkpoint.state, "files": checks}
        (temporary / "state.json").write_text(json.dumps({"sha256": _json_sha256(state), **state}, indent=1))
        for written in temporary.iterdir():
            flush_to_disk(written)
        replace_folder(temporary, folder / name)
        flush_to_disk(folder)
    except (OSError, SafetensorError) as error:
        raise EverlearnError(
            f"checkpoint {folder / name} could not be written ({getattr(error, 'strerror', None) or error}): "
            "earlier checkpoints are untouched; make room or choose another --out"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    killed = [place.name for place in folder.glob(".task-*")]  # what a save that was killed has left
    for old in [*_names(folder)[:-keep], *killed]:
        shutil.rmtree(folder / old)


def newest(folder: Path) -> str | None:
    """The name of the newest checkpoint, or None."""
    return max(_names(folder), default=None)


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
        if state.get("format") != FORMAT:
            raise EverlearnError(f"{place} was written by another version of everlearn (format "
                                 f"{state.get('format', 1)}, this one reads {FORMAT}): learn the run again, or open it "
                                 "with the version that wrote it")  # fmt: skip
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
    """The tensors that a method must save: all of its state except the tensors of its backbones that still have
    their pre-trained values."""
    state = method.state_dict()
    for prefix, encoder in _encoders(method):
        trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        digests = encoder.digests()
        for name in encoder.state_dict():
            if name not in trained and digests[name] == encoder.origin[name]:
                state.pop(prefix + name, None)
    return state


def load_method_state(method: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what `method_state` gave; the other tensors of its backbones keep their pre-trained values.

    Raises:
        EverlearnError: the state is of another method or of other settings.
    """
    try:
        result = method.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise EverlearnError(f"the checkpoint does not fit the method: {reason}") from error
    pretrained = tuple(prefix for prefix, _ in _encoders(method))
    missing = [name for name in result.missing_keys if not name.startswith(pretrained)]
    extra = result.unexpected_keys
    if missing or extra:
        raise EverlearnError(f"the checkpoint does not fit the method: missing {missing[:3]}, unexpected {extra[:3]}")


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name, and the rest as JSON."""
    state = optimizer.state_dict()
    values = {f"{number}.{slot}": value for number, slots in state["state"].items() for slot, value in slots.items()}
    tensors = {f"optimizer.{name}": value for name, value in values.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
    return tensors, {"groups": state["param_groups"], "slots": plain}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], plain: dict[str, Any]
) -> None:
    """Load what `optimizer_state` gave."""
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
    """Whether a file begins like a pickle or like the zip archives of torch.save."""
    with open(file, "rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def origin_hash(method: Any) -> str:
    """One hash of the pre-trained weights of a method's encoders."""
    origins = [encoder.origin for encoder in method.backbone.encoders()]
    return hashlib.sha256(json.dumps(origins, sort_keys=True).encode()).hexdigest()


def _encoders(method: nn.Module) -> list[tuple[str, Any]]:
    """Every backbone in the method, with the prefix of its tensors' names."""
    return [(f"{name}.", module) for name, module in method.named_modules() if getattr(module, "origin", None)]
