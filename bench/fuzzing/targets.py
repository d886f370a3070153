"""The targets: each puts one input into a folder, and says how everlearn reads it.

A target is a function of (draw, seeds, place): it fills the empty folder `place` and returns a `Case`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn import checkpoint
from fuzzing.cases import call_case, command_case, run_case
from fuzzing.commands import arguments, configs, environment, settings
from fuzzing.damage import EVIL, Draw
from fuzzing.data import images, retrieval, tables
from fuzzing.watch import Case

TEXTS = ["card word1 word2", "pin word3"]


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

        return call_case(d, ask, f"everlearn.load of {name}", cwd)
    if how < 0.6:
        return command_case(d, ["resume", where], cwd)
    if how < 0.8:
        return command_case(
            d,
            ["report", where, *([str(seeds / "runs" / "simplecil"), "--out", "r.html"] if d.chance(0.3) else [])],
            cwd,
        )
    return command_case(d, ["predict", where, "--input", table, *d.one(([], ["--proba"], ["--json"]))], cwd)


def _name_a_module(d: Draw, run: Path) -> None:
    """Let the configuration name a module, which lies in the folder."""
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
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
            continue  # so damaged that nothing behind it is read
        with contextlib.suppress(OSError, ValueError, RecursionError):
            file.write_text(json.dumps({"sha256": checkpoint._json_sha256(state), **state}))


def comparisons(d: Draw, seeds: Path, place: Path) -> Case:
    """The folder of a comparison, reported or continued."""
    shutil.copytree(seeds / "runs" / "comparison", place / "both")
    d.folder(place / "both", d.one(("*", "compare.json", "results.json", "*.json*")))
    sign(place / "both")
    if d.chance(0.5):
        return command_case(d, ["report", "both"], place)
    table = str(seeds / "data" / "table.csv")
    methods = d.one(("simplecil,lda", "simplecil", "lda,frozen"))
    return command_case(
        d,
        [
            "compare",
            "--stream",
            table,
            "--tasks",
            "2",
            "--backbone",
            "tiny",
            "--methods",
            methods,
            "--jobs",
            "1",
            "--out",
            "both",
            "--stream.max_train_per_class",
            "4",
            "--stream.max_test_per_class",
            "2",
        ],
        place,
    )


def store(d: Draw, seeds: Path, place: Path) -> Case:
    """The feature store."""
    shutil.copytree(seeds / "cache", place / "cache")
    d.folder(place / "cache")
    if d.chance(0.05):
        (place / "cache" / "features" / "more").symlink_to(d.outside)
    identities = (
        [path.name for path in sorted((place / "cache" / "features").iterdir())]
        if (place / "cache" / "features").is_dir()
        else []
    )
    clear = ["cache", "--clear", d.one(identities)] if identities else ["cache", "--clear"]
    table = str(seeds / "data" / "table.csv")
    argv = d.one(
        (
            ["cache"],
            ["cache", "--json"],
            ["cache", "--clear"],
            clear,
            ["predict", str(seeds / "runs" / "simplecil"), "--input", table],
            ["run", "--stream", table, "--backbone", "tiny", "--method", "simplecil", "--out", "out"],
        )
    )
    return command_case(d, argv, place, EVERLEARN_CACHE=str(place / "cache"))


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
        return run_case(d, {"--stream": str(seeds / "data" / "table.csv"), "--backbone": f"./{name}"}, place)
    inputs = TEXTS if name != "vit" else [(seeds / "data" / "single" / "one.png").read_bytes()]
    return call_case(
        d, lambda: backbones.load(str(place / name)).encode(inputs), f"backbones.load({name!r}).encode(…)", place
    )


def _name_code(d: Draw, config: Path) -> None:
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
        return Case(
            lambda: backbones.load("vit-tiny"),
            f"EVERLEARN_WEIGHTS=. vit-tiny # {d.told}",
            place,
            {"EVERLEARN_WEIGHTS": str(place)},
        )
    name = f"{file}{d.one(('', '', '@32', '@0', '@999999', '@x'))}"
    return call_case(d, lambda: backbones.load(name), f"backbones.load({Path(name).name!r})", place)


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

    return call_case(d, read, "peft.interop.load(bert, 'adapter')", place)


TARGETS: dict[str, tuple[Callable[[Draw, Path, Path], Case], int]] = {
    "tables": (tables, 5),
    "retrieval": (retrieval, 2),
    "images": (images, 3),
    "configs": (configs, 3),
    "settings": (settings, 3),
    "arguments": (arguments, 3),
    "environment": (environment, 1),
    "runs": (runs, 6),
    "comparisons": (comparisons, 1),
    "store": (store, 2),
    "backbones": (backbones, 4),
    "weights": (weights, 1),
    "adapters": (adapters, 3),
}
"""Each target and its weight: how many of 37 inputs are its own."""
