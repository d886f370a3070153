"""Image backbones: plain ViTs of timm, and the ViT, DeiT and DINOv2 models of transformers."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everlearn.backbones.backbone import Hidden
from everlearn.backbones.crops import Crops
from everlearn.backbones.discover import Discovered
from everlearn.backbones.folder import CONFIG, ModelFolder, unreadable
from everlearn.backbones.identity import config_hash
from everlearn.backbones.tensors import in_float32, read_tensors, same_shapes
from everlearn.errors import DataError, EverlearnError, one_line, printable
from everlearn.peft.delta import Site
from everlearn.streams.images import decode
from everlearn.streams.inputs import Input

VIT_TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
LARGEST = 2048  # pixels of the side of an image
PREPROCESSOR = "preprocessor_config.json"
RESIZING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The ways to resize an image, each at the place of the number that Pillow and transformers have for it."""


class VisionBackbone(Discovered):
    """A ViT with its preprocessing: resize the shorter side to size / crop, crop the centre, normalise the pixels.

    Args:
        model: a timm VisionTransformer without a head, or a ViT-like model of transformers.
        name: the name of the backbone.
        size: height and width of the input in pixels.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1]. Wrong values lower the accuracy.
        crop: the share of the resized image that the centre crop keeps; None resizes height and width to `size`
            without a crop.
        squash: whether height and width are resized to the same length before the crop, and not the shorter side.
        resize: one of RESIZING.

    Passes without gradients stay in float32. In bfloat16, the features of ViT-Ti turn further away from their float32
    values than those of text encoders do.
    """

    reads = ("image",)

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop: float | None = 1.0,
        squash: bool = False,
        resize: str = "bicubic",
    ) -> None:
        super().__init__(model, name)
        self.is_timm = hasattr(model, "forward_features")
        self.width = model.num_features if self.is_timm else model.config.hidden_size
        pooling = getattr(model, "global_pool", "token") if self.is_timm else "token"
        self.settings = {"size": size, "mean": list(mean), "std": list(std), "crop": crop,
                         "resize": resize, "pooling": "cls" if pooling == "token" else pooling}  # fmt: skip
        self._crops = Crops()
        if squash:
            self.settings["squash"] = True
        if not self.is_timm:
            self.settings["config"] = config_hash(model.config)

    def prepare(self, inputs: Sequence[Input]) -> torch.Tensor:
        keep = not self.is_frozen  # features of a frozen encoder are stored, and their images are not asked for again
        crops = [self._crops.crop(item, self._cut, keep) for item in inputs]
        pixels = torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2).contiguous().float().div_(255)
        mean, std = (pixels.new_tensor(self.settings[name])[:, None, None] for name in ("mean", "std"))
        return pixels.sub_(mean).div_(std)

    def _cut(self, item: Input) -> np.ndarray:
        """The centre (size, size, 3) of the resized image, with one byte a colour."""
        image, size, crop = decode(item), self.settings["size"], self.settings["crop"]
        shorter = math.floor(size / (crop or 1.0))
        if crop is None or self.settings.get("squash"):  # all of the image, whatever its shape
            wide = high = shorter
        else:
            wide, high = (int(shorter * side / min(image.size)) for side in image.size)  # rounded as torchvision does
        image = image.resize((wide, high), RESIZING.index(self.settings["resize"]))
        left, top = (round((side - size) / 2) for side in (wide, high))
        return np.asarray(image.crop((left, top, left + size, top + size)))

    def mask(self, prepared: torch.Tensor) -> torch.Tensor:
        if self.is_timm:
            tokens = self.model.num_prefix_tokens + self.model.patch_embed.num_patches
        else:  # before the patches come the CLS token and, in DeiT, the distillation token, in DINOv2 registers
            prefixed = 1 + (getattr(self.model.embeddings, "distillation_token", None) is not None)
            prefixed += getattr(self.model.config, "num_register_tokens", 0)
            tokens = prefixed + self.model.embeddings.patch_embeddings.num_patches
        return torch.ones(len(prepared), tokens, dtype=torch.long, device=prepared.device)

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        return [self.mask(torch.empty(1)).shape[1]] * len(inputs)

    def hidden(self, prepared: torch.Tensor) -> Hidden:
        with self.mixed_precision():
            states = self.model.forward_features(prepared) if self.is_timm else self.model(prepared).last_hidden_state
        added = sum(delta.added_tokens for delta in self.active)
        return Hidden(states.float(), torch.ones(states.shape[:2], dtype=torch.long, device=states.device), added)

    def pool(self, hidden: Hidden) -> torch.Tensor:
        if self.settings["pooling"] == "cls":
            return self.after(hidden.states[:, 0])
        states = hidden.states[:, : hidden.states.shape[1] - hidden.prompts]
        return self.after(self.model.forward_head(states, pre_logits=True))  # a ViT of timm without a class token

    @property
    def tokens(self) -> Site:
        # timm adds positions and the CLS token in a method; norm_pre is the first module that sees the result.
        embedded = self.model.norm_pre if self.is_timm else self.model.embeddings
        return Site("tokens", embedded, embedded, self.hidden_width, self.hidden_width)


