"""Checkpoints: complete, atomic, safetensors and JSON only.

A checkpoint is a folder such as `task-002-step-000120` (120 steps of the third task are done) with

* `method.safetensors`: the state of the method, without tensors of a backbone that still have their pre-trained values;
* `training.safetensors`: the states of the optimizer and of the random generators, only inside a task;
* `held_out.safetensors`: examples that were not learned, in the last checkpoint of a run and in its later versions;
* `state.json`: position, results so far, and the SHA-256 of the other files and of itself.

It is written under another name and renamed, so that it exists completely or not at all.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from everlearn.errors import EverlearnError, as_word, one_line, remedy_for
from everlearn.files import flush_to_disk, read_bytes, regular, replace_folder, sha256_of
from everlearn.schemas.states import Container
from everlearn.schemas.values import MOST_JSON, valid
from everlearn.state import Stateful, check_saved
from everlearn.strict import from_json

FORMAT = 4
"""Of what a checkpoint holds."""

READ = (3, 4)
"""The formats that are read; in 3, every task repeats the names of all classes before it. Another one is refused: the
same name may mean another thing there."""

MOST_NAMES = 50_000_000
"""Names of classes in all tasks together, where each task has those of the tasks before it too."""

HELD_OUT = "held_out.safetensors"
FILES = ("method.safetensors", "training.safetensors", HELD_OUT)
RATES = ("lr", "initial_lr")
"""What a group of an optimizer calls its learning rate, now and at first."""

PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How pickles begin, and the zip archives of torch.save."""

KEEP = 2
"""Checkpoints kept during a run: the newest, and the one before it should a disk lose the newest."""

NAME = re.compile(r"task-([0-9]{3}|[1-9][0-9]{3,})-step-([0-9]{6}|[1-9][0-9]{6,})")
"""A checkpoint's name: the tasks that are finished, and the steps of the next."""

LEFT = re.compile(rf"\.{NAME.pattern}\.[0-9]+(\.old)?")
"""What a save that was killed has left."""

OLD = re.compile(rf"\.({NAME.pattern})\.[0-9]+\.old")
"""A checkpoint that was to be replaced by a newer one of its name."""


@dataclass
class Checkpoint:
    """What a run needs to continue: its position, and everything that it had learned."""

    state: dict[str, Any]
    method: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor]
    held_out: dict[str, torch.Tensor] = field(default_factory=dict)


