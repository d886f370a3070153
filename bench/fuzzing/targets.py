"""The targets: each puts one input into a folder, and says how everlearn reads it.

A target is a function of (draw, seeds, place): it fills the empty folder `place` and returns a `Case`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import checkpoint
from fuzzing.damage import BOMBS, WORDS, Draw
from fuzzing.seeds import FORMATS
from fuzzing.watch import Case, spoken

TEXTS = ["card word1 word2", "pin word3"]
KINDS = ("class-incremental", "task-incremental", "online", "domain-incremental", "old-then-new")


def _run(d: Draw, options: dict[str, str], place: Path, told: str = "") -> Case:
    """`everlearn run` with these options, on a small backbone."""
    given = {"--backbone": "tiny", "--method": "simplecil", "--recipe": "none", "--out": "out", **options}
    return _command(d, ["run", *(word for pair in given.items() for word in pair)], place)


def _command(d: Draw, argv: list[str], place: Path, **environment: str) -> Case:
    names = " ".join(f"{key}={ascii(value)}" for key, value in environment.items())
    told = f"{names} everlearn {spoken(argv)}".strip()
    return Case(argv, f"{told} # {', '.join(d.told)}", place, environment)


def _call(d: Draw, function: Callable[[], Any], told: str, place: Path) -> Case:
    return Case(function, f"{told} # {', '.join(d.told)}", place)


# -- data --------------------------------------------------------------------------------------------
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
        return _call(d, lambda: streams.read_inputs(file), f"read_inputs({file.name!r})", place)
    if how < 0.8:
        options: dict[str, Any] = {"kind": d.one((None, None, *KINDS)), "skip_bad_rows": d.chance(0.3)}
        if options["kind"] == "old-then-new":
            options["new"] = str(seeds / "data" / "new.csv")
        elif options["kind"] == "domain-incremental" and d.chance(0.3):
            options["domains"] = d.one((["shop", "bank"], "shop", ["x"], ["shop", "shop"]))
        elif d.chance(0.3):
            options["tasks"] = d.one((1, 2, 3))
        return _call(d, lambda: streams.load(str(file), **options), f"streams.load({file.name!r}, **{options})", place)
    if how < 0.9:
        run = seeds / "runs" / d.one(("simplecil", "fecam"))
        more = d.one(([], ["--json"], ["--proba"], ["--column", d.argument()], ["--out", "out.csv"]))
        return _command(d, ["predict", str(run), "--input", file.name, *more], place)
    return _run(d, {"--stream": file.name, "--stream.max_train_per_class": "4"}, place)


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
    _cells([None], lambda pa: pa.null()), _cells([1, None], lambda pa: pa.int64()),
    _cells([0, 2**64 - 1], lambda pa: pa.uint64()), _cells([0.5, float("nan"), float("inf")], lambda pa: pa.float64()),
    _cells([b"\xff\x00", b""], lambda pa: pa.binary()), _cells([True, False], lambda pa: pa.bool_()),
    _cells([["a"], [], None], lambda pa: pa.list_(pa.string())), _cells([{"a": 1}], lambda pa: pa.struct([("a", pa.int8())])),
    _cells([[("a", 1)], []], lambda pa: pa.map_(pa.string(), pa.int8())), _cells([0, 20_000], lambda pa: pa.date32()),
    _cells([-(2**60), 2**60], lambda pa: pa.timestamp("ms")), _cells([0, 10**15], lambda pa: pa.timestamp("us", "Europe/Berlin")),
    _cells([10**15], lambda pa: pa.timestamp("ns", "No/Where")), _cells([2**62], lambda pa: pa.duration("s")),
    _cells(["a", "", "\x00", "\x1b[2J", " "], lambda pa: pa.string()), _cells([0, 1], lambda pa: pa.time64("ns")),
    _cells([b"abcdefgh" * 2], lambda pa: pa.binary(16)), _cells(["a" * 10**5], lambda pa: pa.large_string()),
    _cells([[["a"]], None], lambda pa: pa.list_(pa.list_(pa.string()))), _cells([{"bytes": b"", "path": None}, {"bytes": None, "path": "x"}],
                                                                              lambda pa: pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
)  # fmt: skip


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
        return _run(d, {"--stream": stem, "--method": d.one(("frozen", "er"))}, place)
    titles = d.chance(0.5)
    return _call(d, lambda: streams.load(str(place / stem), titles=titles), f"streams.load({stem!r})", place)


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
            return _command(d, ["predict", str(seeds / "runs" / "images"), "--input", file.name], place)
        if d.chance(0.5):
            from everlearn import backbones

            return _call(d, lambda: backbones.load("tiny").encode([file]), f"encode({file.name!r})", place)
        return _call(d, lambda: streams.read_inputs(file), f"read_inputs({file.name!r})", place)
    shutil.copytree(seeds / "data" / "pictures", place / "pictures")
    if how < 0.7:
        name = d.one(("pictures.csv", "pictures.parquet"))
        shutil.copy(seeds / "data" / name, place)
        if name.endswith("csv"):
            rows = (place / name).read_text().replace("pictures/card/0.png", d.one(("/dev/zero", "/etc/passwd", "x\x00y", "..",
                    "pictures", "a" * 5000, "~/x.png", "pictures/card/0.png")))  # fmt: skip
            (place / name).write_text(rows)
        d.file(place / name)
        return _read_data(d, seeds, place / name, place)
    d.folder(place / "pictures")
    if how < 0.85:
        return _call(d, lambda: streams.read_inputs(place / "pictures"), "read_inputs('pictures')", place)
    options = {"augment": d.chance(0.3), "kind": d.one((None, "domain-incremental")), "skip_bad_rows": d.chance(0.5)}
    return _call(d, lambda: streams.load(str(place / "pictures"), **options), f"streams.load('pictures', **{options})", place)


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
        mode = d.one(("1", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB", "HSV"))
        Image.new(mode, (9, 7)).save(out, "TIFF" if mode not in ("HSV",) else "TIFF") if mode != "HSV" else out.write(b"HSV")
        return out.getvalue()
    return d.one((b"8BPS\x00\x01" + bytes(30), b"SIMPLE  =                    T", b"#define x_width 9", b"P6\n99999 99999\n255\n",
                  b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"BM" + b"\xff" * 60))


def _png_of_zeros(width: int, height: int, least: bool) -> bytes:
    lines = b"" if least else bytes(min((width // 8 + 1) * height, 100 * 2**20))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 1)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# -- configurations and the command line -----------------------------------------------------------------
def configs(d: Draw, seeds: Path, place: Path) -> Case:
    """Files for --config and --recipe."""
    file = place / "config.yaml"
    shutil.copy(d.one(sorted((seeds / "configs").iterdir())), file)
    d.file(file)
    if d.chance(0.7):
        return _command(d, ["run", "--config", file.name, "--recipe", "none", "--out", "out", "--backbone", "tiny"], place)
    return _run(d, {"--recipe": file.name, "--stream": str(seeds / "data" / "table.csv")}, place)


SMALL = {"ranpac": {"--method.width": "30"}}
"""Settings of methods whose defaults cost seconds."""
USUAL = ("0", "1", "2", "3", "5", "20", "0.0", "0.1", "0.5", "1.0", "2.0", "1e-3", "1e-6", "true", "false", "none", "full", "head",
         "lora", "lora(size=1)", "prefix(size=2)", "deep_prompt", "houlsby", "ssf", "cls", "mean", "sample", "random")  # fmt: skip
"""Values that are right for some settings."""


def settings(d: Draw, seeds: Path, place: Path) -> Case:
    """Odd values for the settings of methods and streams."""
    from everlearn import methods, streams
    from everlearn.config import ELSEWHERE, arguments

    method = d.one(methods.names())
    own = [name for name in arguments(methods.get(method)) if name not in ELSEWHERE]
    common = [name for name in arguments(streams.load) if name != "name"]
    options = {"--stream": str(seeds / "data" / d.one(("table.csv", "table.csv", "shop", "pictures"))), "--method": method,
               "--stream.max_train_per_class": "3", **SMALL.get(method, {})}  # fmt: skip
    for _ in range(d.one((1, 1, 2, 4))):
        section, names = d.one((("method", own), ("method", own), ("stream", common)))
        if names:
            options[f"--{section}.{d.one(names)}"] = d.argument() if d.chance(0.4) else d.one(USUAL)
    return _run(d, options, place)


def arguments(d: Draw, seeds: Path, place: Path) -> Case:
    """Odd command lines of every command."""
    table, run = str(seeds / "data" / "table.csv"), d.one(("simplecil", "er", "stopped-er", "comparison"))
    shutil.copytree(seeds / "runs" / run, place / run)
    verb = d.one(("run", "compare", "resume", "report", "predict", "list", "cache"))
    small = {"--stream": table, "--backbone": "tiny", "--out": "out"}
    fixed: dict[str, tuple[list[str], dict[str, str]]] = {
        "run": ([], {**small, "--method": "simplecil"}), "compare": ([], {**small, "--methods": "simplecil", "--jobs": "1"}),
        "resume": ([run], {}), "report": ([run], {"--out": "report.html"}), "predict": ([run], {"--input": table}),
        "list": ([d.one(("methods", "streams", "backbones"))], {}), "cache": ([], {}),
    }  # fmt: skip
    words, options = fixed[verb]
    more = {
        "run": ("--tasks", "--seed", "--config", "--recipe", "--save-minutes", "--save-steps", "--stream.kind", "--method.x", "--help",
                "--json"),
        "compare": ("--tasks", "--seed", "--recipe", "--json"), "resume": ("--json",), "report": (), "list": ("--json",),
        "predict": ("--column", "--out", "--proba", "--json"), "cache": ("--clear", "--json"),
    }[verb]  # fmt: skip
    for _ in range(d.one((1, 1, 2, 3))):
        name = d.one((*options, *more, *more, f"--{d.argument()}")) if options or more else f"--{d.argument()}"
        if name == "--jobs" or (name == "--methods" and d.chance(0.5)):
            options[name] = d.one(("simplecil,lda", "0", "-1", "x", "", ",", "family:x", "1.5", "simplecil,simplecil"))
        elif name in ("--input", "--config") and d.chance(0.5):
            options[name] = d.one(("/dev/null", "..", "/", "/dev/zero", "nothing.csv", "/proc/self/mem", f"{table}/x"))
        elif name in ("--stream", "--backbone") and d.chance(0.6):
            options[name] = d.one(("..", "hub:a/b", "a/b", "a/b/c", "tiny@5", "vit-tiny@0", "vit-tiny@999999999", "vit_tiny_patch16_224@-1", "@",
                                   "a" * 5000, "a/" * 2000, "/dev/zero", "/dev/null", "x.safetensors", "hub:", "~", "digits_x"))  # fmt: skip
        else:
            options[name] = d.argument()
    argv = [verb, *words]
    for name, value in options.items():
        flag = name in ("--help", "--json", "--proba")
        argv += [name] if flag and d.chance(0.9) else [f"{name}={value}"] if d.chance(0.3) else [name, value]
    for _ in range(d.one((0, 0, 0, 1, 2))):
        argv.insert(d.random.randint(0, len(argv)), d.argument())
    if d.chance(0.05):
        del argv[d.random.randrange(len(argv))]
    if "run" in argv and not any(table in word for word in argv):
        argv.append(f"--stream={table}")  # the default stream is large
    return _command(d, argv, place)


def environment(d: Draw, seeds: Path, place: Path) -> Case:
    """Odd environment variables."""
    name = d.one(("EVERLEARN_CACHE", "EVERLEARN_CACHE_BYTES", "EVERLEARN_WEIGHTS", "COLUMNS", "HOME"))
    table = str(seeds / "data" / "table.csv")
    (place / "file").write_text("x")
    (place / "closed").mkdir(mode=0)
    (place / "loop").symlink_to("loop")
    value = d.argument() if d.chance(0.6) else d.one(("file", "closed", "loop", "/dev/null", "/nonexistent/x", "/proc/1", "file/x", "a" * 5000))
    value = os.fsdecode(os.fsencode(value))
    if name == "EVERLEARN_WEIGHTS":
        case = _run(d, {"--stream": str(seeds / "data" / "pictures"), "--backbone": "vit-tiny"}, place)
        return Case(case.call, f"{name}={value!a} {case.told}", place, {name: value})
    argv = d.one((["cache"], ["cache", "--json"], ["cache", "--clear"], ["list", "methods"], ["predict", str(seeds / "runs" / "simplecil"),
                  "--input", table], ["run", "--stream", table, "--backbone", "tiny", "--method", "lda", "--out", "out"]))  # fmt: skip
    return _command(d, argv, place, **{name: value})


# -- folders that everlearn has written ------------------------------------------------------------------
def runs(d: Draw, seeds: Path, place: Path) -> Case:
    """Run folders: their configuration, results, log and checkpoints."""
    import everlearn

    name = d.one(path.name for path in sorted((seeds / "runs").iterdir()) if path.name != "comparison")
    run = place / "run"
    shutil.copytree(seeds / "runs" / name, run)
    unfinished = name.startswith("stopped") or d.chance(0.3)
    if unfinished:
        for file in ("results.json", "report.html"):
            (run / file).unlink(missing_ok=True)
    if d.chance(0.08):
        _name_a_module(d, run)
    else:
        d.folder(run, d.one(("*", "*", "config.yaml", "state.json", "*.safetensors", "*.json*")))
    if d.chance(0.85):
        sign(run)
    within = d.chance(0.2)
    cwd, where = (run, ".") if within else (place, "run")
    table = str(seeds / "data" / ("pictures" if name == "images" else "table.csv"))
    how = d.random.random()
    if how < 0.35:
        def ask() -> None:
            everlearn.load(where).predict(TEXTS)

        return _call(d, ask, f"everlearn.load of {name}", cwd)
    if how < 0.6:
        return _command(d, ["resume", where], cwd)
    if how < 0.8:
        return _command(d, ["report", where, *([str(seeds / "runs" / "simplecil"), "--out", "r.html"] if d.chance(0.3) else [])], cwd)
    return _command(d, ["predict", where, "--input", table, *d.one(([], ["--proba"], ["--json"]))], cwd)


def _name_a_module(d: Draw, run: Path) -> None:
    """Let the configuration name a module, which lies in the folder."""
    from fuzzing.damage import EVIL

    module = d.one(("evil", "run.evil", "checkpoints.evil", "evil.more"))
    for folder in (run, run / "checkpoints", run.parent):
        (folder / "evil.py").write_text(EVIL)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(method:\n  name: )\S+", rf"\g<1>{module}:Evil", text))
    d.told.append(f"method {module}:Evil")


def sign(run: Path) -> None:
    """Write the right digests into every checkpoint, so that what is behind them is read."""
    for file in run.rglob("state.json"):
        if not file.is_file() or file.stat().st_size > 2**20:
            continue  # a pipe, for example
        try:
            state = json.loads(file.read_bytes())
            for name, check in state["files"].items():
                beside = file.parent / name
                if beside.is_file() and beside.stat().st_size < 2**30:
                    data = beside.read_bytes()
                    check.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            state.pop("sha256", None)
            file.write_text(json.dumps({"sha256": checkpoint._json_sha256(state), **state}))
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
            continue


def comparisons(d: Draw, seeds: Path, place: Path) -> Case:
    """The folder of a comparison, reported or continued."""
    shutil.copytree(seeds / "runs" / "comparison", place / "both")
    d.folder(place / "both", d.one(("*", "compare.json", "results.json", "*.json*")))
    sign(place / "both")
    if d.chance(0.5):
        return _command(d, ["report", "both"], place)
    table = str(seeds / "data" / "table.csv")
    methods = d.one(("simplecil,lda", "simplecil", "lda,frozen"))
    return _command(d, ["compare", "--stream", table, "--tasks", "2", "--backbone", "tiny", "--methods", methods, "--jobs", "1",
                        "--out", "both", "--stream.max_train_per_class", "4", "--stream.max_test_per_class", "2"], place)  # fmt: skip


def store(d: Draw, seeds: Path, place: Path) -> Case:
    """The feature store."""
    shutil.copytree(seeds / "cache", place / "cache")
    d.folder(place / "cache")
    if d.chance(0.05):
        (place / "cache" / "features" / "more").symlink_to(d.outside)
    identities = [path.name for path in sorted((place / "cache" / "features").iterdir())] if (place / "cache" / "features").is_dir() else []
    clear = ["cache", "--clear", d.one(identities)] if identities else ["cache", "--clear"]
    table = str(seeds / "data" / "table.csv")
    argv = d.one((["cache"], ["cache", "--json"], ["cache", "--clear"], clear, ["predict", str(seeds / "runs" / "simplecil"), "--input", table],
                  ["run", "--stream", table, "--backbone", "tiny", "--method", "simplecil", "--out", "out"]))  # fmt: skip
    return _command(d, argv, place, EVERLEARN_CACHE=str(place / "cache"))


# -- weights -------------------------------------------------------------------------------------------
def backbones(d: Draw, seeds: Path, place: Path) -> Case:
    """Folders in transformers' format."""
    from everlearn import backbones

    name = d.one(("bert", "bert", "divided", "vit"))
    shutil.copytree(seeds / "models" / name, place / name)
    d.folder(place / name, d.one(("*", "*.json", "config.json", "*.safetensors*")))
    if d.chance(0.1):
        config = place / name / "config.json"
        if config.is_file() and os.access(config, os.R_OK) and config.stat().st_size < 10**6:
            _name_code(d, config)
    if d.chance(0.05):
        return _run(d, {"--stream": str(seeds / "data" / "table.csv"), "--backbone": f"./{name}"}, place)
    inputs = TEXTS if name != "vit" else [(seeds / "data" / "single" / "one.png").read_bytes()]
    return _call(d, lambda: backbones.load(str(place / name)).encode(inputs), f"backbones.load({name!r}).encode(…)", place)