def load_timm(name: str) -> VisionBackbone:
    """Load a plain ViT of timm by name, from the hub or from a local safetensors file.

    The file is given by its path, or it is looked up by the timm name in the folder EVERLEARN_WEIGHTS.

    Raises:
        EverlearnError: there is no such model or file, the file is damaged, or the size does not suit the model.
    """
    bare, at, size = name.partition("@")
    timm = _timm()
    if at and not (size.isascii() and size.isdecimal() and len(size) <= 4 and 1 <= int(size) <= LARGEST):
        raise EverlearnError(f"backbone '{name}': give the image size in pixels after @, from 1 to {LARGEST}, e.g. "
                             f"{bare}@112")  # fmt: skip
    file = Path(bare) if bare.endswith(".safetensors") else weights_file(bare)
    if file and not file.exists():
        raise EverlearnError(f"backbone '{name}': no such file")
    model_name = file.name.split(".")[0] if file else VIT_TINY if bare == "vit-tiny" else bare
    while file and model_name not in timm.list_models() and "_" in model_name:
        model_name = model_name.rsplit("_", 1)[0]  # the names of weights files have tags after the model name
    if model_name.split(".")[0] not in timm.list_models():  # timm also takes names that fetch from anywhere
        raise EverlearnError(f"backbone '{name}': no model of timm is called '{model_name}': name the file after its "
                             "timm model, such as vit_small_patch16_224.safetensors")  # fmt: skip
    known = timm.get_pretrained_cfg(VIT_TINY if model_name.startswith("vit_tiny_patch16_224") else model_name)
    options: dict[str, Any] = {"img_size": int(size)} if size else {}
    try:
        if file is None:  # timm gets the file that was checked, so it neither fetches nor unpickles another one
            downloaded = _download(known)
            in_float32(read_tensors(downloaded), downloaded)
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(downloaded), "custom_load": False}}
        model = timm.create_model(model_name, num_classes=0, **options)
    except EverlearnError:
        raise
    except Exception as error:  # timm and the hub raise many kinds of error; each means that there is no model
        remedy = "set EVERLEARN_WEIGHTS to a folder that holds its safetensors file, or give the path of the file"
        raise unreadable(name, error, remedy) from error
    if not hasattr(model, "blocks") or not hasattr(model, "norm_pre"):
        raise EverlearnError(f"backbone '{name}': {model_name} is not a plain ViT")
    if file is not None:
        _load_weights(model, file, model_name)
    config = timm.data.resolve_data_config(pretrained_cfg=known.to_dict() if known else {}, model=None)
    pixels, patch = int(size) if size else config["input_size"][-1], max(model.patch_embed.patch_size)
    if pixels % patch:
        raise EverlearnError(f"backbone '{name}': an image of {pixels} pixels cannot be cut into patches of {patch}: "
                             f"give a multiple of {patch} after @")  # fmt: skip
    return VisionBackbone(model, name=name, size=pixels, mean=config["mean"], std=config["std"],
                          crop=config["crop_pct"], squash=config["crop_mode"] == "squash",
                          resize=config["interpolation"])  # fmt: skip


def load_transformers(folder: ModelFolder) -> VisionBackbone:
    """Load the ViT, DeiT or DINOv2 model of transformers in the folder.

    Raises:
        EverlearnError: a file is missing or damaged, or the files do not fit together.
    """
    told = preprocessing(folder, folder.config.image_size)
    backbone = VisionBackbone(folder.model(), name=folder.source, **told)
    if not any(name.endswith(("cls_token", "class_embedding")) for name, _ in backbone.named_parameters()):
        raise DataError(f"{folder.path / CONFIG}: a model of the type {folder.config.model_type} has no class token, "
                        "whose state is the feature of an image: take another model")  # fmt: skip
    backbone.check_forward(torch.zeros(1, 3, told["size"], told["size"]), folder.path)
    return backbone


