"""Augmented streams: views are functions of image and seed, and only training sees them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import everlearn
from everlearn import backbones, streams
from everlearn.batches import Batches
from everlearn.errors import EverlearnError
from everlearn.features import FeatureStore, using_store
from everlearn.memory.memory import Memory
from everlearn.streams.inputs import content, original
from everlearn.streams.stream import Examples
from everlearn.streams.views import View


def gradient(width: int = 40, height: int = 30) -> bytes:
    """A PNG whose red grows to the right and whose green grows downwards."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns * 255 // (width - 1), rows * 255 // (height - 1), 0 * rows], axis=-1).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def pixels_of(view: View) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content(view))), dtype=int)


def test_a_view_is_a_function_of_image_and_seed(tmp_path):
    image = gradient()
    (tmp_path / "image.png").write_bytes(image)
    assert content(View(image, 3)) == content(View(image, 3)) == content(View(tmp_path / "image.png", 3))
    assert len({content(View(image, seed)) for seed in range(20)}) == 20


def test_a_view_is_a_crop_and_half_of_the_views_are_mirrored():
    shares, mirrored = [], 0
    for seed in range(200):
        pixels = pixels_of(View(gradient(), seed))
        assert pixels.shape == (40, 40, 3)
        across, down = (
            pixels[:, -1, 0].mean() - pixels[:, 0, 0].mean(),
            pixels[-1, :, 1].mean() - pixels[0, :, 1].mean(),
        )
        assert down > 0, "never upside down"
        mirrored += across < 0
        shares.append(abs(across) / 255 * down / 255)
    assert 70 < mirrored < 130
    assert min(shares) < 0.15 and max(shares) > 0.75  # of the area, less what the edges are wide
    assert 0.35 < np.mean(shares) < 0.6


def test_every_epoch_has_new_views_and_batch_k_is_the_same_whenever_it_is_drawn():
    examples = Examples([gradient()] * 4, torch.tensor([0, 1, 0, 1]), list("abcd"))
    batches = Batches(examples, epochs=2, size=2, seed=0, augment=True)
    seeds = [item.seed for batch in batches for item in batch.inputs]
    assert len(set(seeds)) == 8
    again = Batches(examples, epochs=2, size=2, seed=0, augment=True)[3]
    assert [item.seed for item in again.inputs] == seeds[6:]


def test_memories_queries_and_stored_features_are_of_the_image_itself(tmp_path):
    tiny, image = backbones.load("tiny"), gradient()
    memory = Memory(2)
    memory.add(Examples([View(image, 1)], torch.tensor([0]), ["a"]))
    assert memory.examples().inputs == [image] and original(View(image, 1)) is image
    with using_store(FeatureStore(tmp_path)):
        assert torch.equal(tiny.encode([View(image, 1)]), tiny.encode([image]))
    assert not torch.equal(tiny([View(image, 1)]), tiny([image]))


def test_an_augmented_run_asks_each_query_once_and_tests_on_images_as_they_are(tmp_path):
    stream = {"name": "digits", "max_train_per_class": 6, "max_test_per_class": 4, "tasks": 2}
    with using_store(FeatureStore(tmp_path)):
        plain = everlearn.run({"name": "l2p", "epochs": 3}, stream, backbone="tiny", seed=0)
        augmented = everlearn.run({"name": "l2p", "epochs": 3}, {**stream, "augment": True}, backbone="tiny", seed=0)
    assert plain.results["examples_encoded"] == 100 and augmented.results["examples_encoded"] == 0
    assert plain.results["fingerprint"] != augmented.results["fingerprint"]


@pytest.mark.parametrize("method", ["er", "lwf", "joint", "slca"])
def test_methods_learn_from_views_and_repeat_them(method, monkeypatch):
    seen: list[int] = []
    real = View.content
    monkeypatch.setattr(View, "content", lambda view: seen.append(view.seed) or real(view))
    stream = {"name": "digits", "max_train_per_class": 4, "max_test_per_class": 2, "tasks": 2, "augment": True}
    first = everlearn.run({"name": method, "epochs": 1}, stream, backbone="tiny")
    once = list(seen)
    second = everlearn.run({"name": method, "epochs": 1}, stream, backbone="tiny")
    assert len(once) >= 16 and seen == once * 2
    assert first.results["accuracy_matrix"] == second.results["accuracy_matrix"]


def test_texts_have_no_views():
    with pytest.raises(EverlearnError, match="augment makes views of images"):
        streams.load("clinc150", augment=True)
