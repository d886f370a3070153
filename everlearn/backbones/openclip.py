"""CLIP models of open_clip by name: their weights in the layout of transformers, so that all sites are there.

Ilharco, Wortsman, Wightman et al., OpenCLIP, 2021, https://github.com/mlfoundations/open_clip
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from everlearn.backbones.folder import quiet, unreadable
from everlearn.backbones.image_text import ImageText, joined
from everlearn.backbones.tensors import in_float32, read_tensors, same_shapes
from everlearn.errors import EverlearnError

PREFIX = "open_clip:"
SIZES = {"vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
         "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers"}}  # fmt: skip
"""The settings of an architecture that everlearn knows what they compute."""
WEIGHTS = "open_clip_model.safetensors"
REMEDY = (
    "give open_clip:ARCHITECTURE/TAG as open_clip.list_pretrained() names them, or the path of a safetensors file "
    "for TAG"
)

OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.", "visual.ln_post.": "vision_model.post_layernorm.",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
}  # fmt: skip
BLOCKS = {"visual.transformer.resblocks.": "vision_model.encoder.layers.",
          "transformer.resblocks.": "text_model.encoder.layers."}  # fmt: skip
INSIDE = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
          "mlp.c_proj": "mlp.fc2"}  # fmt: skip
"""What transformers calls the parts of a model and of a block, by open_clip's name for them."""


def load(name: str) -> ImageText:
    """Load ``open_clip:ARCHITECTURE/TAG``, such as ``open_clip:ViT-B-32/laion2b_s34b_b79k``. The weights come from
    the hub as safetensors; a path in the place of the tag gives a local file.

    Raises:
        EverlearnError: open_clip is not installed or knows no such model, it is more than a plain ViT and a plain
            text transformer, or its weights cannot be had as safetensors.
    """
    open_clip = _open_clip()
    architecture, _, tag = name.removeprefix(PREFIX).partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None or not tag:
        raise EverlearnError(f"backbone '{name}': open_clip has no such architecture: {REMEDY}")
    others = [f"{part}.{key}" for part, known in SIZES.items() for key in config.get(part, {}) if key not in known]
    others += [key for key in config if key not in ("embed_dim", "quick_gelu", *SIZES)]
    if others or not isinstance(config["vision_cfg"]["layers"], int):
        raise EverlearnError(f"backbone '{name}': {architecture} is not a plain ViT beside a plain text transformer "
                             f"({', '.join(others) or 'layers'}): take one that is, such as ViT-B-32")  # fmt: skip
    known = open_clip.get_pretrained_cfg(architecture, tag)
    file = Path(tag) if tag.endswith(".safetensors") else _download(name, known)
    model = _model(config, bool(known.get("quick_gelu", config.get("quick_gelu", False))))
    weights = converted(in_float32(read_tensors(file), file))
    same_shapes(weights, {key: tensor.shape for key, tensor in model.state_dict().items()}, file, architecture)
    model.load_state_dict(weights)
    told = {"size": config["vision_cfg"]["image_size"], "crop": 1.0,
            "mean": list(known.get("mean", open_clip.OPENAI_DATASET_MEAN)),
            "std": list(known.get("std", open_clip.OPENAI_DATASET_STD))}  # fmt: skip
    if known.get("resize_mode", "shortest") == "squash":
        told["crop"] = None
    return joined(model.eval(), _tokenizer(open_clip, config["text_cfg"]["context_length"]), told, name, file)


def converted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of open_clip under the names and in the layout of transformers: matrices (outputs, inputs)."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        blocks = next((start for start in BLOCKS if name.startswith(start)), None)
        if blocks:
            number, _, part = name.removeprefix(blocks).partition(".")
            place = f"{BLOCKS[blocks]}{number}."
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for head, piece in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{place}self_attn.{head}_proj.{kind}"] = piece.contiguous()
            else:
                inner, _, kind = part.rpartition(".")
                found[f"{place}{INSIDE.get(inner, inner)}.{kind}"] = tensor
        elif name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = (
                tensor.T.contiguous()
            )
        else:
            start = next((start for start in OUTSIDE if name.startswith(start)), "")
            found[OUTSIDE.get(start, "") + name.removeprefix(start)] = tensor
    return found


def _model(config: dict[str, Any], quick: bool) -> Any:
    """The model of transformers with these sizes."""
    from transformers import CLIPConfig, CLIPModel

    vision, text = config["vision_cfg"], config["text_cfg"]
    act = {"hidden_act": "quick_gelu" if quick else "gelu"}
    seen = {"hidden_size": vision["width"], "num_hidden_layers": vision["layers"], "image_size": vision["image_size"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64), "patch_size": vision["patch_size"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)), **act}  # fmt: skip
    read = {"hidden_size": text["width"], "num_hidden_layers": text["layers"], "num_attention_heads": text["heads"],
            "intermediate_size": 4 * text["width"], "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"], **act}  # fmt: skip
    with quiet():
        return CLIPModel(CLIPConfig(vision_config=seen, text_config=read, projection_dim=config["embed_dim"]))


def _tokenizer(open_clip: Any, length: int) -> Any:
    """open_clip's tokens by the tokenizer of transformers."""
    from transformers import CLIPTokenizer

    own = open_clip.tokenizer.SimpleTokenizer()
    names = {own.sot_token_id: "<|startoftext|>", own.eot_token_id: "<|endoftext|>"}
    vocabulary = {names.get(number, token): number for token, number in own.encoder.items()}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks))
    tokenizer.model_max_length = length
    return tokenizer


def _download(name: str, known: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    repository = str(known.get("hf_hub", "")).strip("/")
    if not repository:
        raise EverlearnError(f"backbone '{name}': open_clip has no such weights on the hub, and other files can run "
                             f"code: {REMEDY}")  # fmt: skip
    try:
        return Path(hf_hub_download(repository, WEIGHTS))
    except Exception as error:  # the hub's client and its HTTP library raise many kinds
        raise unreadable(name, error, REMEDY) from error


def _open_clip() -> Any:
    try:
        import open_clip
    except Exception as error:  # a torchvision that does not match torch fails with RuntimeError
        raise EverlearnError(f"open_clip could not be imported ({error}): install everlearn[open-clip] (torch and "
                             "torchvision must match)") from error  # fmt: skip
    return open_clip
