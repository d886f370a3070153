"""Digests of weights, which are computed again only where the weights were written to."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BLOCK = 64, 127
"""Rows and columns of a block of `block_sums`, in words of 64 bits."""


@dataclass
class _Known:
    """The SHA-256 of a tensor, and what tells whether it is still that of its content."""

    tensor: weakref.ref[torch.Tensor]
    version: int
    sums: bytes
    sha256: str
    doubts: int


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

    def of(self, module: nn.Module, prefix: str, exact: Mapping[int, torch.Tensor]) -> dict[str, str]:
        """The digests of a module's parameters and buffers, by name.

        Args:
            prefix: what tells the module's names from those of other modules.
            exact: the content to take instead of that of a tensor with this `id`.
        """
        found = {}
        for name, tensor in _tensors(module):
            known, content = self._known.get(prefix + name), exact.get(id(tensor), tensor)
            is_known = known is not None and known.tensor() is tensor and known.version == tensor._version
            if known is None or not is_known or (known.doubts != self.doubts and known.sums != block_sums(content)):
                known = _Known(weakref.ref(tensor), tensor._version, block_sums(content), digest(content), 0)
                self._known[prefix + name] = known
            known.doubts = self.doubts
            found[name] = known.sha256
        return found

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


def _tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer with its name, faster than by torch's own iterators."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")
