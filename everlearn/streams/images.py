"""Images as inputs: folders with one folder per class, and the check that an image can be decoded."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from everlearn.errors import DataError, EverlearnError, one_line, printable
from everlearn.streams import limits
from everlearn.streams.cells import BadCell, check_name
from everlearn.streams.inputs import Input, content
from everlearn.streams.records import SPLIT_NAMES, BadRows, Record, Table

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""The formats of files with these endings, as Pillow calls them. Images of other formats are not opened."""
REMEDY = "replace or remove it"
ORIENTATION = 274
"""The EXIF tag that says how a camera was held."""
UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
           7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
"""What turns an image upright, by the value of that tag."""


def pillow() -> Any:
    """The module `PIL.Image`.

    Raises:
        EverlearnError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise EverlearnError("images need Pillow; install it with `pip install 'everlearn[vision]'`") from None
    return Image


@contextmanager
def opened(data: bytes) -> Iterator[Any]:
    """The image, of which only the header has been read; the block may decode it. Only the first frame is used.

    Raises:
        BadCell: the image is of another format, too large or too narrow, or the block cannot decode it.
        EverlearnError: Pillow is not installed.
    """
    Image = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities in images that it can decode
            # Without the list, Pillow tries formats for which it starts other programs.
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                    raise BadCell("the image has pixels that are not whole numbers from 0 to 65,535, so nobody knows "
                                  "which of them is white", "save it with 8 or 16 bits per colour")  # fmt: skip
                yield image
    except BadCell:
        raise
    except Image.DecompressionBombError:
        raise BadCell(f"the image has more than {limits.MOST_PIXELS:,} pixels", "make it smaller") from None
    except Image.UnidentifiedImageError:
        raise BadCell(f"the image cannot be decoded (it is none of {', '.join(FORMATS)})", REMEDY) from None
    except Exception as error:  # Pillow raises many kinds of error for damaged images
        reason = str(error).split(" <")[0] or type(error).__name__
        raise BadCell(f"the image cannot be decoded ({printable(reason)})", REMEDY) from None


def _check_size(width: int, height: int) -> None:
    if width * height > limits.MOST_PIXELS:
        raise BadCell(f"the image has more than {limits.MOST_PIXELS:,} pixels", "make it smaller")
    if max(width, height) > limits.MOST_ASPECT * min(width, height):
        cause = f"the image has {width:,} x {height:,} pixels, and its sides may be at most 1 to {limits.MOST_ASPECT}"
        raise BadCell(cause, "cut it into pieces")


def decode(item: Input) -> Any:
    """Decode an image, given as bytes or a path, to an upright RGB Pillow image with 8 bits per colour.

    Raises:
        DataError: it cannot be read or decoded.
        EverlearnError: Pillow is not installed.
    """
    data = content(item)
    try:
        with opened(data) as image:
            image.load()
            return _upright(_with_8_bits(image)).convert("RGB")
    except BadCell as problem:
        cause, remedy = problem.args
        which = f"image {item}" if isinstance(item, Path) else f"an image of {len(data)} bytes"
        raise DataError(f"{which}{cause.removeprefix('the image')}: {remedy}") from None


def _with_8_bits(image: Any) -> Any:
    """A grey image of 16 bits as one of 8 bits. Pillow itself would make everything white that is above 255."""
    return image.convert("I").point(lambda value: value / 256).convert("L") if image.mode.startswith("I") else image


def _upright(image: Any) -> Any:
    """The image as a viewer shows it, turned as its EXIF data say."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged EXIF data, which say nothing
        return image
    return image.transpose(getattr(pillow().Transpose, turn)) if turn else image


def reason_not_decodable(item: Input) -> BadCell | None:
    """Why an image cannot be used, or None if it can be decoded.

    The whole image is decoded, because the header does not show that a file is truncated. JPEG is decoded at an
    eighth of its size, which takes a fraction of the time.
    """
    try:
        with opened(content(item)) as image:
            image.draft("L", (8, 8))
            image.load()
    except BadCell as problem:
        return problem
    except DataError as error:
        return BadCell(str(error), REMEDY)
    return None


def only_decodable(records: list[Record], bad: BadRows) -> list[Record]:
    """The records whose image can be decoded. Every other record is a bad row."""
    good = []
    for record in records:
        problem = reason_not_decodable(record.input)
        if problem is None:
            good.append(record)
        else:
            bad.add(record.place, *problem.args)
    return good


def images_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, sorted by name.

    Raises:
        DataError: the folder cannot be read, or holds a name that is not UTF-8.
    """
    return [path for path in _entries(folder) if path.suffix.lower() in IMAGE_ENDINGS]


def folders_below(root: Path) -> list[Path]:
    """The folder and all folders in it, sorted. A folder that links lead to again is not entered again.

    Raises:
        DataError: a folder cannot be read, or holds a name that is not UTF-8.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        with _reading(folder):
            status = folder.stat()
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            found.append(folder)
            waiting.extend(reversed(_folders(folder)))
    return sorted(found)


def read_image_folder(root: Path, *, by_domain: bool = False) -> Table:
    """Records from `root/class/*.png`, or `root/{train,validation,test}/class/*.png`.

    With `by_domain`, the class folders are in domain folders. The id of an image is its path relative to the root. A
    note says which images are elsewhere and are left out.

    Raises:
        DataError: a class folder has no images, or there are no class folders.
    """
    records, places, deeper = [], [root], list[Path]()
    for split, folder in _split_folders(root):
        places.append(folder)
        for domain, parent in [(below.name, below) for below in _folders(folder)] if by_domain else [(None, folder)]:
            places.append(parent)
            for class_folder in _folders(parent):
                deeper += _deeper(class_folder)
                for image in _images_of_class(class_folder):
                    name = image.relative_to(root).as_posix()
                    records.append(Record(image, class_folder.name, name, str(image), None, split, domain))
    if not records:
        raise DataError(f"{root}: the folder holds no class folders; arrange it as class/image.png")
    others = [*(image for place in dict.fromkeys(places) for image in images_in(place)), *deeper]
    note = f"images that are not directly in a class folder were left out: {len(others):,}, the first is "
    return Table(str(root), "image", records, notes=(f"{note}{others[0]}",) if others else ())


def _deeper(folder: Path) -> list[Path]:
    """The images in the folders of a folder, at any depth. Links are not followed."""
    below = (path for path in _folders(folder) if not path.is_symlink())
    found = (Path(place, name) for path in below for place, _, names in os.walk(path) for name in sorted(names))
    return [path for path in found if path.suffix.lower() in IMAGE_ENDINGS]


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
    return [path for path in _entries(root) if os.path.isdir(path)]


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files."""
    with _reading(folder):
        names = sorted(name for name in os.listdir(folder) if not name.startswith((".", "_")))
    for name in names:
        try:
            check_name(name, "name of a file")
        except BadCell as problem:
            cause, remedy = problem.args
            raise DataError(f"{folder}: {cause}; {remedy}") from None
    return [folder / name for name in names]


def _reading(folder: Path) -> AbstractContextManager[None]:
    return one_line(folder, "check the folder and its permissions")
