"""PerParameter: one tensor for each trained parameter, such as its Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from everlearn.state import Stateful, check_saved


class PerParameter(Stateful):
    """A tensor of the same shape for each parameter that requires a gradient, by its name.

    `fisher["head.weight"]`, `fisher.items()` and `"head.weight" in fisher` work as in a dictionary.
    The tensors are buffers, so they are saved, moved and copied with the method.

    >>> import torch
    >>> head = torch.nn.Linear(2, 3)
    >>> fisher = PerParameter()
    >>> fisher.grow(head.named_parameters())
    >>> fisher["bias"] = torch.ones(3)
    >>> {name: value.sum().item() for name, value in fisher.items()}
    {'weight': 0.0, 'bias': 3.0}
    """

    def grow(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Have a tensor for each trained parameter. Entries of new parameters, and of rows or columns by which a
        parameter has grown, are zero. Call it in `begin_task`, after everything has grown."""
        for name, parameter in parameters:
            if not parameter.requires_grad or (name in self and self[name].shape == parameter.shape):
                continue
            values = torch.zeros_like(parameter, requires_grad=False)
            if name in self:
                values[tuple(map(slice, self[name].shape))] = self[name]
            self[name] = values

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """Each tensor has the shape of its parameter, which replaying has grown it to."""
        for name, tensor in saved.items():
            check_saved(name, tensor, self._buffers.get(name))

    def __getitem__(self, name: str) -> Tensor:
        value = self._buffers[_key(name)]
        assert value is not None
        return value

    def __setitem__(self, name: str, value: Tensor) -> None:
        old = self._buffers.get(_key(name))
        if old is not None and (old.shape, old.dtype, old.device) == (value.shape, value.dtype, value.device):
            old.copy_(value.detach())  # in its place, because new tensors beside the old ones leave holes in the memory
        else:
            self.register_buffer(_key(name), value.detach().clone())

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Take these values, each of the shape of its parameter, by its name, as a dictionary does."""
        for name, value in values.items():
            self[name] = value

    def __iter__(self) -> Iterator[str]:
        return (key[1:].replace("/", ".") for key in self._buffers)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The names and tensors, as of a dictionary; each of the shape of its parameter."""
        return ((name, self[name]) for name in self)

    def __len__(self) -> int:
        return len(self._buffers)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._buffers


def _key(name: str) -> str:
    """The name of a parameter's buffer: torch forbids dots, and the first slash avoids clashes with attributes."""
    return "/" + name.replace(".", "/")
