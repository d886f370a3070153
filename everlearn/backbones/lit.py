"""LiT: an image encoder and a text encoder that were trained apart, joined by projections (Zhai et al., 2022)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everlearn.backbones.backbone import Backbone
from everlearn.backbones.image_text import ImageText
from everlearn.backbones.sentences import Dense
from everlearn.backbones.tensors import damaged, in_float32, read_tensors, same_shapes
from everlearn.errors import DataError, EverlearnError
from everlearn.files import write_whole

PREFIX = "lit_"
TOWERS = {"image": "vit-tiny", "text": "minilm"}
"""The encoders of a file that does not name its own."""


class Centre(nn.Module):
    """Takes the mean of the images off each feature, so that cosines tell images apart.

    Args:
        mean: (width,).
    """

    mean: torch.Tensor

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.mean


class Pair(nn.Module):
    """The projections that join an image encoder and a text encoder: everything that LiT trains.

    Args:
        mean: (image width,), the mean of the image features.
        image: (width, image width), or None where images are not projected.
        text: (width, text width) and its bias (width,).
        scale: what cosines are multiplied by before a softmax.

    >>> pair = Pair(torch.zeros(2), None, torch.eye(2), torch.zeros(2), 10.0)
    >>> sorted(pair.tensors())
    ['image_mean', 'logit_scale', 'text_proj.bias', 'text_proj.weight']
    """

    def __init__(
        self, mean: torch.Tensor, image: torch.Tensor | None, text: torch.Tensor, bias: torch.Tensor, scale: float
    ) -> None:
        super().__init__()
        self.centre, self.scale = Centre(mean), scale
        self.image = None if image is None else Dense({"linear.weight": image}, "Identity", False)
        self.text = Dense({"linear.weight": text, "linear.bias": bias}, "Identity", False)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds, by name: the matrices (width, ·) and vectors (width,), in float32."""
        assert self.text.bias is not None
        tensors = {"image_mean": self.centre.mean, "logit_scale": torch.tensor(self.scale),
                   "text_proj.weight": self.text.weight, "text_proj.bias": self.text.bias}  # fmt: skip
        if self.image is not None:
            tensors["image_proj.weight"] = self.image.weight
        return {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}

    def join(self, image: Backbone, text: Backbone, name: str) -> ImageText:
        """The two encoders with these projections after their poolings. The encoders become part of the result."""
        after = [self.centre] if self.image is None else [self.centre, self.image]
        width = len(self.text.weight)
        image.project(*after, width=width)
        text.project(self.text, width=width)
        text.similarity = image.similarity
        return ImageText(image, text, name=name, scale=self.scale)


def is_pair(file: Path) -> bool:
    """Whether a safetensors file holds the projections of a pair of encoders."""
    return "text_proj.weight" in _header(file)[0] if file.is_file() else False


def load(name: str, encoder: Callable[[str], Backbone]) -> ImageText:
    """Load the pair of a safetensors file, or for `lit` the first ``lit_*.safetensors`` of the folder
    EVERLEARN_WEIGHTS. ``@SIZE`` after it sets the size of images in pixels.

    Args:
        encoder: loads the encoder of a name.

    Raises:
        EverlearnError: there is no such file, it is damaged, or was made for other encoders.
    """
    bare, at, size = name.partition("@")
    file = _of_short_name() if bare == "lit" else Path(bare)
    tensors, told = in_float32(read_tensors(file), file), {**TOWERS, **_header(file)[1]}
    image = encoder(told["image"].partition("@")[0] + at + size if at else told["image"])
    text = encoder(told["text"])
    wide = tensors.get("text_proj.weight", torch.empty(0, 0)).shape[0]
    expected: dict[str, Sequence[int]] = {
        "image_mean": [image.width], "text_proj.weight": [wide, text.width], "text_proj.bias": [wide],
        "logit_scale": [],
    }  # fmt: skip
    if "image_proj.weight" in tensors:
        expected["image_proj.weight"] = [wide, image.width]
    elif wide != image.width:
        expected["text_proj.weight"] = [image.width, text.width]
    same_shapes(tensors, expected, file, f"a pair of {told['image']} and {told['text']}")
    if "weights" in told and told["weights"] != weights_of(image, text):
        raise EverlearnError(f"{file}: its projections were trained for other weights of {told['image']} or "
                             f"{told['text']}: take those, or train it again with everlearn lit")  # fmt: skip
    scale = float(tensors["logit_scale"])
    if scale <= 0:
        raise DataError(f"{file}: logit_scale is {scale:g}, which is not above 0: copy the file again")
    pair = Pair(tensors["image_mean"], tensors.get("image_proj.weight"), tensors["text_proj.weight"],
                tensors["text_proj.bias"], scale)  # fmt: skip
    return pair.join(image, text, name)


def save(pair: Pair, file: Path, image: Backbone, text: Backbone) -> None:
    """Write the projections and the names of their encoders, completely or not at all.

    Args:
        image, text: the encoders before they were joined.
    """
    from safetensors.torch import save as to_bytes

    told = {"image": image.name, "text": text.name, "weights": weights_of(image, text)}
    write_whole(file, to_bytes(pair.tensors(), metadata=told))


def weights_of(image: Backbone, text: Backbone) -> str:
    """A hash of the weights of both encoders, whatever the size of the images: positions are stretched to it."""
    weights = [{name: digest for name, digest in tower.digests().items() if not name.endswith("pos_embed")}
               for tower in (image, text)]  # fmt: skip
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def _of_short_name() -> Path:
    folder = os.environ.get("EVERLEARN_WEIGHTS")
    files = sorted(Path(folder).glob(f"{PREFIX}*.safetensors")) if folder else []
    if not files:
        raise EverlearnError("backbone 'lit': there is no lit_*.safetensors in the folder EVERLEARN_WEIGHTS: train one "
                             "with everlearn lit, and give the path of its file")  # fmt: skip
    return files[0]


def _header(file: Path) -> tuple[list[str], dict[str, str]]:
    """The names of the tensors in a safetensors file, and what it says of itself."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            told: dict[str, Any] = opened.metadata() or {}
            return list(opened.keys()), {key: told[key] for key in ("image", "text", "weights") if key in told}
    except Exception as error:  # safetensors has an error of its own, and others for odd headers
        raise damaged(file, error) from error
