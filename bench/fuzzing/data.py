"""Targets that are data: tables, retrieval files and images, damaged or odd from the start."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.cases import call_case, command_case, run_case
from fuzzing.damage import Draw
from fuzzing.seeds import FORMATS
from fuzzing.watch import Case

KINDS = ("class-incremental", "task-incremental", "online", "domain-incremental", "old-then-new")


def tables(d: Draw, seeds: Path, place: Path) -> Case:
    """Tables of every format, and what reads them."""
    name = d.one(("table.csv", "table.tsv", "table.jsonl", "table.parquet", "table-hf.parquet", "texts.txt"))
    file = place / (name if d.chance(0.95) else f"table{d.argument()[:100]}.csv")
    file.write_bytes((seeds / "data" / name).read_bytes())
    if file.suffix == ".parquet" and d.chance(0.7):
        _odd_parquet(d, seeds, file)
    elif d.chance(0.97):
        d.file(file)
    return _read_data(d, seeds, file, place)


def _read_data(d: Draw, seeds: Path, file: Path, place: Path) -> Case:
    from everlearn import streams

    how = d.random.random()
    if how < 0.4:
        return call_case(d, lambda: streams.read_inputs(file), f"read_inputs({file.name!r})", place)
    if how < 0.8:
        options: dict[str, Any] = {"kind": d.one((None, None, *KINDS)), "skip_bad_rows": d.chance(0.3)}
        if options["kind"] == "old-then-new":
            options["new"] = str(seeds / "data" / "new.csv")
        elif options["kind"] == "domain-incremental" and d.chance(0.3):
            options["domains"] = d.one((["shop", "bank"], "shop", ["x"], ["shop", "shop"]))
        elif d.chance(0.3):
            options["tasks"] = d.one((1, 2, 3))
        return call_case(
            d, lambda: streams.load(str(file), **options), f"streams.load({file.name!r}, **{options})", place
        )
    if how < 0.9:
        run = seeds / "runs" / d.one(("simplecil", "fecam"))
        more = d.one(([], ["--json"], ["--proba"], ["--column", d.argument()], ["--out", "out.csv"]))
        return command_case(d, ["predict", str(run), "--input", file.name, *more], place)
    return run_case(d, {"--stream": file.name, "--stream.max_train_per_class": "4"}, place)


def _odd_parquet(d: Draw, seeds: Path, file: Path) -> None:
    """A valid Parquet file with columns of odd types, or odd metadata, or one that grows when it is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if d.chance(0.03):
        shutil.copy(seeds / "data" / "bomb.parquet", file)
        d.told.append("a bomb")
        return
    table = pq.read_table(file)
    for _ in range(d.one((1, 1, 2))):
        name = d.one((*table.column_names, "domain", "split", "id", "image"))
        column = d.one(_ODD_COLUMNS)(pa, len(table))
        at = table.column_names.index(name) if name in table.column_names else -1
        table = table.set_column(at, name, column) if at >= 0 else table.append_column(name, column)
        d.told.append(f"column {name}: {column.type}")
    if d.chance(0.4):
        metadata = dict(table.schema.metadata or {})
        for key in (b"class_names", b"huggingface", b"domain_names"):
            if key in metadata or d.chance(0.3):
                try:
                    metadata[key] = d.json(d.structure(json.loads(metadata.get(key, b'["a", "b"]'))))
                except ValueError:
                    metadata[key] = b"\xff"
        table = table.replace_schema_metadata(metadata)
        d.told.append("metadata")
    if d.chance(0.1):
        table = pa.Table.from_arrays(table.columns, names=[d.one(table.column_names) for _ in table.column_names])
    pq.write_table(table, file)


def _cells(pattern: Any, type_: Callable[[Any], Any]) -> Callable[[Any, int], Any]:
    return lambda pa, n: pa.array([pattern[i % len(pattern)] for i in range(n)], type_(pa))


_ODD_COLUMNS: tuple[Callable[[Any, int], Any], ...] = (
    _cells([None], lambda pa: pa.null()),
    _cells([1, None], lambda pa: pa.int64()),
    _cells([0, 2**64 - 1], lambda pa: pa.uint64()),
    _cells([0.5, float("nan"), float("inf")], lambda pa: pa.float64()),
    _cells([b"\xff\x00", b""], lambda pa: pa.binary()),
    _cells([True, False], lambda pa: pa.bool_()),
    _cells([["a"], [], None], lambda pa: pa.list_(pa.string())),
    _cells([{"a": 1}], lambda pa: pa.struct([("a", pa.int8())])),
    _cells([[("a", 1)], []], lambda pa: pa.map_(pa.string(), pa.int8())),
    _cells([0, 20_000], lambda pa: pa.date32()),
    _cells([-(2**60), 2**60], lambda pa: pa.timestamp("ms")),
    _cells([0, 10**15], lambda pa: pa.timestamp("us", "Europe/Berlin")),
    _cells([10**15], lambda pa: pa.timestamp("ns", "No/Where")),
    _cells([2**62], lambda pa: pa.duration("s")),
    _cells(["a", "", "\x00", "\x1b[2J", " "], lambda pa: pa.string()),
    _cells([0, 1], lambda pa: pa.time64("ns")),
    _cells([b"abcdefgh" * 2], lambda pa: pa.binary(16)),
    _cells(["a" * 10**5], lambda pa: pa.large_string()),
    _cells([[["a"]], None], lambda pa: pa.list_(pa.list_(pa.string()))),
    _cells(
        [{"bytes": b"", "path": None}, {"bytes": None, "path": "x"}],
        lambda pa: pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    ),
)


