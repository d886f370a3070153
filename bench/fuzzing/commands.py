"""Targets that are commands: configurations, settings, command lines and environment variables."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fuzzing.cases import command_case, run_case
from fuzzing.damage import Draw
from fuzzing.watch import Case


def configs(d: Draw, seeds: Path, place: Path) -> Case:
    """Files for --config and --recipe."""
    file = place / "config.yaml"
    shutil.copy(d.one(sorted((seeds / "configs").iterdir())), file)
    d.file(file)
    if d.chance(0.7):
        return command_case(
            d, ["run", "--config", file.name, "--recipe", "none", "--out", "out", "--backbone", "tiny"], place
        )
    return run_case(d, {"--recipe": file.name, "--stream": str(seeds / "data" / "table.csv")}, place)


USUAL: dict[type, tuple[str, ...]] = {
    bool: ("true", "false"),
    int: ("0", "1", "2", "3", "5", "20"),
    float: ("0", "1e-6", "1e-3", "0.1", "0.5", "1", "2", "50"),
    str: (
        "full",
        "head",
        "lora",
        "lora(size=1)",
        "prefix(size=2)",
        "deep_prompt",
        "houlsby",
        "ssf",
        "none",
        "shop",
        "label",
    ),
    type(None): ("1", "2", "0.5", "none", "text", "label", "shop,bank", "old-then-new", "online", "domain-incremental"),
}
"""Values that are right for some settings, by the type of the default."""


def settings(d: Draw, seeds: Path, place: Path) -> Case:
    """Odd values for the settings of methods and streams."""
    from everlearn import methods, streams
    from everlearn.config import ELSEWHERE, arguments

    method = d.one(methods.names())
    own = {name: known for name, known in arguments(methods.get(method)).items() if name not in ELSEWHERE}
    common = {name: known for name, known in arguments(streams.load).items() if name != "name"}
    options = {
        "--stream": str(seeds / "data" / d.one(("table.csv",) * 4 + ("shop", "pictures"))),
        "--method": method,
        "--stream.max_train_per_class": "3",
    }
    for _ in range(d.one((1, 1, 2, 4))):
        section, names = d.one((("method", own), ("method", own), ("stream", common)))
        if names:
            name = d.one(names)
            usual = USUAL.get(type(names[name].default), ("1",))
            options[f"--{section}.{name}"] = d.argument() if d.chance(0.3) else d.one(usual)
    return run_case(d, options, place)


def arguments(d: Draw, seeds: Path, place: Path) -> Case:
    """Odd command lines of every command."""
    table, run = str(seeds / "data" / "table.csv"), d.one(("simplecil", "er", "stopped-er", "comparison"))
    shutil.copytree(seeds / "runs" / run, place / run)
    verb = d.one(("run", "compare", "resume", "report", "predict", "list", "cache"))
    small = {"--stream": table, "--backbone": "tiny", "--out": "out"}
    fixed: dict[str, tuple[list[str], dict[str, str]]] = {
        "run": ([], {**small, "--method": "simplecil"}),
        "compare": ([], {**small, "--methods": "simplecil", "--jobs": "1"}),
        "resume": ([run], {}),
        "report": ([run], {"--out": "report.html"}),
        "predict": ([run], {"--input": table}),
        "list": ([d.one(("methods", "streams", "backbones"))], {}),
        "cache": ([], {}),
    }
    words, options = fixed[verb]
    more = {
        "run": (
            "--tasks",
            "--seed",
            "--config",
            "--recipe",
            "--save-minutes",
            "--save-steps",
            "--stream.kind",
            "--method.x",
            "--help",
            "--json",
        ),
        "compare": ("--tasks", "--seed", "--recipe", "--json"),
        "resume": ("--json",),
        "report": (),
        "list": ("--json",),
        "predict": ("--column", "--out", "--proba", "--json"),
        "cache": ("--clear", "--json"),
    }[verb]
    for _ in range(d.one((1, 1, 2, 3))):
        name = d.one((*options, *more, *more, f"--{d.argument()}")) if options or more else f"--{d.argument()}"
        if name == "--jobs" or (name == "--methods" and d.chance(0.5)):
            options[name] = d.one(("simplecil,lda", "0", "-1", "x", "", ",", "family:x", "1.5", "simplecil,simplecil"))
        elif name in ("--input", "--config") and d.chance(0.5):
            options[name] = d.one(("/dev/null", "..", "/", "/dev/zero", "nothing.csv", "/proc/self/mem", f"{table}/x"))
        elif name in ("--stream", "--backbone") and d.chance(0.6):
            options[name] = d.one(
                (
                    "..",
                    "hub:a/b",
                    "a/b",
                    "a/b/c",
                    "tiny@5",
                    "vit-tiny@0",
                    "vit-tiny@999999999",
                    "vit_tiny_patch16_224@-1",
                    "@",
                    "a" * 5000,
                    "a/" * 2000,
                    "/dev/zero",
                    "/dev/null",
                    "x.safetensors",
                    "hub:",
                    "~",
                    "digits_x",
                )
            )
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
    return command_case(d, argv, place)


def environment(d: Draw, seeds: Path, place: Path) -> Case:
    """Odd environment variables."""
    name = d.one(("EVERLEARN_CACHE", "EVERLEARN_CACHE_BYTES", "EVERLEARN_WEIGHTS", "COLUMNS", "HOME"))
    table = str(seeds / "data" / "table.csv")
    (place / "file").write_text("x")
    (place / "closed").mkdir(mode=0)
    (place / "loop").symlink_to("loop")
    value = (
        d.argument()
        if d.chance(0.6)
        else d.one(("file", "closed", "loop", "/dev/null", "/nonexistent/x", "/proc/1", "file/x", "a" * 5000))
    )
    value = os.fsdecode(os.fsencode(value))
    if name == "EVERLEARN_WEIGHTS":
        case = run_case(d, {"--stream": str(seeds / "data" / "pictures"), "--backbone": "vit-tiny"}, place)
        return Case(case.call, f"{name}={value!a} {case.told}", place, {name: value})
    argv = d.one(
        (
            ["cache"],
            ["cache", "--json"],
            ["cache", "--clear"],
            ["list", "methods"],
            ["predict", str(seeds / "runs" / "simplecil"), "--input", table],
            ["run", "--stream", table, "--backbone", "tiny", "--method", "lda", "--out", "out"],
        )
    )
    return command_case(d, argv, place, **{name: value})
