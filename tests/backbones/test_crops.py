"""The crops of images: kept while the encoder is trained, within their memory, and the same as made anew."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image

from everlearn.backbones import vision
from everlearn.backbones.crops import Crops
from everlearn.errors import DataError
from everlearn.streams import images


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def crop_of(item) -> np.ndarray:
    return np.full((2, 2, 3), item[0], dtype=np.uint8)


@pytest.fixture
def encoder(monkeypatch):
    """A small ViT with random weights, and the images that it has decoded."""
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=1)
    encoder = vision.VisionBackbone(net, name="small", size=32, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], crop=0.9)
    decoded = []
    monkeypatch.setattr(vision, "decode", lambda item: decoded.append(item) or images.decode(item))
    return encoder, decoded


def test_an_encoder_that_is_trained_decodes_each_image_once(encoder):
    encoder, decoded = encoder
    three = [png(0), png(1), png(0)]
    encoder.requires_grad_(False)
    frozen = encoder.prepare(three)
    assert len(decoded) == 3 and not len(encoder._crops)
    encoder.requires_grad_(True)
    trained = [encoder.prepare(three) for _ in range(3)]
    assert len(decoded) == 5
    assert all(torch.equal(frozen, pixels) and pixels.is_contiguous() for pixels in trained)


def test_pixels_are_normalised_by_channel(encoder):
    encoder, _ = encoder
    pixels = encoder.prepare([png(0)])[0].double().numpy()
    crop = encoder._cut(png(0)).astype(np.float64) / 255
    np.testing.assert_allclose(pixels, ((crop - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).transpose(2, 0, 1), atol=1e-6)


def test_a_copied_encoder_shares_the_crops(encoder):
    encoder, decoded = encoder
    encoder.requires_grad_(True).prepare([png(0)])
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    teacher.prepare([png(0)])
    assert len(decoded) == 1


@pytest.mark.parametrize("room", [0, 11, 12, 24, 60])
def test_crops_stay_within_their_memory(room):
    crops = Crops(most_bytes=room)
    for number in [0, 1, 2, 3, 2, 1, 0] * 20:
        assert crops.crop(bytes([number]), crop_of)[0, 0, 0] == number
        assert sum(crop.nbytes for crop in crops._kept.values()) <= room
        assert set(crops._keys) == set(crops._kept) and len(crops._keys) == len(crops)
    assert len(crops) == min(room // 12, 4)


def test_epochs_through_more_images_than_there_is_room_for_find_some():
    crops, made = Crops(most_bytes=12 * 50), []
    for _ in range(10):
        for number in range(100):
            crops.crop(bytes([number]), lambda item: made.append(item) or crop_of(item))
    # A share h of the crops outlives an epoch, h = exp(-2 (1 - h)) = 0.203. If the oldest one went, none would.
    assert len(made) == pytest.approx(100 + 900 * (1 - 0.203), rel=0.03)


def test_an_image_that_cannot_be_decoded_is_refused_every_time(encoder):
    encoder, _ = encoder
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be decoded"):
            encoder.prepare([b"no image"])


def test_without_crops_an_image_that_is_not_kept_is_read_once(monkeypatch):
    monkeypatch.setattr("everlearn.backbones.crops.content_key", lambda item: pytest.fail("read for its key"))
    assert Crops().crop(b"a", crop_of, keep=False).shape == (2, 2, 3)
