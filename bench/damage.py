"""Damage the segments of a feature store in many ways, and count the wrong features that it serves.

    python bench/damage.py [--damages 10000] [--seed 0] [--threads 1]

The store holds the features of the tiny backbone for 24 texts, in three segments of eight. Each damage hits one or two
of them (see `WAYS`) at places that the seed decides. Then a fresh store is asked for all features, and each must have
the very bits that it had before: damage must be noticed, and the examples encoded again. Afterwards the segments are
restored. The last line is JSON; the exit code is 1 after any wrong feature, and after any damage not noticed.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from everlearn import features
from everlearn.backbones.tiny import TinyBackbone
from everlearn.features import FeatureStore
from everlearn.segments import open_segment, write_segment

TEXTS = [f"request {number} of the day" for number in range(24)]
CHUNK, WIDTH = 8, 32


def flip(draw: random.Random, file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def swap(draw: random.Random, file: Path, other: Path) -> None:
    """With the same file of another segment."""
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def swap_parts(draw: random.Random, file: Path, other: Path) -> None:
    """Two equally long parts within a file, such as two rows."""
    data = file.read_bytes()
    size = draw.choice((4, 16, 64))
    first, second = sorted(draw.sample(range(len(data) // size), 2))
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    parts[first], parts[second] = parts[second], parts[first]
    file.write_bytes(b"".join(parts))


def truncate(draw: random.Random, file: Path, other: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data))])


def truncate_and_pad(draw: random.Random, file: Path, other: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data))].ljust(len(data), draw.choice((b"\0", b"\xff"))))


def lengthen(draw: random.Random, file: Path, other: Path) -> None:
    with open(file, "ab") as opened:
        opened.write(draw.randbytes(draw.choice((1, 16, 128))))


def zero_a_block(draw: random.Random, file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    size = draw.choice((4, 64, 512))
    start = draw.randrange(0, len(data), 4)
    data[start : start + size] = bytes(len(data[start : start + size]))
    file.write_bytes(data)


def not_finite(draw: random.Random, file: Path, other: Path) -> None:
    """NaN or infinity, in a file whose digest differs then."""
    rows = np.fromfile(file.with_suffix(".f32"), np.float32)
    rows[draw.randrange(len(rows))] = draw.choice((np.nan, np.inf, -np.inf))
    rows.tofile(file.with_suffix(".f32"))


def sealed_not_finite(draw: random.Random, file: Path, other: Path) -> None:
    """NaN or infinity, in a segment whose digests fit it."""
    file = file.with_suffix(".keys")
    segment = open_segment(file, WIDTH)
    rows = np.fromfile(file.with_suffix(".f32"), np.float32).reshape(len(segment.keys), -1)
    rows[draw.randrange(len(rows)), draw.randrange(rows.shape[1])] = draw.choice((np.nan, np.inf, -np.inf))
    new = write_segment(file.parent, segment.keys, rows)
    for suffix in (".f32", ".keys"):
        new.file.with_suffix(suffix).replace(file.with_suffix(suffix))


def of_another_backbone(draw: random.Random, file: Path, other: Path) -> None:
    """Both files, complete and with the same keys, from the folder of another identity."""
    for suffix in (".f32", ".keys"):
        shutil.copy(file.parent.parent / "foreign" / file.with_suffix(suffix).name, file.with_suffix(suffix))


def older_format(draw: random.Random, file: Path, other: Path) -> None:
    """The keys alone, without header and digest."""
    file = file.with_suffix(".keys")
    file.write_bytes(b"".join(open_segment(file, WIDTH).keys))


def remove(draw: random.Random, file: Path, other: Path) -> None:
    file.with_suffix(".f32").unlink()


WAYS: list[Callable[[random.Random, Path, Path], None]] = [
    flip, swap, swap_parts, truncate, truncate_and_pad, lengthen, zero_a_block, not_finite, sealed_not_finite,
    of_another_backbone, older_format, remove,
]  # fmt: skip


class Damaging:
    """A store in `root` that is damaged, read and restored again and again.

    Attributes:
        wrong: features served that differ from what was stored. encoded: examples encoded again.
        noticed: damages after which examples were encoded again and one line said why. missed: the others, by way.
        ways: how many damages there were of each way.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.draw, self.backbone = root, random.Random(seed), TinyBackbone(width=WIDTH)
        self.wrong = self.noticed = self.encoded = 0
        self.ways: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        features.CHUNK = CHUNK
        self.truth = FeatureStore(root).encode(self.backbone, TEXTS)
        (self.folder,) = root.iterdir()
        self.kept = {file: file.read_bytes() for file in self.folder.iterdir()}
        foreign = root / "foreign"
        foreign.mkdir()
        for file in sorted(self.folder.glob("*.keys")):
            keys = open_segment(file, WIDTH).keys
            new = write_segment(foreign, keys, self.truth[: len(keys)].numpy() + 1)
            for suffix in (".f32", ".keys"):
                new.file.with_suffix(suffix).replace(foreign / file.with_suffix(suffix).name)

    def once(self) -> None:
        """Damage the store in one way, read all features, and restore it."""
        way = self.draw.choice(WAYS)
        while not self.changed():  # again where, say, zeros were written over zeros
            suffix = self.draw.choice((".f32", ".keys"))
            file, other = self.draw.sample(sorted(path for path in self.kept if path.suffix == suffix), 2)
            way(self.draw, file, other)
        said = Said()
        logging.getLogger("everlearn").addHandler(said)
        store = FeatureStore(self.root)
        found = store.encode(self.backbone, TEXTS)
        logging.getLogger("everlearn").removeHandler(said)
        self.ways[way.__name__] += 1
        self.wrong += int((found != self.truth).any(dim=1).sum())
        self.encoded += store.encoded
        if store.encoded and len(said.lines) == 1:
            self.noticed += 1
        else:
            self.missed[way.__name__] += 1
        for path in self.folder.iterdir():
            if path not in self.kept:
                path.unlink()
        for path in self.changed():
            path.write_bytes(self.kept[path])

    def changed(self) -> list[Path]:
        """The files that are not as they were."""
        return [path for path, data in self.kept.items() if not path.exists() or path.read_bytes() != data]


class Said(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("damages", 10_000), ("seed", 0), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("everlearn").propagate = False
    started = time.perf_counter()
    memory = Path("/dev/shm")  # there, nothing waits for a disk, to which each segment is flushed
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        damaging = Damaging(Path(folder), args.seed)
        for number in range(args.damages):
            damaging.once()
            if sys.stderr.isatty() and number % 100 == 0:
                print(f"\r{number} of {args.damages}", end="", file=sys.stderr, flush=True)
    print(json.dumps({
        "damages": args.damages, "seed": args.seed, "ways": damaging.ways, "wrong_features": damaging.wrong,
        "noticed": damaging.noticed, "missed": damaging.missed, "encoded_again": damaging.encoded,
        "seconds": round(time.perf_counter() - started, 1),
    }))  # fmt: skip
    return int(damaging.wrong > 0 or damaging.noticed < args.damages)


if __name__ == "__main__":
    sys.exit(main())
