"""Images as cameras, scanners and microscopes write them become upright RGB with 8 bits per colour."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from everlearn import streams
from everlearn.errors import DataError
from everlearn.streams.images import ORIENTATION, decode, reason_not_decodable


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_sixteen_bits_of_grey_are_not_cut_off_at_255():
    shades = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    for kind in ("PNG", "TIFF", "PPM"):
        found = np.asarray(decode(encoded(Image.fromarray(shades), kind)))
        assert (found == (shades // 256)[..., None]).all(), kind


@pytest.mark.parametrize("pixels", [np.linspace(0, 1, 12, dtype=np.float32), np.arange(12, dtype=np.int32)])
def test_pixels_of_which_nobody_knows_the_white_are_refused(pixels: np.ndarray):
    data = encoded(Image.fromarray(pixels.reshape(3, 4)), "TIFF")
    assert "nobody knows which of them is white" in reason_not_decodable(data).args[0]
    with pytest.raises(DataError, match="save it with 8 or 16 bits per colour"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photograph_stands_as_a_viewer_shows_it(kind: str):
    rows, columns = np.mgrid[:16, :24]
    plain = Image.fromarray(np.stack([columns * 10, rows * 15, 0 * rows], axis=-1).astype(np.uint8))
    for turn in range(1, 9):
        exif = plain.getexif()
        exif[ORIENTATION] = turn
        data = encoded(plain, kind, exif=exif)
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert decode(data).size == shown.size == ((16, 24) if turn > 4 else (24, 16))
        assert (np.asarray(decode(data)) == np.asarray(shown.convert("RGB"))).all(), turn


def test_a_turned_image_of_sixteen_bits_and_damaged_exif_data():
    shades = Image.fromarray(np.arange(0, 60_000, 2500).astype(np.uint16).reshape(4, 6))
    exif = shades.getexif()
    exif[ORIENTATION] = 6
    for kind in ("PNG", "TIFF"):
        found = np.asarray(decode(encoded(shades, kind, exif=exif)))[..., 0]
        assert (found == np.rot90(np.asarray(shades) // 256, -1)).all(), kind
    damaged = encoded(Image.new("L", (6, 4)), "JPEG", exif=b"Exif\0\0II*\0\xff")
    assert decode(damaged).size == (6, 4) and reason_not_decodable(damaged) is None


@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
@pytest.mark.parametrize("domains", [("",), ("photo/", "sketch/")])
def test_images_outside_of_class_folders_are_counted(tmp_path: Path, splits: tuple[str, ...], domains: tuple[str, ...]):
    image, options = encoded(Image.new("L", (4, 4))), {"kind": "domain-incremental"} if len(domains) > 1 else {}
    for folder in (f"{split}{domain}{name}" for split in splits for domain in domains for name in ("cat", "dog")):
        (tmp_path / folder / "young").mkdir(parents=True)
        (tmp_path / folder / "back").symlink_to(tmp_path)
        for i in range(4):
            (tmp_path / folder / f"{i}.png").write_bytes(image + bytes([i]))
    assert streams.load(tmp_path, **options).notes == ()
    (tmp_path / splits[0] / domains[0] / "cat" / "young" / "5.png").write_bytes(image)
    (tmp_path / splits[0] / domains[0] / "6.png").write_bytes(image)
    (note,) = streams.load(tmp_path, **options).notes
    assert "not directly in a class folder were left out: 2, the first is" in note and note.endswith("6.png")
