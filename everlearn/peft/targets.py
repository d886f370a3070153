"""Which layers the configuration of a PEFT adapter names, and which rank and alpha it gives to each.

Some settings are regular expressions. They come from a file, so they are matched by RE2 (of pyarrow), whose time grows
only linearly with the length of the text; Python's `re` can take for ever. The meaning is the same, but RE2 has no
look-ahead and no back-references.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from everlearn.errors import DataError, printable


def targets(config: dict[str, Any], model: nn.Module, file: Path) -> list[str]:
    """The paths of the layers that an adapter of this configuration has weights for, as PEFT chooses them.

    Args:
        config: the settings of the adapter, with checked types.
        model: the model that the adapter is for.
        file: where the configuration is from, for messages.

    Raises:
        DataError: it names no layers, or in a way that is not supported.

    >>> model = nn.ModuleDict({"query": nn.Linear(2, 2), "key": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    >>> targets({"target_modules": ["query", "norm"]}, model, Path("adapter_config.json"))
    ['query', 'norm']
    >>> targets({"target_modules": "q.*|k.*", "exclude_modules": ["key"]}, model, Path("adapter_config.json"))
    ['query']
    """
    wanted = config.get("target_modules")
    if not wanted:
        raise DataError(f"{file}: target_modules names no layer: write the names of the adapter's layers there")
    layers = {path: layer for path, layer in model.named_modules() if next(layer.parameters(False), None) is not None}
    paths = list(layers)
    if wanted == "all-linear":
        found = [path for path in paths if isinstance(layers[path], nn.Linear)]
    elif isinstance(wanted, str):
        found = matching(wanted, paths, file)
    else:
        found = [path for path in paths if path in wanted or (_ends(path, wanted) and _in_block(path, config, file))]
    excluded = config.get("exclude_modules") or []
    without = matching(excluded, found, file) if isinstance(excluded, str) else \
        [path for path in found if path in excluded or _ends(path, excluded)]  # fmt: skip
    return [path for path in found if path not in without]


def of_layer(pattern: dict[str, Any], paths: Sequence[str], default: Any, file: Path) -> dict[str, Any]:
    """The value of each path: that of the first pattern that matches the end of the path, or else the default.

    >>> of_layer({"0.*query": 4}, ["layer.0.query", "layer.1.query"], 8, Path("adapter_config.json"))
    {'layer.0.query': 4, 'layer.1.query': 8}
    """
    values = dict.fromkeys(paths, default)
    for end, value in reversed(pattern.items()):  # so that the first one that matches is the last one that is written
        values |= dict.fromkeys(matching(rf"(.*\.)?({end})", paths, file), value)
    return values


def matching(pattern: str, paths: Sequence[str], file: Path) -> list[str]:
    """The paths that match all of a regular expression, in linear time.

    Raises:
        DataError: it is no regular expression, or one that needs look-ahead or back-references.
    """
    import pyarrow
    import pyarrow.compute

    try:
        found = pyarrow.compute.match_substring_regex(pyarrow.array(paths, pyarrow.string()), f"^(?:{pattern})$")
    except (pyarrow.ArrowException, UnicodeError) as error:
        raise DataError(f"{file}: '{printable(pattern, 100)}' is a value that cannot be used as a pattern of layers "
                        f"({printable(error, 100)}): write the names of the layers as a list") from error  # fmt: skip
    return [path for path, matches in zip(paths, found.to_pylist(), strict=True) if matches]


def _ends(path: str, names: Sequence[str]) -> bool:
    return any(path.endswith(f".{name}") for name in names)


def _in_block(path: str, config: dict[str, Any], file: Path) -> bool:
    """Whether the layer is in one of the blocks of layers_to_transform; with none, every layer is."""
    blocks, names = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if blocks is None or blocks == []:
        return True
    names = [names] if isinstance(names, str) else names
    for name in names:
        if not name.replace("_", "").replace(".", "").isalnum():
            raise DataError(f"{file}: layers_pattern is {printable(name, 60)}, and only plain names are supported: "
                            "name the layers of the adapter in target_modules")  # fmt: skip
    parts = path.split(".")
    for place in range(1, len(parts) - 1):
        before = ".".join(parts[:place])
        here = before in names or _ends(before, names) if names else place >= 2
        if here and parts[place].isdecimal():
            return int(parts[place]) in (blocks if isinstance(blocks, list) else [blocks])
    return False
