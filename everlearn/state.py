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
