"""Small random models of every architecture, and inputs for them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

TEXTS = ["word1 word2 word3 word4 word5", "word7"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 55, "max_position_embeddings": 40, "pad_token_id": 0}
IMAGE = {"image_size": 32, "patch_size": 8}
ARCHITECTURES = {
    "bert": ("Bert", {**SMALL, **TEXT}),
    "distilbert": ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, **TEXT}),
    "mpnet": ("MPNet", {**SMALL, **TEXT}),
    "roberta": ("Roberta", {**SMALL, **TEXT}),
    "modernbert": ("ModernBert", {**SMALL, **TEXT, "cls_token_id": 2, "sep_token_id": 3,
                                  "bos_token_id": 2, "eos_token_id": 3}),
    "vit": ("ViT", {**SMALL, **IMAGE}),
    "deit": ("DeiT", {**SMALL, **IMAGE}),
    "dinov2": ("Dinov2", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2,
                          **IMAGE}),
    "registers": ("Dinov2WithRegisters", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                                          "mlp_ratio": 2, "num_register_tokens": 3, **IMAGE}),
}  # fmt: skip
IMAGE_KINDS = ("vit", "deit", "dinov2", "registers", "timm", "vit-tiny")
KINDS = ("tiny", "minilm", *ARCHITECTURES, "timm", "vit-tiny")


def png(seed: int, width: int = 40, height: int = 40) -> bytes:
    """A random colour image."""
    from PIL import Image

    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_model(kind: str, folder: Path) -> None:
    """A random model of an architecture, as transformers saves it."""
    import transformers

    name, settings = ARCHITECTURES[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
    model.save_pretrained(folder)
    if kind not in IMAGE_KINDS:
        _save_tokenizer(folder)


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*special.values(), *(f"word{i}" for i in range(50))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
