"""Reads and writes the folder of a PEFT adapter. It is written completely or not at all, and nothing is unpickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from everlearn.errors import EverlearnError, unknown
from everlearn.files import replace_folder, write_whole

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
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that are accepted. The others (pissa, olora, …) also change the backbone's weights."""


def read_config(file: Path) -> dict[str, Any]:
    """Read the settings of an adapter. An adapter that everlearn cannot compute as PEFT does is refused."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise EverlearnError(f"{file} cannot be read ({error.strerror}): give a folder that PEFT's save_pretrained "
                             "or everlearn has written") from error  # fmt: skip
    except ValueError as error:
        raise EverlearnError(f"{file} is not JSON ({error}): it is damaged; copy it again") from error
    kind = str(config.get("peft_type") if isinstance(config, dict) else None)
    if kind not in SETTINGS:
        raise EverlearnError(f"{file}: {unknown('peft_type', kind, SETTINGS)}")
    for key, value in config.items():
        if value and value != "none" and key not in SETTINGS[kind]:
            raise EverlearnError(f"{file}: everlearn does not support {key}={value}: train the adapter without it")
    if (start := config.get("init_lora_weights")) not in HARMLESS_STARTS:
        raise EverlearnError(f"{file}: init_lora_weights '{start}' also changed the backbone's weights: convert the "
                             "adapter to plain LoRA with peft's path_initial_model_for_weight_conversion")  # fmt: skip
    return config


def read_weights(place: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of the adapter in the folder."""
    file = place / WEIGHTS
    if not file.exists() and (place / PICKLED).exists():
        raise EverlearnError(f"{place / PICKLED} is a pickle file, which can run code when it is read, so everlearn "
                             "never reads it: save the adapter as safetensors where you trust the file")  # fmt: skip
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EverlearnError(f"{file} cannot be read ({reason}): copy it again") from error


def same_shapes(tensors: dict[str, torch.Tensor], expected: dict[str, Any], file: Path, what: str) -> None:
    """Raise an error if the tensors do not have the expected names and shapes."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise EverlearnError(f"{file}: {what} has the shapes {found}, expected {expected}: it was made for another "
                             f"backbone or does not belong to its {CONFIG}")  # fmt: skip


def write(place: Path, files: dict[str, bytes]) -> None:
    """Write the folder with all these files, or leave it as it was before."""
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
