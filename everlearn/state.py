"""Stateful: a module whose buffers take the size of what is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from everlearn.errors import EverlearnError


def grown(tensor: Tensor, size: int, dim: int = 0, fill: float = 0.0) -> Tensor:
    """`tensor` with at least `size` entries along `dim`; new ones have the value `fill`.

    >>> grown(torch.ones(1, 2), 2).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    shape = list(tensor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([tensor, tensor.new_full(shape, fill)], dim=dim) if shape[dim] > 0 else tensor


def check_finite(features: Tensor) -> None:
    """Raise an EverlearnError if one of the features, which would be added, is NaN or infinite.

    >>> check_finite(torch.ones(2, 3))
    """
    if not torch.isfinite(features).all():
        raise EverlearnError("a feature is not finite: the backbone or its input is broken; nothing was added")


def check_saved(
    name: str, saved: Tensor, own: Tensor | None, shape: tuple[int, ...] | None = None, finite: bool = True
) -> None:
    """Raise an EverlearnError if a saved tensor cannot take the place of the model's own.

    Args:
        own: None if the model has no such tensor.
        shape: the shape that it must have; that of `own` by default.
        finite: refuse NaN too, and not infinite numbers only.
    """
    if own is None:
        raise EverlearnError(f"the checkpoint does not fit the method: unexpected {name}")
    shape = tuple(own.shape) if shape is None else shape
    if saved.dtype != own.dtype or tuple(saved.shape) != shape:
        found = f"{name} is {tuple(saved.shape)} of {saved.dtype}, expected {shape} of {own.dtype}"
        raise EverlearnError(f"the checkpoint does not fit the method: {found}")
    if (saved.isinf().any() or (finite and saved.isnan().any())) and saved.is_floating_point():
        raise EverlearnError(f"the checkpoint is damaged: {name} holds numbers that are not finite")


class Stateful(nn.Module):
    """A module whose buffers take the size of what is loaded into them.

    Heads and memories grow with what they see, so a new one is smaller than the one that was saved.
    Loading resizes registered buffers; their dtype, device and number of dimensions stay. Parameters
    keep torch's strict shapes: they grow in `begin_task`, which resume replays.

    >>> import torch
    >>> class Seen(Stateful):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.register_buffer("labels", torch.empty(0, dtype=torch.long))
    >>> full, fresh = Seen(), Seen()
    >>> full.labels = torch.tensor([3, 1])
    >>> _ = fresh.load_state_dict(full.state_dict())
    >>> fresh.labels.tolist(), fresh.stored_bytes()
    ([3, 1], 16)
    """

    def stored_bytes(self) -> int:
        """Bytes that this module and its children keep in a checkpoint, parameters not counted."""
        return sum(
            buffer.numel() * buffer.element_size()
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name not in module._non_persistent_buffers_set
        )

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """Whether tensors from a checkpoint fit this module; it is asked before they are loaded.

        Here each tensor must belong to a buffer or parameter, with its dtype and number of dimensions, and be finite.
        A subclass also says which sizes fit together.

        Args:
            saved: the tensors of this module by name, without those of its children.

        Raises:
            EverlearnError: a tensor does not fit.
        """
        for name, tensor in saved.items():
            own = self._buffers.get(name)
            if own is None:
                check_saved(name, tensor, self._parameters.get(name))
            else:
                check_saved(name, tensor, own, (*tensor.shape,) if tensor.dim() == own.dim() else None)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # Random matrices are drawn again, not saved; the buffer "checksum" says whether they came out the same.
        drawn, own = state_dict.get(prefix + "checksum"), self._buffers.get("checksum")
        if drawn is not None and own is not None and not torch.equal(drawn.cpu(), own.cpu()):
            raise EverlearnError(
                f"the saved {type(self).__name__.lower()} head has another width, another map of the features or other "
                f"random features ({drawn.tolist()}) than this one ({own.tolist()}): build it with the same settings "
                "and seed, and where only the last number differs with the same PyTorch"
            )
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is None or saved is None or saved.dim() != buffer.dim():
                continue  # torch says what is wrong, if anything is
            if saved.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
