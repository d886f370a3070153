"""everlearn updates a pre-trained model with new data, keeps what it could do, and proves both."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if os.name != "posix":
    raise ImportError("everlearn needs a POSIX system, such as Linux or macOS, because it starts, stops and locks its "
                      "processes as POSIX does: on Windows run it in WSL")  # fmt: skip

__version__ = "0.1.0"
__all__ = [
    "Examples", "Index", "Method", "Stream", "Task", "backbones", "compare", "distillation", "engine", "heads", "load",
    "methods", "metrics", "model", "peft", "report", "resume", "retrieval", "run", "streams", "testing", "tune",
    "versions",
]  # fmt: skip

if TYPE_CHECKING:
    from everlearn import (
        backbones,
        distillation,
        engine,
        heads,
        methods,
        metrics,
        model,
        peft,
        report,
        retrieval,
        streams,
        testing,
        versions,
    )
    from everlearn.comparison import compare
    from everlearn.method import Method
    from everlearn.model import load
    from everlearn.protocol import resume, run
    from everlearn.retrieval.index import Index
    from everlearn.streams.stream import Examples, Stream, Task
    from everlearn.tuning import tune

_HOMES = {"run": "protocol", "resume": "protocol", "compare": "comparison", "load": "model", "Method": "method",
          "Stream": "streams.stream", "Task": "streams.stream", "Examples": "streams.stream",
          "Index": "retrieval.index", "tune": "tuning"}  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch is imported with the first name that needs it, so `everlearn --help` answers at once.
    if name in _HOMES:
        return getattr(importlib.import_module(f"everlearn.{_HOMES[name]}"), name)
    if name in __all__:  # a module, which need not be imported before it is named
        return importlib.import_module(f"everlearn.{name}")
    raise AttributeError(f"module 'everlearn' has no attribute '{name}'")
