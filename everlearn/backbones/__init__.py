"""Backbones: pre-trained encoders with named sites. `load(name)` loads one; `names()` lists the short names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import EverlearnError, one_line, printable

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone

_NAMES = {
    "minilm": "all-MiniLM-L6-v2 sentence encoder, 22.7 M parameters, width 384 (extra: offline)",
    "vit-tiny": "ViT-Ti/16 of timm, 5.5 M parameters, width 192; vit-tiny@112 reads 112-pixel images (extra: vision)",
    "tiny": "two transformer blocks with random weights, width 32, for tests with texts or images",
}

HINT = (
    f"give one of {', '.join(_NAMES)}, the name of a timm ViT (needs the extra 'vision'), a hub name such as "
    "owner/model, or the path of a folder or safetensors file"
)


def names() -> dict[str, str]:
    """The short names and what they stand for. `load` also accepts any transformers encoder or plain timm ViT by
    its hub name or timm name, a local folder, or a safetensors file named after its timm model."""
    return dict(_NAMES)


def default_for(input: str) -> str:
    """The short name of the default backbone for inputs of this kind."""
    return "vit-tiny" if input == "image" else "minilm"


def load(name: str) -> Backbone:
    """Load the backbone called `name`, frozen and in evaluation mode.

    Args:
        name: a short name, a hub name (``owner/model``), a timm name (``vit_small_patch16_224``),
            a folder in transformers' format, or a ``.safetensors`` file whose name begins with the name of
            its timm model. ``@SIZE`` after a timm ViT sets the image size in pixels.

    Raises:
        EverlearnError: it does not exist or cannot be read; the message says what to give instead.

    >>> load("tiny").width
    32
    """
    if not name.isprintable() or len(name) > 4096:  # the longest path
        raise EverlearnError(f"unknown backbone '{printable(name)}': {HINT}")
    with one_line(f"backbone '{name}'", "give the path of a folder that transformers has saved", EverlearnError):
        return _load(name)


def _load(name: str) -> Backbone:
    from everlearn.backbones import text, tiny, vision
    from everlearn.backbones.folder import ModelFolder

    if name == "tiny":
        return tiny.TinyBackbone()
    if name == "minilm":
        return text.minilm()
    bare = name.split("@")[0]
    if bare == "vit-tiny" or bare.endswith(".safetensors"):
        return vision.load_timm(name)
    if Path(name).is_dir() or "/" in name:
        folder = ModelFolder(name)
        return vision.load_transformers(folder) if folder.reads_images else text.TextBackbone(folder)
    if "_" in bare and vision.is_timm_name(bare):  # every ViT has "_" in its name; importing timm takes seconds
        return vision.load_timm(name)
    raise EverlearnError(f"unknown backbone '{name}': {HINT}")
