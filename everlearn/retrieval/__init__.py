"""Dense retrieval: the index that has to survive an update of its encoder, and what decides whether it can."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Index", "Stamp", "stamp_of"]

if TYPE_CHECKING:
    from everlearn.retrieval.index import Index
    from everlearn.retrieval.stamp import Stamp, stamp_of

_HOMES = {"Index": "index", "Stamp": "stamp", "stamp_of": "stamp"}


def __getattr__(name: str) -> Any:
    # torch is imported with the first name that needs it, so that the command line answers at once.
    if name in _HOMES:
        return getattr(importlib.import_module(f"everlearn.retrieval.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'everlearn.retrieval' has no attribute '{name}'")