def save(folder: Path, name: str, checkpoint: Checkpoint, keep: int = KEEP) -> None:
    """Write `folder/name` completely or not at all, then remove all but the newest `keep` checkpoints.

    Raises:
        EverlearnError: the folder cannot be written; what was there is untouched.
    """
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = dict(zip(FILES, (checkpoint.method, checkpoint.training, checkpoint.held_out), strict=True))
        checks = {}
        for file, tensors in files.items():
            save_file(_separate(tensors), temporary / file)
            checks[file] = {"bytes": (temporary / file).stat().st_size, "sha256": _sha256(temporary / file)}
        state = {"format": FORMAT, **_new_names_only(checkpoint.state), "files": checks}
        (temporary / "state.json").write_text(json.dumps({"sha256": _json_sha256(state), **state}, indent=1))
        for written in temporary.iterdir():
            flush_to_disk(written)
        replace_folder(temporary, folder / name)
        flush_to_disk(folder)
    except (OSError, SafetensorError) as error:
        raise EverlearnError(
            f"checkpoint {folder / name} could not be written ({getattr(error, 'strerror', None) or error}): "
            f"earlier checkpoints are untouched; {remedy_for(error)}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in [*_names(folder, NAME)[:-keep], *_names(folder, LEFT)]:
        shutil.rmtree(folder / old)


def newest(folder: Path) -> str | None:
    """The name of the newest checkpoint, or None."""
    names = _names(folder, NAME)
    return names[-1] if names else None


def put_back(folder: Path) -> None:
    """Put back the checkpoints that were to be replaced when the process was killed between the two renames. The caller
    holds the run's lock."""
    for place in folder.glob(".task-*.old"):
        name = OLD.fullmatch(place.name)
        if name and place.is_dir() and not place.is_symlink() and not (folder / name[1]).exists():
            os.replace(place, folder / name[1])


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
    remedy = _remedy(place)
    state = read_state(place)
    with one_line(f"checkpoint {place}", remedy, EverlearnError):
        files = [file for file in FILES if file in state["files"] or file != HELD_OUT]  # older ones held nothing out
        return Checkpoint(state, *(_read(place / file, state["files"][file], remedy) for file in files))


def read_state(place: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; the tensors are not read.

    Raises:
        EverlearnError: it is damaged, or was written by another version of everlearn.
    """
    remedy = _remedy(place, of_state=True)
    with one_line(f"checkpoint {place}", remedy, EverlearnError):
        _check_there(place / "state.json", remedy)
        state = from_json(read_bytes(place / "state.json", MOST_JSON), place / "state.json", remedy)
        if not isinstance(state, dict) or state.pop("sha256", None) != _json_sha256(state):
            raise EverlearnError(f"{place / 'state.json'} was altered (its SHA-256 differs): {remedy}")
        if state.get("format") not in READ:
            raise EverlearnError(f"{place} was written by another version of everlearn (format "
                                 f"{state.get('format', 1)}, this one reads {READ[0]} and {FORMAT}): learn the run "
                                 "again, or open it with the version that wrote it")  # fmt: skip
        return _all_names(valid(state, Container, place / "state.json", remedy))


def _new_names_only(state: dict[str, Any]) -> dict[str, Any]:
    """The state in which each task names the classes that it brings, and counts those before it (`known`)."""
    tasks: list[dict[str, Any]] = []
    before: list[str] = []
    for task in state.get("tasks", ()):
        names = task["class_names"]
        known = len(before) if names[: len(before)] == before else 0
        tasks.append({**task, "known": known, "class_names": names[known:]})
        before = names
    return {**state, "tasks": tasks} if tasks else state


def _all_names(state: dict[str, Any]) -> dict[str, Any]:
    """What `_new_names_only` was given. What it does not write stays as it is, and the schema of the state refuses it.

    Raises:
        EverlearnError: the tasks have more than MOST_NAMES names together.
    """
    tasks: list[Any] = []
    before: list[Any] = []
    total = 0
    for task in state["tasks"] if isinstance(state.get("tasks"), list) else ():
        known, names = (task.get("known"), task.get("class_names")) if isinstance(task, dict) else (None, None)
        if type(known) is int and isinstance(names, list) and known in (0, len(before)):
            before = before[:known] + names
            task = {key: before if key == "class_names" else value for key, value in task.items() if key != "known"}
            total += len(before)
        if total > MOST_NAMES:
            raise EverlearnError(f"its tasks have more than {MOST_NAMES:,} names of classes together")
        tasks.append(task)
    return {**state, "tasks": tasks} if tasks else state


def _remedy(place: Path, of_state: bool = False) -> str:
    """What helps where a file is damaged or missing. `of_state`: it is state.json, by which `rollback` knows the
    version before."""
    if place.parent.name == "versions":
        if of_state:
            return f"put the file back, or remove {place}"
        return f"`everlearn rollback {as_word(place.parent.parent)}` returns to the version before it"
    if (place.parent.parent / "results.json").exists():  # a finished run keeps one checkpoint
        return "put the file back, or learn the run again in a new folder"
    return f"remove {place} to go on from the checkpoint before it, or start again"


def _check_there(file: Path, remedy: str) -> None:
    if not file.exists():
        raise EverlearnError(f"{file} is missing: {remedy}")


def _read(file: Path, check: dict[str, Any], remedy: str) -> dict[str, torch.Tensor]:
    """The tensors of a file, if it is the one that was written."""
    _check_there(file, remedy)
    with regular(file) as opened:
        start, size = opened.read(9), os.fstat(opened.fileno()).st_size
    # Safetensors begin with the length of their header, whose bytes may be those of a pickle, and its brace.
    if start[:2] in PICKLES and start[8:] != b"{":
        raise EverlearnError(f"{file} is in a pickle format, which everlearn never reads: {remedy}")
    if size != check["bytes"]:
        raise EverlearnError(f"{file} is truncated ({size} of {check['bytes']} bytes): {remedy}")
    if _sha256(file) != check["sha256"]:
        raise EverlearnError(f"{file} was altered (its SHA-256 differs): {remedy}")
    return load_file(file)


def method_state(method: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a method must save: all of its state except the tensors of its backbones that still have
    their pre-trained values."""
    for _, encoder in _encoders(method):
        encoder.doubt()  # weights that were written through `.data` or numpy must be saved as well
    return _changed_state(method)


def stored_bytes(method: nn.Module) -> int:
    """The bytes of what `method_state` would give now. It is asked after every task, so weights that were written
    through `.data` or numpy are not looked for."""
    return sum(tensor.nbytes for tensor in _changed_state(method).values())


def _changed_state(method: nn.Module) -> dict[str, torch.Tensor]:
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

    Names, shapes and dtypes are compared with the method, and numbers must be finite, before anything is loaded.

    Raises:
        EverlearnError: the state is of another method or of other settings, or damaged.
    """
    pretrained = tuple(prefix for prefix, _ in _encoders(method))
    missing = [name for name in method.state_dict() if name not in state and not name.startswith(pretrained)]
    if missing:
        raise EverlearnError(f"the checkpoint does not fit the method: missing {missing[:3]}")
    modules = dict(method.named_modules())
    by_module: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        path, _, own = name.rpartition(".")
        by_module.setdefault(path, {})[own] = tensor
    for path, saved in by_module.items():
        module = modules.get(path)
        if isinstance(module, Stateful):
            module.check_saved(saved)
            continue
        held = {**module._parameters, **module._buffers} if module is not None else {}
        for name, tensor in saved.items():
            check_saved(f"{path}.{name}".strip("."), tensor, held.get(name))
    try:
        method.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise EverlearnError(f"the checkpoint does not fit the method: {reason}") from error


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
    """Load what `optimizer_state` gave.

    Raises:
        EverlearnError: it is of another optimizer, or damaged. A slot that is smaller than its parameter would have
            the optimizer write beyond its end.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    usual = _usual_slots(optimizer)
    slots: dict[int, dict[str, Any]] = {}
    prefixed = ((name.removeprefix("optimizer."), t) for name, t in tensors.items() if name.startswith("optimizer."))
    for name, value in [*prefixed, *plain["slots"].items()]:
        number, _, slot = name.partition(".")
        if not number.isdigit() or int(number) >= len(parameters) or slot not in usual:
            raise EverlearnError(f"the checkpoint does not fit the optimizer: unexpected {name}")
        if isinstance(value, torch.Tensor) and isinstance(usual[slot], torch.Tensor):
            shape = () if usual[slot].dim() == 0 else tuple(parameters[int(number)].shape)
            check_saved(name, value, usual[slot], shape)
        elif type(value) is not type(usual[slot]):
            raise EverlearnError(f"the checkpoint does not fit the optimizer: {name} is a {type(value).__name__}")
        slots.setdefault(int(number), {})[slot] = value
    incomplete = [number for number, found in slots.items() if found.keys() != usual.keys()]
    if incomplete:
        raise EverlearnError(f"the checkpoint does not fit the optimizer: parameter {incomplete[0]} lacks a slot")
    # The rate of a head follows the features as they were when the task began, and is taken as it was saved.
    groups, saved = (
        [{key: None if key == "params" or key in RATES else value for key, value in group.items()} for group in these]
        for these in (optimizer.state_dict()["param_groups"], plain["groups"])
    )
    rates = [group[key] for group in plain["groups"] for key in RATES if key in group]
    # JSON turned tuples into lists; torch takes either for betas.
    if json.loads(json.dumps(groups)) != saved or [g["params"] for g in plain["groups"]] != [
        g["params"] for g in optimizer.state_dict()["param_groups"]
    ] or not all(isinstance(rate, float) and 0 <= rate < math.inf for rate in rates):  # fmt: skip
        raise EverlearnError("the checkpoint does not fit the optimizer: its groups of parameters differ")
    optimizer.load_state_dict({"state": slots, "param_groups": plain["groups"]})


def _usual_slots(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer of this kind keeps of a parameter: found out by one step with a parameter of its own."""
    probe = torch.nn.Parameter(torch.zeros(2, 3, device=optimizer.param_groups[0]["params"][0].device))
    known = inspect.signature(type(optimizer)).parameters
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key in known and key != "params"}
    other = type(optimizer)([probe], **settings)
    probe.grad = torch.zeros_like(probe)
    other.step()
    return dict(other.state[probe])


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """The folders with such names, oldest position first. As texts, task-1000 would come before task-999.
    Anything else, such as a link, is not ours: it is neither read nor removed."""
    found = [(pattern.fullmatch(place.name), place) for place in folder.glob("*task-*")]
    ours = [(int(name[1]), int(name[2]), name[0]) for name, place in found
            if name and place.is_dir() and not place.is_symlink()]  # fmt: skip
    return [name for _, _, name in sorted(ours)]


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
    with open(file, "rb") as opened:
        return sha256_of(opened)


def _json_sha256(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def origin_hash(method: Any) -> str:
    """One hash of the pre-trained weights of a method's encoders."""
    origins = [encoder.origin for encoder in method.backbone.encoders()]
    return hashlib.sha256(json.dumps(origins, sort_keys=True).encode()).hexdigest()


def _encoders(method: nn.Module) -> list[tuple[str, Any]]:
    """Every backbone in the method that is loaded, with the prefix of its tensors' names."""
    return [(f"{name}.", module) for name, module in method.named_modules()
            if getattr(module, "origin", None) and module.is_loaded]  # fmt: skip
