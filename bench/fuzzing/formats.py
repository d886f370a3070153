"""What damage means for a file of each format, and what a file may be replaced by."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from fuzzing.damage import Draw

PICKLE = b"\x80\x04cposix\nsystem\n(S'touch ran'\ntR."


# -- what a file is replaced by -------------------------------------------------------------------------
def _link(target: Callable[[Draw, Path], Path]) -> Callable[[Draw, Path, bytes], None]:
    return lambda draw, path, content: path.symlink_to(target(draw, path))


def _unreadable(draw: Draw, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0)


def _sparse(draw: Draw, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.truncate(path, draw.one((3, 6)) * 2**30)


SPECIAL: dict[str, Callable[[Draw, Path, bytes], None]] = {
    "missing": lambda draw, path, content: None,
    "empty": lambda draw, path, content: path.touch(),
    "a pipe": lambda draw, path, content: os.mkfifo(path),
    "a folder": lambda draw, path, content: path.mkdir(),
    "a link to /dev/zero": _link(lambda draw, path: Path("/dev/zero")),
    "a link to itself": _link(lambda draw, path: Path(path.name)),
    "a link to a file outside": _link(lambda draw, path: draw.outside / "canary.txt"),
    "a link to nothing": _link(lambda draw, path: draw.outside / "nothing"),
    "unreadable": _unreadable,
    "some GiB long": _sparse,
    "zeros": lambda draw, path, content: path.write_bytes(bytes(len(content))) and None,
    "a pickle": lambda draw, path, content: path.write_bytes(PICKLE) and None,
}


# -- structures --------------------------------------------------------------------------------------
def _json_file(draw: Draw, path: Path) -> None:
    path.write_bytes(draw.json(draw.structure(json.loads(path.read_bytes()))))


def _yaml_file(draw: Draw, path: Path) -> None:
    path.write_bytes(draw.yaml(draw.structure(yaml.safe_load(path.read_text(encoding="utf-8")))))


def _lines_file(draw: Draw, path: Path) -> None:
    values = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_bytes(b"\n".join(draw.json(value).replace(b"\n", b" ") for value in draw.structure(values) or []))


def _delimited_file(draw: Draw, path: Path) -> None:
    comma = "\t" if path.suffix == ".tsv" else ","
    rows = [line.split(comma) for line in path.read_text(encoding="utf-8").splitlines()]
    for _ in range(draw.one((1, 1, 3))):
        row = draw.one(rows)
        if row:
            at = draw.random.randrange(len(row))
            row[at : at + 1] = draw.one(([draw.text()], [], [row[at]] * 2, [f'"{draw.text()}"']))
    path.write_bytes("\n".join(comma.join(row) for row in rows).encode("utf-8", "surrogatepass"))


def _safetensors_file(draw: Draw, path: Path) -> None:
    """Another header, or other tensors."""
    if draw.chance(0.4):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = draw.json(draw.structure(json.loads(data[8 : 8 + length])))
        claimed = draw.one((0, 2**63, length)) if draw.chance(0.1) else len(header)
        path.write_bytes(struct.pack("<Q", claimed) + header + data[8 + length :])
        return
    import torch
    from safetensors.torch import load, save

    tensors = load(path.read_bytes())
    if not tensors:
        tensors = {"weight": torch.ones(2)}
    for _ in range(draw.one((1, 1, 2))):
        if not tensors:
            break
        name = draw.one(sorted(tensors))  # the library gives them in any order
        change, tensor = draw.random.randrange(8), tensors[name]
        if change == 0:
            del tensors[name]
        elif change == 1:
            tensors[draw.text().replace("\ud800", "")] = tensors.pop(name)
        elif change == 2:
            tensors[name] = tensor.to(draw.one((torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)))
        elif change == 3:
            tensors[name] = tensor.t().contiguous() if tensor.ndim == 2 else tensor[None]
        elif change == 4:
            tensors[name] = tensor.new_zeros(draw.one(((0,), (), (1, 1, 1), (1, 0), (2**20,))))
        elif change == 5 and tensor.is_floating_point():
            tensors[name] = torch.full_like(tensor, draw.one((math.nan, math.inf, 1e38, 0.0)))
        elif change == 6:
            tensors[name] = torch.full_like(tensor, draw.one((0, 1, 100)))
        else:
            tensors["more." + name] = tensor.clone()
    path.write_bytes(save(tensors))


STRUCTURED: dict[str, Callable[[Draw, Path], None]] = {
    ".json": _json_file,
    ".yaml": _yaml_file,
    ".jsonl": _lines_file,
    ".csv": _delimited_file,
    ".tsv": _delimited_file,
    ".safetensors": _safetensors_file,
}
