"""The folder of a PEFT adapter on disk: read with care, written whole or not at all. Nothing is unpickled."""

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
from everlearn.files import replace_folder

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

# Settings that are read, or that say how the adapter was made and not what it computes. Any other that is
# set is refused, also one that a later PEFT brings: it may change the result.
KNOWN = ("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode",
         "peft_version")  # fmt: skip
SETTINGS = {
    "LORA": (
        *KNOWN, "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "init_lora_weights",
        "eva_config", "fan_in_fan_out", "megatron_core", "qalora_group_size",
        # Which layers are meant; the tensors say it too.
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    ),
    "PREFIX_TUNING": (
        *KNOWN, "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules",
        "encoder_hidden_size", "prefix_projection", "init_weights",
    ),
}  # fmt: skip
HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights; the others (pissa, olora, …) also change the weights of the encoder."""


def read_config(file: Path) -> dict[str, Any]:
    """The settings of an adapter that everlearn computes as PEFT does; any other is refused."""
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
            raise EverlearnError(f"{file}: everlearn has no {key} (here {value}): train the adapter without it")
    if (start := config.get("init_lora_weights")) not in HARMLESS_STARTS:
        raise EverlearnError(f"{file}: init_lora_weights '{start}' also changed the encoder's weights: convert the "
                             "adapter to plain LoRA with peft's path_initial_model_for_weight_conversion")  # fmt: skip
    return config


def read_weights(place: Path) -> dict[str, torch.Tensor]:
    """The tensors of the adapter in the folder."""
    file = place / WEIGHTS
    if not file.exists() and (place / PICKLED).exists():
        raise EverlearnError(f"{place / PICKLED} is in a pickle format, which can run code when it is read: everlearn "
                             "never does; save the adapter as safetensors on a machine where you trust it")  # fmt: skip
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EverlearnError(f"{file} cannot be read ({reason}): copy it again") from error


def same_shapes(tensors: dict[str, torch.Tensor], expected: dict[str, Any], file: Path, what: str) -> None:
    """Raise unless the tensors are those expected, by name and shape."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise EverlearnError(f"{file}: {what} has the shapes {found}, expected {expected}: it is of another encoder or "
                             f"does not belong to its {CONFIG}")  # fmt: skip


def write(place: Path, files: dict[str, bytes]) -> None:
    """The folder with these files whole, or as it was before."""
    place = place.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        if place.exists() and not place.is_dir():
            raise EverlearnError(f"{place} is a file: nothing was written; an adapter is a folder, name another")
        if others := sorted({file.name for file in (place.iterdir() if place.exists() else ())} - set(files)):
            raise EverlearnError(f"{place} holds '{others[0]}', which is no part of an adapter: nothing was written; "
                                 "choose another folder")  # fmt: skip
        temporary.mkdir(parents=True)
        for name, content in files.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        replace_folder(temporary, place)
    except OSError as error:
        raise EverlearnError(f"adapter {place} could not be written ({error.strerror}): what was there is kept; make "
                             "room or choose another folder") from error  # fmt: skip
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
