"""Digests of weights, which are computed again only where the weights were written to."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

BLOCK = 64, 127
"""Rows and columns of a block of `block_sums`, in words of 64 bits."""


@dataclass
class _Known:
    """The SHA-256 of a tensor, and what tells whether it is still that of its content."""

    read: list[tuple[weakref.ref[torch.Tensor], int]]
    sums: bytes
    sha256: str
    doubts: int

    def is_of(self, read: Sequence[torch.Tensor]) -> bool:
        """Whether the content depends on these tensors, and none was written to since."""
        return len(read) == len(self.read) and all(
            ref() is tensor and version == tensor._version
            for tensor, (ref, version) in zip(read, self.read, strict=True)
        )


class Digests:
    """The SHA-256 of the tensors of some modules.

    Torch counts the writes to a tensor in its version, except those through `.data` and numpy. Whoever has run code
    that may have written so adds a doubt; then the content of every tensor is compared when it is asked for.

    Attributes:
        doubts: how many there were.
    """

    def __init__(self) -> None:
        self.doubts = 0
        self._known: dict[str, _Known] = {}

    def of(self, module: nn.Module, exact: Mapping[int, torch.Tensor]) -> dict[str, str]:
        """The digests of a module's parameters and buffers, by name.

        Args:
            exact: the content to take instead of that of a tensor with this `id`.
        """
        return {name: self._sha256(name, [tensor], exact.get(id(tensor), tensor).detach)
                for name, tensor in _tensors(module)}  # fmt: skip

    def as_used(self, module: nn.Module, prefix: str) -> dict[str, str]:
        """The digests of the tensors that a module computes with, by name. Where a parametrization of torch makes one,
        this is what it makes, such as the weights that the active task sees, and not what it is made of.

        Args:
            prefix: what tells the module's names from those of other modules.
        """
        plain = {name: self._sha256(prefix + name, [tensor], tensor.detach)
                 for name, tensor in _tensors(module, made=False)}  # fmt: skip
        return plain | {name: self._sha256(f"{prefix}{name} {_settings(made)}", _reads(made), partial(_content, made))
                        for name, made in _parametrized(module)}  # fmt: skip

    def _sha256(self, key: str, read: Sequence[torch.Tensor], content: Callable[[], torch.Tensor]) -> str:
        """The digest of a content that depends on the tensors `read`."""
        known = self._known.get(key)
        if known is None or known.doubts != self.doubts or not known.is_of(read):
            with torch.no_grad():
                now = content()
            sums = block_sums(now)
            sha256 = known.sha256 if known is not None and known.sums == sums else digest(now)
            known = _Known([(weakref.ref(tensor), tensor._version) for tensor in read], sums, sha256, self.doubts)
            self._known[key] = known
        return known.sha256

    def __deepcopy__(self, memo: dict[int, Any]) -> Digests:
        return Digests()  # what is known refers to these tensors; a copy of the backbone has its own


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous()
    return hashlib.sha256(data.reshape(-1).view(torch.uint8).numpy()).hexdigest()


def block_sums(tensor: torch.Tensor) -> bytes:
    """What changes with a tensor's content, as SHA-256 does, in a fifth of its time: the content is cut into blocks,
    and each of their rows and columns is added up in whole numbers. The rest, less than 64 KiB, is taken as it is.

    A write goes unnoticed only if it leaves every sum as it was. One value cannot do that, nor two that are exchanged.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    size = 8 * BLOCK[0] * BLOCK[1]
    whole = len(data) // size * size
    if not whole:
        return data.cpu().numpy().tobytes()
    words = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()
    blocks: Any = words.view(torch.int64).view(-1, *BLOCK)
    if tensor.device.type == "cpu":
        blocks = blocks.numpy()  # which adds up columns faster
    sums = [torch.as_tensor(blocks.sum(axis)).cpu().numpy().tobytes() for axis in (1, 2)]
    return b"".join([*sums, data[whole:].cpu().numpy().tobytes()])


def _tensors(module: nn.Module, prefix: str = "", made: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer with its name, faster than by torch's own iterators. `made`: also those of
    parametrizations."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None and (made or name != "parametrizations"):
            yield from _tensors(child, f"{prefix}{name}.", made)


def _parametrized(module: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    """Every tensor that a parametrization makes: its name, and what makes it."""
    for path, part in module.named_modules():
        if isinstance(part, ParametrizationList):
            yield path.replace("parametrizations.", ""), part


def _content(made: ParametrizationList) -> torch.Tensor:
    """What is made, without the signs of zeros, which a mask makes of the numbers that it hides."""
    content: torch.Tensor = made() + 0.0
    return content


def _reads(made: ParametrizationList) -> list[torch.Tensor]:
    """The tensors that what is made depends on."""
    tensors = (tensor for part in _parts(made) for tensor in (*part._parameters.values(), *part._buffers.values()))
    return [tensor for tensor in tensors if tensor is not None]


def _settings(made: ParametrizationList) -> list[bool | int | float | str]:
    """The numbers and names that what is made depends on, such as the active task."""
    return [value for part in _parts(made) for name, value in vars(part).items()
            if isinstance(value, bool | int | float | str) and name != "training"]  # fmt: skip


def _parts(made: ParametrizationList) -> Iterator[nn.Module]:
    """The modules that make a tensor. One that is saved with another module is held in a tuple."""
    for part in made.modules():
        yield part
        for held in vars(part).values():
            if isinstance(held, tuple):
                yield from (module for one in held if isinstance(one, nn.Module) for module in one.modules())
