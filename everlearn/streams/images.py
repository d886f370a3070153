"""Images as inputs: folders with one folder per class, and the check that an image can be decoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from everlearn.errors import DataError, EverlearnError
from everlearn.streams.records import SPLIT_NAMES, BadRows, Record, Table

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def pillow() -> Any:
    """The module `PIL.Image`.

    Raises:
        EverlearnError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise EverlearnError("images need Pillow; install it with `pip install everlearn[vision]`") from None
    return Image


def reason_not_decodable(item: str | bytes | Path) -> str | None:
    """Why an image cannot be used, or None if it can be decoded.

    The whole image is decoded, because the header does not show that a file is truncated. JPEG is decoded at an
    eighth of its size, which takes a fraction of the time.
    """
    Image = pillow()
    try:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
            image.draft("L", (8, 8))
            image.load()
    except FileNotFoundError:
        return "there is no such image file"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"the image cannot be decoded ({str(error).split(' <')[0]})"
    return None


def only_decodable(records: list[Record], bad: BadRows) -> list[Record]:
    """The records whose image can be decoded. Every other record is a bad row."""
    good = []
    for record in records:
        reason = reason_not_decodable(record.input)
        if reason is None:
            good.append(record)
        else:
            bad.add(record.place, reason, "replace the image")
    return good


def images_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and _is_visible(p))


def read_image_folder(root: Path, *, by_domain: bool = False) -> Table:
    """Records from `root/class/*.png`, or `root/{train,validation,test}/class/*.png`.

    With `by_domain`, the class folders are in domain folders. The id of an image is its path relative to the root.

    Raises:
        DataError: a class folder has no images, or there are no class folders.
    """
    records = []
    for split, folder in _split_folders(root):
        for domain, parent in [(below.name, below) for below in _folders(folder)] if by_domain else [(None, folder)]:
            for class_folder in _folders(parent):
                for image in _images_of_class(class_folder):
                    name = image.relative_to(root).as_posix()
                    records.append(Record(image, class_folder.name, name, str(image), None, split, domain))
    if not records:
        raise DataError(f"{root}: the folder holds no class folders; arrange it as class/image.png")
    return Table(str(root), "image", records)


def _split_folders(root: Path) -> list[tuple[str | None, Path]]:
    folders = _folders(root)
    if folders and all(folder.name.lower() in SPLIT_NAMES for folder in folders):
        return [(SPLIT_NAMES[folder.name.lower()], folder) for folder in folders]
    return [(None, root)]


def _images_of_class(folder: Path) -> list[Path]:
    images = images_in(folder)
    if not images:
        below = _folders(folder)
        hint = "if it is a domain, set kind=domain-incremental" if below else "put images into it or remove it"
        raise DataError(f"{folder}: no images directly in this class folder; {hint}")
    return images


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and _is_visible(path))


def _is_visible(path: Path) -> bool:
    return not path.name.startswith((".", "_"))
