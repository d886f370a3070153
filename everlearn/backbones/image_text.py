"""Image-text backbones: an image encoder and a text encoder whose features are compared, as in CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.backbone import Backbone, Hidden
from everlearn.backbones.discover import Discovered
from everlearn.backbones.folder import ModelFolder
from everlearn.backbones.identity import config_hash
from everlearn.backbones.sentences import Dense
from everlearn.backbones.text import TextBackbone, vocabulary_hash
from everlearn.backbones.two_towers import TwoTowers
from everlearn.backbones.vision import PREPROCESSOR, VisionBackbone, preprocessing
from everlearn.errors import DataError, EverlearnError
from everlearn.peft.delta import Site
from everlearn.streams.inputs import Input, kind

TEMPLATES = ("a photo of a {}.",)
"""What is said of an image of a class; several give the mean of their features."""


class ImageText(TwoTowers):
    """A pair of encoders in one space: the cosine of an image and a text says how well they go together.

    Radford, Kim, Hallacy et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
    https://arxiv.org/abs/2103.00020. The towers are `towers["image"]` and `towers["text"]`.

    Args:
        image, text: the encoders. Methods that insert something insert it into the first.
        name: as the user wrote it.
        scale: what cosines are multiplied by before a softmax, exp(logit_scale) of CLIP.
        templates: sentences about an image of a class, with {} for its name.

    >>> from everlearn import backbones
    >>> tiny = [backbones.load("tiny") for _ in range(2)]
    >>> pair = ImageText(*tiny, name="pair", scale=20.0)
    >>> pair.class_features(["cat", "dog"]).shape, pair.reads
    (torch.Size([2, 32]), ('text', 'image'))
    """

    is_image_text = True

    def __init__(
        self, image: Backbone, text: Backbone, *, name: str, scale: float, templates: Sequence[str] = TEMPLATES
    ) -> None:
        super().__init__(image=image, text=text)
        self.name, self.scale, self.templates = name, scale, tuple(templates)

    def tower(self, inputs: Sequence[Input]) -> Backbone:
        """The tower of these inputs: texts go to the text tower, even where the image tower could read them."""
        return cast(Backbone, self.towers["text" if inputs and kind(inputs[0]) == "text" else "image"])

    def sentences(self, names: Sequence[str]) -> list[str]:
        """What is said of images of these classes, one class after another: each template with each name."""
        return [template.format(name.replace("_", " ")) for name in names for template in self.templates]

    def class_features(
        self, names: Sequence[str], encode: Callable[[Sequence[Input]], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """(classes, width), each of length 1: the mean feature of the class's sentences.

        Args:
            encode: gives the features of texts; `encode` of the backbone, from the feature store, by default.
        """
        features = F.normalize((encode or self.encode)(self.sentences(names)), dim=1)
        return F.normalize(features.unflatten(0, (len(names), len(self.templates))).mean(1), dim=1)


def as_pair(backbone: Backbone) -> ImageText:
    """The backbone, which must be a pair of an image encoder and a text encoder.

    Raises:
        EverlearnError: it is none.

    >>> from everlearn import backbones
    >>> as_pair(backbones.load("tiny"))
    Traceback (most recent call last):
    everlearn.errors.EverlearnError: backbone 'tiny' is no pair of an image encoder and a text encoder: give --backbone lit, or a CLIP or SigLIP model
    """  # noqa: E501
    if not isinstance(backbone, ImageText):
        raise EverlearnError(f"backbone '{backbone.name}' is no pair of an image encoder and a text encoder: give "
                             "--backbone lit, or a CLIP or SigLIP model")  # fmt: skip
    return backbone


class _Image(VisionBackbone):
    """The image tower of CLIP or SigLIP. Its features are those that are compared, not yet of length 1."""

    def __init__(self, model: Any, projection: Dense | None, name: str, **preprocessing: Any) -> None:
        super().__init__(model, name=name, **preprocessing)
        self.is_clip = projection is not None
        if projection is not None:
            self.project(projection, width=len(projection.weight))
        else:
            model.use_head = False  # it is called in `pool`
            self.settings["pooling"] = "attention"

    def mask(self, prepared: torch.Tensor) -> torch.Tensor:
        tokens = self.model.embeddings.num_patches + self.is_clip
        return torch.ones(len(prepared), tokens, dtype=torch.long, device=prepared.device)

    def pool(self, hidden: Hidden) -> torch.Tensor:
        if self.is_clip:
            return self.after(self.model.post_layernorm(hidden.states[:, 0]))
        return self.after(self.model.head(hidden.states[:, : hidden.states.shape[1] - hidden.prompts]))

    @property
    def tokens(self) -> Site:
        embedded = self.model.pre_layrnorm if self.is_clip else self.model.embeddings
        return Site("tokens", embedded, embedded, self.hidden_width, self.hidden_width)


class _Text(TextBackbone):
    """The text tower of CLIP or SigLIP. The state of the last token is projected; SigLIP's texts are all filled up to
    one length, as in its training."""

    def __init__(self, model: Any, tokenizer: Any, projection: Dense, name: str, fills: bool) -> None:
        Discovered.__init__(self, model, name)
        self.tokenizer, self.fills = tokenizer, fills
        self.width, self.prompts = self.hidden_width, dict.fromkeys((None, "query", "document"), "")
        self.settings = {
            "max_length": min(self.tokenizer.model_max_length, model.config.max_position_embeddings),
            "lower_case": False, "prompt": "", "pools_prompt": True, "pooling": ["lasttoken"], "fills": self.fills,
            "tokenizer": vocabulary_hash(self.tokenizer), "config": config_hash(model.config),
        }  # fmt: skip
        self.project(projection, width=projection.weight.shape[0])
        self._known: dict[str, list[int]] = {}
        self.precision = self.training_precision
        self.requires_grad_(False)

    def prepare(self, inputs: Sequence[Input]) -> dict[str, torch.Tensor]:
        prepared = super().prepare(inputs)
        if not self.fills:
            return prepared
        ids = prepared["input_ids"]
        ids = F.pad(ids, (0, self.settings["max_length"] - ids.shape[1]), value=self.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        lengths = super().lengths(inputs)
        return [self.settings["max_length"]] * len(lengths) if self.fills else lengths

    @property
    def words(self) -> Site:
        embedding = self.model.embeddings.token_embedding
        return Site("words", embedding, embedding, self.hidden_width, self.hidden_width)

    @property
    def tokens(self) -> Site:
        if not self.fills:
            raise EverlearnError(f"the texts of backbone '{self.name}' are read from left to right, so tokens after "
                                 "the last one change nothing: use a method that puts no prompts on texts")  # fmt: skip
        return super().tokens


def load_transformers(folder: ModelFolder) -> ImageText:
    """Load the CLIP or SigLIP model of transformers in the folder.

    Raises:
        EverlearnError: a file is missing or damaged, or the files do not fit together.
    """
    if not (folder.path / PREPROCESSOR).exists():
        raise DataError(f"{folder.path / PREPROCESSOR} does not exist, and without it nobody knows the mean and the "
                        "size of its images: copy it from the model's page")  # fmt: skip
    model = folder.model()
    told = preprocessing(folder, model.config.vision_config.image_size)
    return joined(model, folder.tokenizer(), told, folder.source, folder.path)


def joined(model: Any, tokenizer: Any, told: dict[str, Any], name: str, where: Path) -> ImageText:
    """The two towers of a CLIP or SigLIP model of transformers.

    Args:
        told: the preprocessing of images, as `vision.preprocessing` gives it.
        where: the file or folder that a message names.

    Raises:
        EverlearnError: the model cannot run.
    """
    is_siglip = model.config.model_type == "siglip"
    if is_siglip:
        told, projection, words = {**told, "crop": None}, None, model.text_model.head
        model.text_model.head = nn.Identity()
    else:
        projection, words = _dense(model.visual_projection), model.text_projection
    image = _Image(model.vision_model, projection, name, **told)
    image.check_forward(torch.zeros(1, 3, told["size"], told["size"]), where)
    text = _Text(model.text_model, tokenizer, _dense(words), name, fills=is_siglip)
    text.check_forward(text.prepare(["a word"]), where)
    return ImageText(image, text, name=name, scale=float(model.logit_scale.detach().exp()))


def _dense(layer: nn.Linear) -> Dense:
    tensors = {"linear.weight": layer.weight.detach()}
    return Dense(tensors if layer.bias is None else {**tensors, "linear.bias": layer.bias.detach()}, "Identity", False)
