"""Image backbones: plain ViTs of timm, and the ViT, DeiT and DINOv2 models of transformers."""

from __future__ import annotations

import importlib.util
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn.backbones.backbone import Hidden, config_hash
from everlearn.backbones.discover import Discovered
from everlearn.backbones.text import first_line, read_json, read_model, unreadable
from everlearn.errors import DataError, EverlearnError
from everlearn.peft.delta import Site
from everlearn.streams.images import pillow
from everlearn.streams.inputs import Input, content

VIT_TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


class VisionBackbone(Discovered):
    """A ViT with its preprocessing: resize the shorter side to size / crop, crop the centre, normalise the pixels.

    Args:
        model: a timm VisionTransformer without a head, or a ViT-like model of transformers.
        name: the name of the backbone.
        size: height and width of the input in pixels.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1]. Wrong values lower the accuracy.
        crop: the share of the resized image that the centre crop keeps.

    Passes without gradients stay in float32. In bfloat16, the features of ViT-Ti turn further away from their float32
    values than those of text encoders do.
    """

    reads = ("image",)

    def __init__(
        self, model: Any, *, name: str, size: int, mean: Sequence[float], std: Sequence[float], crop: float = 1.0
    ) -> None:
        super().__init__(model, name)
        self.is_timm = hasattr(model, "forward_features")
        self.width = model.num_features if self.is_timm else model.config.hidden_size
        self.settings = {"size": size, "mean": list(mean), "std": list(std), "crop": crop,
                         "resize": "bicubic", "pooling": "cls"}  # fmt: skip
        if not self.is_timm:
            self.settings["config"] = config_hash(model.config)

    def prepare(self, inputs: Sequence[Input]) -> torch.Tensor:
        return torch.stack([self._pixels(item) for item in inputs]).to(self.device)

    def _pixels(self, item: Input) -> torch.Tensor:
        image = decode(item)
        size = self.settings["size"]
        shorter = math.floor(size / self.settings["crop"])
        wide, high = (int(shorter * side / min(image.size)) for side in image.size)  # rounded as torchvision does
        image = image.resize((wide, high), 3)  # 3 is bicubic
        left, top = (round((side - size) / 2) for side in (wide, high))
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        pixels = (pixels - np.float32(self.settings["mean"])) / np.float32(self.settings["std"])
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def mask(self, prepared: torch.Tensor) -> torch.Tensor:
        if self.is_timm:
            tokens = self.model.num_prefix_tokens + self.model.patch_embed.num_patches
        else:  # before the patches come the CLS token and, in DeiT, the distillation token
            prefixed = 1 + (getattr(self.model.embeddings, "distillation_token", None) is not None)
            tokens = prefixed + self.model.embeddings.patch_embeddings.num_patches
        return torch.ones(len(prepared), tokens, dtype=torch.long, device=prepared.device)

    def hidden(self, prepared: torch.Tensor) -> Hidden:
        with self.mixed_precision():
            states = self.model.forward_features(prepared) if self.is_timm else self.model(prepared).last_hidden_state
        added = sum(delta.added_tokens for delta in self.active)
        return Hidden(states.float(), torch.ones(states.shape[:2], dtype=torch.long, device=states.device), added)

    def pool(self, hidden: Hidden) -> torch.Tensor:
        return hidden.states[:, 0]

    @property
    def tokens(self) -> Site:
        # timm adds positions and the CLS token in a method; norm_pre is the first module that sees the result.
        embedded = self.model.norm_pre if self.is_timm else self.model.embeddings
        return Site("tokens", embedded, embedded, self.width, self.width)


def decode(item: Input) -> Any:
    """Decode an image, given as bytes or a path, to an RGB Pillow image.

    Raises:
        DataError: it cannot be decoded.
        EverlearnError: Pillow is not installed.
    """
    Image = pillow()
    try:
        with Image.open(io.BytesIO(content(item))) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = f"image {item}" if isinstance(item, Path) else f"an image of {len(content(item))} bytes"
        raise DataError(f"{where} cannot be decoded ({error}): replace or remove it") from error