def _name_code(d: Draw, config: Path) -> None:
    from fuzzing.damage import EVIL

    (config.parent / "modeling_evil.py").write_text(EVIL)
    try:
        value = json.loads(config.read_bytes())
        value["auto_map"] = {"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"}
        if d.chance(0.5):
            value["model_type"] = "evil"
        config.write_text(json.dumps(value))
        d.told.append("auto_map")
    except (ValueError, TypeError, RecursionError):
        return


def weights(d: Draw, seeds: Path, place: Path) -> Case:
    """Weights files of timm, by path and through EVERLEARN_WEIGHTS."""
    from everlearn import backbones

    file = place / "vit_tiny_patch16_224.safetensors"
    shutil.copy(seeds / "models" / file.name, file)
    d.file(file)
    if d.chance(0.2):
        return Case(lambda: backbones.load("vit-tiny"), f"EVERLEARN_WEIGHTS=. vit-tiny # {d.told}", place, {"EVERLEARN_WEIGHTS": str(place)})
    name = f"{file}{d.one(('', '', '@32', '@0', '@999999', '@x'))}"
    return _call(d, lambda: backbones.load(name), f"backbones.load({Path(name).name!r})", place)


_loaded: dict[str, Any] = {}


def adapters(d: Draw, seeds: Path, place: Path) -> Case:
    """Adapters in PEFT's format."""
    import warnings

    from everlearn import backbones
    from everlearn.peft.interop import load

    shutil.copytree(seeds / "adapters" / d.one(("lora", "lora", "prefix")), place / "adapter")
    d.folder(place / "adapter")
    bert = str(seeds / "models" / "bert")

    def read() -> None:
        if bert not in _loaded:
            _loaded[bert] = backbones.load(bert)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deltas = load(_loaded[bert], place / "adapter")
        try:
            _loaded[bert](TEXTS)
        finally:
            deltas.detach(_loaded[bert])

    return _call(d, read, "peft.interop.load(bert, 'adapter')", place)


TARGETS: dict[str, tuple[Callable[[Draw, Path, Path], Case], int]] = {
    "tables": (tables, 5), "retrieval": (retrieval, 2), "images": (images, 3), "configs": (configs, 3),
    "settings": (settings, 3), "arguments": (arguments, 3), "environment": (environment, 1), "runs": (runs, 6),
    "comparisons": (comparisons, 1), "store": (store, 2), "backbones": (backbones, 4), "weights": (weights, 1),
    "adapters": (adapters, 3),
}  # fmt: skip
"""Each target and its weight: how many of 37 inputs are its own."""