def preprocessing(folder: ModelFolder, image_size: int) -> dict[str, Any]:
    """The preprocessing of a `VisionBackbone`, as the folder's preprocessor_config.json says, whose processor in
    transformers gives the same pixels.

    Args:
        image_size: in pixels, where the file does not say it.

    Raises:
        DataError: a value in it cannot be what it should be, or asks for pixels that everlearn does not compute.
    """
    told, half = folder.read_json(PREPROCESSOR), [0.5, 0.5, 0.5]
    for name, fits in PREPROCESSING.items():
        if told.get(name) is not None and not fits(told[name]):
            raise DataError(f"{folder.path / PREPROCESSOR}: {name} is {printable(told[name], 60)}: copy the file again")
    for name, is_usual in USUAL.items():
        if told.get(name) is not None and not is_usual(told[name]):
            raise DataError(f"{folder.path / PREPROCESSOR}: {name} is {printable(told[name], 60)}, and everlearn would "
                            "compute other pixels than transformers: take another model")  # fmt: skip
    if told.get("do_normalize") is False:
        told |= {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    is_cropped, wanted = told.get("do_center_crop"), told.get("size")
    pixels = _side(told.get("crop_size") if is_cropped else wanted) or image_size
    share = min(1.0, pixels / (_side(wanted) or pixels))
    # A height and a width are those of the whole image; a plain number is in old files, and means both without a crop.
    is_whole = "height" in wanted if isinstance(wanted, dict) else wanted is not None and not is_cropped
    return {
        "size": pixels, "mean": told.get("image_mean") or half, "std": told.get("image_std") or half,
        "crop": None if is_whole and share == 1 else share, "squash": is_whole and share < 1,
        "resize": "bicubic" if told.get("resample") is None else RESIZING[told["resample"]],
    }  # fmt: skip


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


def weights_file(name: str) -> Path | None:
    """The safetensors file of a timm model in the folder EVERLEARN_WEIGHTS; None where there is none."""
    folder = os.environ.get("EVERLEARN_WEIGHTS")
    if not folder:
        return None
    prefix = "vit_tiny_patch16_224" if name == "vit-tiny" else name.split(".")[0]
    with one_line("the folder EVERLEARN_WEIGHTS", "set it to the folder of the weights, or unset it", EverlearnError):
        files = sorted(Path(folder).iterdir())
    return next((file for file in files if file.name.startswith(prefix) and file.suffix == ".safetensors"), None)


def _download(known: Any) -> Path:
    """The safetensors file of a timm model, from the hub or, if it was downloaded before, from this computer."""
    from huggingface_hub import hf_hub_download

    if not getattr(known, "hf_hub_id", None):
        raise EverlearnError("timm has no weights of this model on the hub: give the path of a safetensors file")
    # timm names the pickle file; the safe one beside it is model.safetensors or open_clip_model.safetensors.
    stem = Path(known.hf_hub_filename or "pytorch_model.bin").stem
    return Path(hf_hub_download(known.hf_hub_id, f"{stem.replace('pytorch_', '')}.safetensors"))


def _load_weights(model: Any, file: Path, model_name: str) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    tensors = {name: tensor for name, tensor in read_tensors(file).items() if not name.startswith("head")}
    with one_line(file, "it is for another model; download or copy it again"):
        weights = checkpoint_filter_fn(in_float32(tensors, file), model)
    same_shapes(weights, {name: t.shape for name, t in model.state_dict().items()}, file, model_name)
    model.load_state_dict(weights)


def _side(size: Any) -> int | None:
    """The side in pixels of a size of transformers, or None if it is not one."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if type(size) is int and 1 <= size <= LARGEST else None


def _colours(values: Any) -> bool:
    """Whether these are three numbers, one of each colour."""
    return isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values)


PREPROCESSING: dict[str, Callable[[Any], Any]] = {
    "image_mean": lambda mean: _colours(mean) and max(map(abs, mean)) < 1e3,
    "image_std": lambda std: _colours(std) and min(std) > 1e-3 and max(std) < 1e3,
    "size": _side, "crop_size": _side, "do_center_crop": lambda crop: type(crop) is bool,
    "do_normalize": lambda does: type(does) is bool,
    "resample": lambda number: type(number) is int and 0 <= number < len(RESIZING),
}  # fmt: skip
"""What is read of preprocessor_config.json, and whether a value can be what it should be."""
USUAL: dict[str, Callable[[Any], Any]] = {
    "do_resize": lambda does: does is True, "do_rescale": lambda does: does is True,
    "rescale_factor": lambda factor: type(factor) is float and math.isclose(factor, 1 / 255, rel_tol=1e-5),
}  # fmt: skip
"""What else decides about pixels, and whether a value is the only one that everlearn computes with."""