def load_timm(name: str) -> VisionBackbone:
    """Load a plain ViT of timm by name, from the hub or from a local safetensors file.

    The file is given by its path, or it is looked up by the timm name in the folder EVERLEARN_WEIGHTS.
    """
    bare, _, size = name.partition("@")
    timm = _timm()
    if size and not size.isdigit():
        raise EverlearnError(f"backbone '{name}': give the image size in pixels after @, e.g. {bare}@112")
    file = Path(bare) if bare.endswith(".safetensors") else _weights_file(bare)
    model_name = file.name.split(".")[0] if file else VIT_TINY if bare == "vit-tiny" else bare
    while file and model_name not in timm.list_models() and "_" in model_name:
        model_name = model_name.rsplit("_", 1)[0]  # the names of weights files have tags after the model name
    if file and not file.is_file():
        raise EverlearnError(f"backbone '{name}': no such file")
    try:
        options = {"img_size": int(size)} if size else {}
        model = timm.create_model(model_name, pretrained=file is None, num_classes=0, **options)
    except Exception as error:  # timm and the hub raise many kinds of error; each means that there is no model
        remedy = "set EVERLEARN_WEIGHTS to a folder that holds its safetensors file, or give the path of the file"
        raise unreadable(name, error, remedy) from error
    if not hasattr(model, "blocks") or not hasattr(model, "norm_pre"):
        raise EverlearnError(f"backbone '{name}': {model_name} is not a plain ViT")
    if file is not None:
        _load_weights(model, file)
    known = timm.get_pretrained_cfg(VIT_TINY if model_name.startswith("vit_tiny_patch16_224") else model_name)
    config = timm.data.resolve_data_config(pretrained_cfg=known.to_dict() if known else {}, model=None)
    pixels = int(size) if size else config["input_size"][-1]
    mean, std, crop = config["mean"], config["std"], config["crop_pct"]
    return VisionBackbone(model, name=name, size=pixels, mean=mean, std=std, crop=crop)


def load_transformers(source: str) -> VisionBackbone:
    """Load a ViT, DeiT or DINOv2 model of transformers, by its hub name or from a local folder."""
    try:
        model = read_model(source)
        config = read_json(source, "preprocessor_config.json") or {}
    except (OSError, ValueError) as error:
        raise unreadable(source, error, "give a local folder with config.json and model.safetensors") from error
    half = [0.5, 0.5, 0.5]
    crop = config.get("crop_size") if config.get("do_center_crop") else config.get("size")
    pixels = _side(crop) or model.config.image_size
    resized = _side(config.get("size")) or pixels
    mean, std = config.get("image_mean") or half, config.get("image_std") or half
    return VisionBackbone(model, name=source, size=pixels, mean=mean, std=std, crop=min(1.0, pixels / resized))


def reads_images(source: str) -> bool:
    """Whether the configuration at `source` belongs to an image encoder."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        return False  # the loader that is called next says what is wrong
    return hasattr(config, "patch_size") and hasattr(config, "image_size")


def is_timm_name(name: str) -> bool:
    """Whether timm has a model of this name."""
    return importlib.util.find_spec("timm") is not None and name.split(".")[0] in _timm().list_models()


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except Exception as error:  # a torchvision that does not match torch fails with RuntimeError
        remedy = "install everlearn[vision] (torch and torchvision must match)"
        raise EverlearnError(f"timm could not be imported ({error}): {remedy}") from error
    return timm


def _weights_file(name: str) -> Path | None:
    folder = os.environ.get("EVERLEARN_WEIGHTS")
    prefix = "vit_tiny_patch16_224" if name == "vit-tiny" else name.split(".")[0]
    return next(iter(sorted(Path(folder).glob(f"{prefix}*.safetensors"))), None) if folder else None


def _load_weights(model: Any, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        weights = {name: t.float() for name, t in load_file(file).items() if not name.startswith("head")}
        model.load_state_dict(checkpoint_filter_fn(weights, model))
    except (SafetensorError, OSError, RuntimeError) as error:
        remedy = "it is damaged, incomplete or for another model; download or copy it again"
        raise EverlearnError(f"weights file {file} cannot be used ({first_line(error)}): {remedy}") from error


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        return size.get("shortest_edge") or size.get("height")
    return size
