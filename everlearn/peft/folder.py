"""Reads and writes the folder of a PEFT adapter. It is written completely or not at all, and nothing is unpickled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from everlearn.backbones.tensors import in_float32, read_tensors
from everlearn.errors import DataError, EverlearnError, printable, unknown
from everlearn.files import read_bytes, replace_folder, write_whole
from everlearn.strict import from_json

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

# Settings that are read, and settings that say how the adapter was made but not what it computes. If any other
# setting has a value, the adapter is refused, because that setting (perhaps of a later PEFT) may change the result.
KNOWN = ("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode",
         "peft_version")  # fmt: skip
SETTINGS = {
    "LORA": (
        *KNOWN, "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights",
        "eva_config", "fan_in_fan_out", "megatron_core", "qalora_group_size",
        # These name the layers, and so do the tensors.
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    ),
    "PREFIX_TUNING": (
        *KNOWN, "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules",
        "encoder_hidden_size", "prefix_projection", "init_weights",
    ),
}  # fmt: skip
HARMLESS_STARTS = ("gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that are accepted, beside true and false. The others (pissa, olora, …) also change the
backbone's weights."""


def _whole(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 1_000_000


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9


def _names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _layers(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(layer) is int for layer in value))


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


VALUES: dict[str, Callable[[Any], bool]] = {
    "r": _whole, "lora_alpha": _number, "rank_pattern": _each(_whole), "alpha_pattern": _each(_number),
    "use_rslora": lambda value: type(value) is bool, "target_modules": _names, "exclude_modules": _names,
    "layers_to_transform": _layers, "layers_pattern": _names, "num_virtual_tokens": _whole,
}  # fmt: skip
"""Whether a value can be what the setting should be. A setting that is null is one that is not there."""


def read_config(file: Path) -> dict[str, Any]:
    """Read the settings of an adapter. An adapter that everlearn cannot compute as PEFT does is refused.

    Raises:
        EverlearnError: the file is missing, damaged, or has a setting that is not supported.
    """
    config = from_json(read_bytes(file, most=16 * 2**20), file, "copy the adapter again")
    kind = printable(config.get("peft_type") if isinstance(config, dict) else None)
    if kind not in SETTINGS:
        raise EverlearnError(f"{file}: {unknown('peft_type', kind, SETTINGS)}")
    config = {key: value for key, value in config.items() if value is not None}
    for key, value in config.items():
        if value and value != "none" and key not in SETTINGS[kind]:
            raise EverlearnError(f"{file}: everlearn does not support {printable(key, 60)}={printable(value, 60)}: "
                                 "train the adapter without it")  # fmt: skip
        if key in VALUES and not VALUES[key](value):
            raise DataError(f"{file}: {key} is {printable(value, 60)}, which is a value that cannot be used: copy the "
                            "adapter again")  # fmt: skip
    start = config.get("init_lora_weights")
    if not any(start is harmless for harmless in (None, True, False)) and start not in HARMLESS_STARTS:
        raise EverlearnError(f"{file}: init_lora_weights '{printable(start, 60)}' also changed the backbone's weights: "
                             "convert the adapter to plain LoRA with peft's "
                             "path_initial_model_for_weight_conversion")  # fmt: skip
    return config


def read_weights(place: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of the adapter in the folder, in float32.

    Raises:
        EverlearnError: they are missing, pickled or damaged, or hold values that are not finite numbers.
    """
    file = place / WEIGHTS
    if not file.exists() and (place / PICKLED).exists():
        raise EverlearnError(f"{place / PICKLED} is a pickle file, which can run code when it is read, so everlearn "
                             "never reads it: save the adapter as safetensors where you trust the file")  # fmt: skip
    return in_float32(read_tensors(file), file)


def write(place: Path, files: dict[str, bytes]) -> None:
    """Write the folder with all these files, or leave it as it was before."""
    if "\0" in str(place):
        raise EverlearnError(f"'{printable(place)}' cannot be the name of a folder: choose another")
    place = place.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        if place.exists() and not place.is_dir():
            raise EverlearnError(f"{place} is a file, but an adapter is a folder: nothing was written; give a folder")
        if others := sorted({file.name for file in (place.iterdir() if place.exists() else ())} - set(files)):
            raise EverlearnError(f"{place} holds '{others[0]}', which is not part of an adapter: nothing was written; "
                                 "choose another folder")  # fmt: skip
        temporary.mkdir(parents=True)
        for name, content in files.items():
            write_whole(temporary / name, content)
        replace_folder(temporary, place)
    except OSError as error:
        raise EverlearnError(f"adapter {place} could not be written ({error.strerror}): its previous content is kept; "
                             "free disk space or choose another folder") from error  # fmt: skip
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
