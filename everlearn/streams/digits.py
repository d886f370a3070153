"""The 8×8 handwritten digits of scikit-learn: 1,797 images of ten classes, for which no file is needed."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from everlearn.streams.records import Record, Table


def read_digits() -> Table:
    """All digits as grey PNG images. The data set has no splits of its own.

    >>> len(read_digits().records)
    1797
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    records = [
        Record(as_png(np.minimum(image * 16, 255).astype(np.uint8)), str(label), f"digits:{row}", "digits", row)
        for row, (image, label) in enumerate(zip(data.images, data.target, strict=True), start=1)
    ]
    return Table("digits", "image", records, tuple("0123456789"))


def as_png(image: np.ndarray) -> bytes:
    """Encode a grey uint8 image of shape (height, width) as PNG without compression.

    The bytes that image libraries write depend on their version. The bytes written here are always the same, and
    so is the fingerprint of the stream.
    """
    height, width = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # each row starts with its filter type, 0 for none

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
