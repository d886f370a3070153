"""Backbones: pre-trained encoders with named sites. `load(name)` loads one; `names()` lists the short names."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import EverlearnError, one_line, printable, shown

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone

_NAMES = {
    "minilm": "all-MiniLM-L6-v2 sentence encoder, 22.7 M parameters, width 384 (extra: offline)",
    "vit-tiny": "ViT-Ti/16 of timm, 5.5 M parameters, width 192; vit-tiny@112 reads 112-pixel images (extra: vision)",
    "lit": "the pair of encoders in EVERLEARN_WEIGHTS/lit_*.safetensors: images and texts in one space (everlearn lit)",
    "tiny": "two transformer blocks with random weights, width 32, for tests with texts or images",
}

HINT = (
    f"give one of {', '.join(_NAMES)}, the name of a timm ViT (needs the extra 'vision'), a hub name such as "
    "owner/model, or the path of a folder or safetensors file"
)


def names() -> dict[str, str]:
    """The short names and what they stand for. `load` also accepts any transformers encoder or plain timm ViT by
    its hub name or timm name, a local folder, or a safetensors file named after its timm model.

    >>> list(names())
    ['minilm', 'vit-tiny', 'lit', 'tiny']
    """
    return dict(_NAMES)


def default_for(input: str) -> str:
    """The short name of the default backbone for inputs of this kind.

    >>> default_for("image"), default_for("text")
    ('vit-tiny', 'minilm')
    """
    return "vit-tiny" if input == "image" else "minilm"


def load(name: str) -> Backbone:
    """Load the backbone called `name`, frozen and in evaluation mode.

    Args:
        name: a short name, a hub name (``owner/model``), a timm name (``vit_small_patch16_224``),
            a folder in transformers' format, or a ``.safetensors`` file whose name begins with the name of
            its timm model. ``@SIZE`` after a timm ViT sets the image size in pixels. ``@layers=K`` after any
            of these gives features of the last K layers (see `Backbone.take_layers`). ``A+B`` joins the features of
            two encoders (see `side_by_side.SideBySide`), unless a file or folder has this name.

    Raises:
        EverlearnError: it does not exist or cannot be read; the message says what to give instead.

    >>> load("tiny").width
    32
    """
    if not isinstance(name, str):
        raise EverlearnError(f"backbone: {shown(name, 80)} is not a name: {HINT}")
    if not name.isprintable() or len(name) > 4096:  # the longest path
        raise EverlearnError(f"unknown backbone '{printable(name)}': {HINT}")
    if len(parts := parts_of(name)) > 1:
        return _side_by_side(parts, load)
    with one_line(f"backbone '{name}'", "give the path of a folder that transformers has saved", EverlearnError):
        bare, layers = split_layers(name)
        backbone = _load(bare)
        backbone.take_layers(layers)
        return backbone


def split_layers(name: str) -> tuple[str, int]:
    """The name of a backbone without `@layers=K`, and K.

    Raises:
        EverlearnError: K is not a number.

    >>> split_layers("vit-tiny@112@layers=3"), split_layers("minilm")
    (('vit-tiny@112', 3), ('minilm', 1))
    """
    bare, at, layers = name.rpartition("@layers=")
    if not at:
        return name, 1
    if not (layers.isascii() and layers.isdecimal() and len(layers) < 4):
        raise EverlearnError(
            f"backbone '{printable(name)}': give a number of layers after @layers=, such as {bare}@layers=3"
        )
    return bare, int(layers)


def load_when_needed(name: str) -> Backbone:
    """As `load`, but an encoder on this computer that was loaded before, and has not changed since, is loaded only
    where more is asked of it than what is known of it already: its features, say, that are not in the feature store.

    Raises:
        EverlearnError: as `load`.
    """
    from everlearn.backbones.remembered import files_in, remembered

    if not isinstance(name, str) or not name.isprintable() or len(name) > 4096:
        return load(name)  # which says what is wrong
    if len(parts := parts_of(name)) > 1:
        return _side_by_side(parts, load_when_needed)
    if not (files := _files_of(split_layers(name)[0], files_in)):
        return load(name)
    return remembered(name, files, lambda: load(name))


def parts_of(name: str) -> list[str]:
    """The names of the encoders that are joined by "+" in the name of a backbone; one if none are. What exists as a
    file or folder is one name, whatever is in it.

    >>> parts_of("minilm+minilm@layers=3"), parts_of("vit-tiny@112")
    (['minilm', 'minilm@layers=3'], ['vit-tiny@112'])
    """
    pieces, parts = name.split("+"), []
    while pieces:
        ends = range(len(pieces), 1, -1)
        end = next((end for end in ends if _exists("+".join(pieces[:end]))), 1)
        parts.append("+".join(pieces[:end]))
        pieces = pieces[end:]
    return parts


def absolute(name: str) -> str:
    """The name of a backbone with absolute paths of its files and folders, which means the same from anywhere.

    >>> absolute("minilm+minilm@layers=3")
    'minilm+minilm@layers=3'
    """
    made = []
    for part in parts_of(name):
        path, after = part, ""
        while "@" in path and not Path(path).exists():
            path, at, option = path.rpartition("@")
            after = at + option + after
        is_path = path not in names() and Path(path).exists()
        made.append(str(Path(path).resolve()) + after if is_path else part)
    return "+".join(made)


def _exists(name: str) -> bool:
    """Whether it is a file or folder, without the size and the layers that may follow its name."""
    try:
        return Path(name).exists() or Path(re.sub(r"(@[0-9]+)?(@layers=[^@+]*)?$", "", name)).exists()
    except (OSError, ValueError):  # too long, or with a null character: no name of a file
        return False


def _side_by_side(names: list[str], load_one: Callable[[str], Backbone]) -> Backbone:
    from everlearn.backbones.side_by_side import SideBySide

    return SideBySide([load_one(name) for name in names])


def _files_of(name: str, files_in: Callable[[Path], list[Path]]) -> list[Path]:
    """The files that a backbone is loaded from; none where they are not on this computer, or there are none."""
    from everlearn.backbones import text, vision

    bare = name.split("@")[0]
    if name == "tiny":
        return []
    if name == "minilm":
        spec = importlib.util.find_spec(text.MINILM_PACKAGE)
        folders = spec.submodule_search_locations if spec else None
        return files_in(Path(folders[0]) / "model") if folders else []
    if Path(name).is_dir():
        return files_in(Path(name))
    if "/" in name and not bare.endswith(".safetensors"):
        return []  # on the hub
    file = Path(bare) if bare.endswith(".safetensors") else vision.weights_file(bare)
    return [file] if file is not None and file.is_file() else []


def _load(name: str) -> Backbone:
    from everlearn.backbones import image_text, lit, openclip, text, tiny, vision
    from everlearn.backbones.folder import ModelFolder

    if name == "tiny":
        return tiny.TinyBackbone()
    if name == "minilm":
        return text.minilm()
    if name.startswith(openclip.PREFIX):
        return openclip.load(name)
    bare = name.split("@")[0]
    if bare == "lit" or (bare.endswith(".safetensors") and lit.is_pair(Path(bare))):
        return lit.load(name, load)
    if bare == "vit-tiny" or bare.endswith(".safetensors"):
        return vision.load_timm(name)
    if Path(name).is_dir() or "/" in name:
        folder = ModelFolder(name)
        if folder.is_pair:
            return image_text.load_transformers(folder)
        return vision.load_transformers(folder) if folder.reads_images else text.TextBackbone(folder)
    if "_" in bare and vision.is_timm_name(bare):  # every ViT has "_" in its name; importing timm takes seconds
        return vision.load_timm(name)
    raise EverlearnError(f"unknown backbone '{name}': {HINT}")
