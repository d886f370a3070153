"""Tensors from a safetensors file, checked before anything is loaded from them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from everlearn.errors import DataError, printable

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name, as they are in it.

    Raises:
        DataError: there is no such file, it is not a regular file, or it is damaged.
    """
    from safetensors.torch import load_file

    try:
        mode = os.stat(file).st_mode
        if not stat.S_ISREG(mode):  # to open a pipe could block forever
            raise DataError(f"{file} is not a regular file: give a file, not a folder, a pipe or a device")
        return load_file(file)
    except FileNotFoundError:
        raise DataError(f"{file} cannot be read (no such file): check the path, or copy the file again") from None
    except DataError:
        raise
    except Exception as error:  # safetensors has an error of its own, and others for odd headers
        raise damaged(file, getattr(error, "strerror", None) or error) from error


def damaged(file: Path, reason: object) -> DataError:
    """The error for weights that are not whole."""
    return DataError(f"{file} cannot be read: its safetensors weights are damaged or incomplete, as after an "
                     f"interrupted download ({printable(reason)}); download or copy it again")  # fmt: skip


def in_float32(tensors: Mapping[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """The tensors in float32.

    Raises:
        DataError: a tensor does not hold floating-point numbers, or one of its values is not finite.
    """
    converted = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise DataError(f"{file}: the tensor '{printable(name)}' is {_dtype(tensor)}, and weights are float16, "
                            "bfloat16, float32 or float64: convert it, or copy the file again")  # fmt: skip
        converted[name] = tensor.float()
        # The smallest and the largest value are not finite if any value is not, and are found faster.
        if tensor.numel() and not torch.isfinite(torch.stack(converted[name].aminmax())).all():
            raise DataError(f"{file}: the tensor '{printable(name)}' has values that are not finite in float32 (NaN or "
                            "infinity): its training diverged, or it is damaged; take another copy")  # fmt: skip
    return converted


def same_shapes(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, Sequence[int]], file: Path, whose: str
) -> None:
    """Raise a DataError, which names a tensor, unless the tensors have exactly the expected names and shapes.

    Args:
        whose: what has the expected shapes, for the message: "vit_small" or "its adapter_config.json".
    """
    fault = ""
    if missing := [name for name in expected if name not in tensors]:
        fault = f"{len(missing)} of {len(expected)} tensors are missing, such as '{printable(missing[0])}'"
    elif foreign := [name for name in tensors if name not in expected]:
        fault = f"{whose} has no place for {len(foreign)} of its tensors, such as '{printable(foreign[0])}'"
    else:
        for name, wanted in expected.items():
            if (found := list(tensors[name].shape)) != list(wanted):
                fault = f"the tensor '{printable(name)}' has the shape {found}, but in {whose} it has {list(wanted)}"
                break
    if fault:
        raise DataError(f"{file}: {fault}: it is damaged, incomplete or for another model; download or copy it again")


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
