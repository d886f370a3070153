"""What determines a feature besides the weights: the settings of deltas and the configuration of an encoder."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from everlearn.backbones.digests import digest
from everlearn.peft.delta import Delta


def plain_state(delta: Delta) -> dict[str, Any]:
    """What determines the output of a delta besides its parameters, such as a scale or the tokens given to it."""
    return {
        f"{path}.{name}": _plain(value)
        for path, module in delta.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | tuple | torch.Tensor) and name not in ("training", "_input")
    }


def _plain(value: Any) -> Any:
    """A value as JSON, a tensor as its digest; nothing for what is neither."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return digest(value)
    return value if isinstance(value, bool | int | float | str) else None


def config_hash(config: Any) -> str:
    """A hash of a transformers configuration: with other heads or activations, equal weights give other features."""
    leave_out = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    told = {key: value for key, value in config.to_dict().items() if key not in leave_out}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