def retrieval(d: Draw, seeds: Path, place: Path) -> Case:
    """A corpus and its queries."""
    from everlearn import streams

    stem, ending = d.one((("shop", "jsonl"), ("shop", "jsonl"), ("mall", "parquet")))
    for role in ("corpus", "queries"):
        shutil.copy(seeds / "data" / f"{stem}_{role}.{ending}", place)
    file = place / f"{stem}_{d.one(('corpus', 'queries', 'queries'))}.{ending}"
    if ending == "parquet" and d.chance(0.6):
        _odd_parquet(d, seeds, file)
    else:
        d.file(file)
    if d.chance(0.1):
        return run_case(d, {"--stream": stem, "--method": d.one(("frozen", "er"))}, place)
    titles = d.chance(0.5)
    return call_case(d, lambda: streams.load(str(place / stem), titles=titles), f"streams.load({stem!r})", place)


def images(d: Draw, seeds: Path, place: Path) -> Case:
    """Single images, folders of images, and tables with images."""
    from everlearn import streams

    how = d.random.random()
    if how < 0.55:
        source = d.one(sorted((seeds / "data" / "single").iterdir()))
        file = place / source.name
        if d.chance(0.15):
            file = place / f"one.{d.one(FORMATS)}"
            file.write_bytes(_odd_image(d))
        else:
            shutil.copy(source, file)
            d.file(file)
        if d.chance(0.15):
            return command_case(d, ["predict", str(seeds / "runs" / "images"), "--input", file.name], place)
        if d.chance(0.5):
            from everlearn import backbones

            return call_case(d, lambda: backbones.load("tiny").encode([file]), f"encode({file.name!r})", place)
        return call_case(d, lambda: streams.read_inputs(file), f"read_inputs({file.name!r})", place)
    shutil.copytree(seeds / "data" / "pictures", place / "pictures")
    if how < 0.7:
        name = d.one(("pictures.csv", "pictures.parquet"))
        shutil.copy(seeds / "data" / name, place)
        if name.endswith("csv"):
            rows = (
                (place / name)
                .read_text()
                .replace(
                    "pictures/card/0.png",
                    d.one(
                        (
                            "/dev/zero",
                            "/etc/passwd",
                            "x\x00y",
                            "..",
                            "pictures",
                            "a" * 5000,
                            "~/x.png",
                            "pictures/card/0.png",
                        )
                    ),
                )
            )
            (place / name).write_text(rows)
        d.file(place / name)
        return _read_data(d, seeds, place / name, place)
    d.folder(place / "pictures")
    if how < 0.85:
        return call_case(d, lambda: streams.read_inputs(place / "pictures"), "read_inputs('pictures')", place)
    options = {"augment": d.chance(0.3), "kind": d.one((None, "domain-incremental")), "skip_bad_rows": d.chance(0.5)}
    return call_case(
        d, lambda: streams.load(str(place / "pictures"), **options), f"streams.load('pictures', **{options})", place
    )


def _odd_image(d: Draw) -> bytes:
    """Another format behind the name of an image, absurd sizes, and data that grows when it is decoded."""
    from PIL import Image

    kind = d.random.randrange(6)
    d.told.append(f"odd image {kind}")
    if kind == 0:
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n"
    if kind == 1:
        width, height = d.one(((30_000, 30_000), (2**31 - 1, 1), (1, 65_000), (0, 5), (2**31 - 1, 2**31 - 1)))
        return _png_of_zeros(width, height, least=d.chance(0.5))
    if kind == 2:
        frames = [Image.new("P", (8, 8), number % 256) for number in range(500)]
        out = io.BytesIO()
        frames[0].save(out, d.one(("GIF", "TIFF", "WEBP")), save_all=True, append_images=frames[1:])
        return out.getvalue()
    if kind == 3:  # a text chunk that decompresses to 200 MB
        text = zlib.compress(bytes(200 * 2**20), 9)
        small = io.BytesIO()
        Image.new("L", (4, 4)).save(small, "PNG")
        return small.getvalue()[:33] + _chunk(b"zTXt", b"x\x00\x00" + text) + small.getvalue()[33:]
    if kind == 4:
        out = io.BytesIO()
        mode = d.one(("1", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB"))
        Image.new(mode, (9, 7)).save(out, "TIFF")
        return out.getvalue()
    return d.one(
        (
            b"8BPS\x00\x01" + bytes(30),
            b"SIMPLE  =                    T",
            b"#define x_width 9",
            b"P6\n99999 99999\n255\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.4",
            b"RIFF\xff\xff\xff\xffWEBPVP8X",
            b"BM" + b"\xff" * 60,
        )
    )


def _png_of_zeros(width: int, height: int, least: bool) -> bytes:
    lines = b"" if least else bytes(min((width // 8 + 1) * height, 100 * 2**20))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 1)) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
