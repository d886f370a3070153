"""The configuration of a run: defaults, recipe, file and command line are merged and checked."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

from everlearn import backbones, methods, streams
from everlearn.errors import EverlearnError, as_word, not_named, shown, unknown
from everlearn.files import read_text
from everlearn.settings import Natural, Seed, arguments, checked, convert
from everlearn.streams.packaged import IR_DATASETS
from everlearn.streams.peek import goal_of, input_of
from everlearn.strict import MOST_YAML, from_yaml

Config = dict[str, Any]
"""{"stream": {"name": …}, "method": {"name": …}, "backbone": name or None, "seed": int}"""

DEFAULT_METHODS = {"classes": "logistic", "ranking": "lora"}
"""The default method, by the goal of the stream."""
DEFAULTS: Config = {"stream": {"name": "clinc150"}, "method": {"name": DEFAULT_METHODS["classes"]}, "backbone": None,
                    "seed": 0}  # fmt: skip
DATA_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".txt")
OTHERS = {
    "stream": "a file, a folder or hub:owner/name",
    "method": "FILE:CLASS for a method of your own",
    "backbone": "a hub name such as owner/model, or a folder",
}
"""What is accepted besides the names of this package, by kind."""
ELSEWHERE = {"seed": "--seed", "backbone": "--backbone"}  # constructor arguments that are not settings of the method


def build_config(
    options: Config, *, file: str | Path | None = None, recipe: str = "auto"
) -> tuple[Config, Path | None]:
    """Return the checked configuration and the recipe that it uses, if any.

    The order of precedence is: options, file, recipe, defaults. If the `name` in a section changes, the
    earlier settings of this section are dropped. A file that names the method is taken as complete, so
    "auto" adds no recipe to it: the config.yaml of an earlier run reproduces that run.

    Args:
        options: any part of a configuration, as given on the command line; text values are converted.
        file: a YAML file of the same structure.
        recipe: "auto" (see `usual_recipe`), "none", the name of a
            collection (see `find_recipe`), or a YAML file.

    Raises:
        EverlearnError: an unknown name or key, a value of the wrong type, or a file that cannot be read.

    >>> build_config({"stream": {"name": "digits"}, "seed": "3"}, recipe="none")[0]["seed"]
    3
    """
    _check_sections(options, "key")
    from_file = read_config(file) if file is not None else {}
    defaults = _defaults_for(merge(merge(DEFAULTS, from_file), options)["stream"].get("name"))
    wanted = merge(merge(defaults, from_file), options)
    method = _trusted(wanted, options, file)
    path = None
    if recipe == "auto":
        if merge({"method": {}}, from_file)["method"].get("name") != method:
            path = usual_recipe(wanted["stream"]["name"], input_of(wanted["stream"]), method)
    elif recipe != "none":
        if not isinstance(recipe, str | os.PathLike):
            raise EverlearnError(f"recipe: {shown(recipe)} is no name: give auto, none, the name of a collection such "
                                 "as papers, or a file")  # fmt: skip
        path = find_recipe(recipe, method) or Path(recipe)
    if path is None:
        return check_config(wanted), None
    names = {section: {"name": wanted[section]["name"]} for section in ("stream", "method")}
    base = merge(merge(defaults, names), read_config(path))
    config = merge(merge(base, from_file), options)
    _trusted(config, options, path)
    if (asked := config["method"].get("train")) is not None:
        train = arguments(methods.get(method)).get("train")
        if asked != base["method"].get("train", train and train.default):
            base["method"].pop("lr", None)  # it was chosen for what the recipe trains, not for what was asked for
            config = merge(merge(base, from_file), options)
    return check_config(config), path


def _defaults_for(stream: Any) -> Config:
    """The defaults, with a method that learns rankings where the name stands for queries and documents."""
    return merge(DEFAULTS, {"method": DEFAULT_METHODS[goal_of(stream)]})


def _trusted(config: Config, options: Config, file: object) -> str:
    """The name of the method. Code outside of the package is imported only if the options name it, not a file."""
    name = config["method"].get("name")
    if isinstance(name, str) and ":" in name and merge({"method": {}}, options)["method"].get("name") != name:
        methods.named_by(file, name)  # refuses it
    return str(name)


def read_config(path: str | Path) -> Config:
    """Return the mapping in a YAML file.

    Raises:
        EverlearnError: the file does not exist, is not YAML, or is not a mapping with the keys of a configuration.
    """
    data = from_yaml(read_text(path, MOST_YAML), path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise EverlearnError(f"{path}: the file holds a {type(data).__name__}, but must hold a mapping with the keys "
                             f"{', '.join(DEFAULTS)}")  # fmt: skip
    for record in ("saving", "tuning"):  # how a run was saved, and how its settings were chosen, changes no score
        data.pop(record, None)
    _check_sections(data, f"key in {path}")
    return data


def kept_and_validated(path: str | Path) -> tuple[int | None, bool]:
    """How many held-out examples the run of a config.yaml keeps, None where it does not say, and whether it scores the
    validation examples: a run that repeats it does the same.

    Raises:
        EverlearnError: the file cannot be read, or one of the two is of the wrong type.
    """
    data = from_yaml(read_text(path, MOST_YAML), path)
    saving = data.get("saving") if isinstance(data, dict) else None
    told = saving if isinstance(saving, dict) else {}
    keep = checked(f"saving.keep in {path}", told.get("keep"), Natural | None)
    return keep, checked(f"saving.validate in {path}", told.get("validate", False), bool)


def merge(base: Config, over: Config) -> Config:
    """Return `base` updated with `over`; if a stream or method has a new name, its old keys are dropped.

    >>> merge({"method": {"name": "l2p", "pool": 5}}, {"method": {"name": "ewc"}})
    {'method': {'name': 'ewc'}}
    """
    merged = dict(base)
    for key, value in over.items():
        if key not in ("stream", "method"):
            merged[key] = value
            continue
        section = {"name": value} if isinstance(value, str) else dict(value)
        old = merged.get(key, {})
        old = {"name": old} if isinstance(old, str) else old
        renamed = "name" in section and section["name"] != old.get("name")
        merged[key] = section if renamed else {**old, **section}
    return merged


def check_config(config: Config) -> Config:
    """Return the complete configuration as plain YAML values; inexpensive checks run first.

    Raises:
        EverlearnError: an unknown name or key (the message suggests a similar one), or a value of the wrong type.
    """
    _check_sections(config, "key")
    config = merge(DEFAULTS, config)
    stream, method, backbone = dict(config["stream"]), dict(config["method"]), config["backbone"]
    _check_name("stream", stream.get("name"), streams.names(), _is_data)
    _check_name("method", method.get("name"), methods.names(), lambda name: ":" in name)
    if backbone is not None:
        for part in backbones.parts_of(backbone) if isinstance(backbone, str) else [backbone]:
            bare = backbones.split_layers(part)[0] if isinstance(part, str) else part
            _check_name("backbone", bare, backbones.names(), _is_backbone)
    seed = convert("seed", config["seed"], Seed)
    stream.update(check_arguments("stream", streams.load, _without_name(stream)))
    if len(method) > 1:  # the constructor, and torch with it, is imported only if there are settings to check
        method.update(check_arguments("method", methods.get(method["name"]), _without_name(method)))
    return {"stream": stream, "method": method, "backbone": backbone, "seed": seed}


def check_arguments(section: str, function: Callable[..., Any], values: Config) -> Config:
    """The values of settings as the types in the signature; tuples become lists, as in YAML.

    Raises:
        EverlearnError: an unknown name, or a value of the wrong type or out of range.
    """
    known = {name: argument for name, argument in arguments(function).items() if name not in ELSEWHERE}
    for name in values:
        if name in ELSEWHERE:
            raise EverlearnError(f"{section}.{name} is not a setting of the {section}: give {ELSEWHERE[name]}")
        if name not in known:
            raise unknown(f"setting of the {section}", name, known)
    return {name: convert(f"{section}.{name}", value, known[name].type) for name, value in values.items()}


def find_recipe(collection: str, method: str) -> Path | None:
    """Return recipes/<collection>/<method>.yaml, if it exists. A collection holds settings that work well on the
    stream of that name, or the published settings ("papers").

    >>> find_recipe("clinc150", "no_such_method") is None
    True
    """
    if not re.fullmatch(r"[\w.-]+", method):
        return None  # a dotted path
    return next((file for folder in collections(collection) if (file := folder / f"{method}.yaml").is_file()), None)


def usual_recipe(stream: str, input: str, method: str) -> Path | None:
    """The recipe of this method for this stream; for other streams the one for texts, which was chosen on CLINC150, for
    images, or, where documents are ranked, that for domains4. None where there is none.

    >>> usual_recipe("tickets.csv", "text", "er").parts[-2:]
    ('clinc150', 'er.yaml')
    """
    if (path := find_recipe(stream, method)) is not None:
        return path
    usual = "domains4" if goal_of(stream) == "ranking" else {"text": "clinc150", "image": "images"}[input]
    return find_recipe(usual, method)


def check_collection(name: str) -> str:
    """Return `name` if it is a collection of recipes, "auto" or "none"; otherwise raise an EverlearnError.

    >>> check_collection("papers")
    'papers'
    """
    if name not in ("auto", "none") and not collections(name):
        known = ", ".join(sorted({folder.name for folder in collections("*")}))
        raise EverlearnError(f"recipe {shown(name)}: no such collection; give auto, none or one of {known}")
    return name


def collections(name: str) -> list[Path]:
    """The recipe folders that match the name."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.*-]+", name):
        return []  # a file, or no name at all
    package = Path(__file__).parent
    roots = (package / "recipes", package.parent / "recipes")  # in an installed package, and in a checkout
    return [folder for root in roots for folder in sorted(root.glob(name)) if folder.is_dir()]


def default_out(config: Config, root: str | Path = "runs") -> Path:
    """Return a new or empty folder: runs/<stream>-<method>-seed<seed>, if needed with the suffix -2, -3, …"""
    stream, method = config["stream"]["name"], config["method"]["name"].rpartition(":")[2]
    plain = re.sub(r"[^\w.-]+", "-", f"{Path(stream).stem}-{method}-seed{config['seed']}")
    folders = (Path(root) / (plain if number == 1 else f"{plain}-{number}") for number in count(1))
    return next(f for f in folders if not f.exists() or (f.is_dir() and not any(f.iterdir())))


def check_out(folder: str | Path) -> Path:
    """Return the folder if a run may be written to it.

    Raises:
        EverlearnError: it is a file, or already holds a run. Nothing in the folder is changed.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise EverlearnError(f"{folder} is a file: give another folder with --out")
    ours = ("config.yaml", "results.json", "compare.json", "tune.json", "checkpoints")
    held = [name for name in ours if (folder / name).exists()]
    if held:
        what = {"compare.json": "a comparison", "tune.json": "a search of settings"}.get(held[0], "a run")
        remedy = f"continue it with `everlearn resume {as_word(folder)}`, or " if what == "a run" else ""
        raise EverlearnError(f"{folder} already holds {what} ({held[0]}): {remedy}give another folder with --out")
    return folder


def check_file(option: str, file: Path, read: Iterable[Path] = (), *, overwrite: bool = False) -> None:
    """See that a command may write a file, before its work rather than after it.

    Args:
        option: that names the file, for the message.
        read: what the command reads.
        overwrite: whether a file that is there may be replaced.

    Raises:
        EverlearnError: its folder is not there or may not be written, or it is no file, is read, or is there and may
            not be replaced.

    >>> check_file("--out", Path("nowhere/answers.csv"))
    Traceback (most recent call last):
    everlearn.errors.EverlearnError: --out nowhere/answers.csv: its folder does not exist: make it first
    """
    if not file.parent.is_dir():
        raise EverlearnError(f"{option} {file}: its folder does not exist: make it first")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise EverlearnError(f"{option} {file}: its folder may not be written to: correct its permissions")
    if file.exists():
        if not file.is_file():
            raise EverlearnError(f"{option} {file} is no file: give another")
        if any(file.samefile(other) for other in read if other.exists()):
            raise EverlearnError(f"{option} {file} is what is read: give another")
        if not overwrite:
            raise EverlearnError(f"{file} exists already: give another file with {option}, or add --overwrite")


def _without_name(section: Config) -> Config:
    return {key: value for key, value in section.items() if key != "name"}


def _check_sections(config: Config, kind: str) -> None:
    for key, value in config.items():
        if key not in DEFAULTS:
            raise unknown(kind, key, DEFAULTS)
        if key in ("stream", "method") and not isinstance(value, (str, dict)):
            raise not_named(key, value)


def _check_name(kind: str, name: Any, known: dict[str, str], is_other: Callable[[str], bool]) -> None:
    if not isinstance(name, str) or not name:
        raise EverlearnError(f"{kind}: {shown(name)} is not a name: give one of {', '.join(sorted(known))}")
    if name not in known and not is_other(name):
        raise EverlearnError(f"{unknown(kind, name, known)}; or give {OTHERS[kind]}")


def _is_data(name: str) -> bool:
    """Whether `streams.load` accepts a text that is no stream name: a path, the stem of paths, or a hub data set."""
    path = Path(name)
    if name.startswith(IR_DATASETS):
        return True
    try:
        if os.path.exists(path) or (path.name and any(path.parent.glob(f"{glob.escape(path.name)}_*"))):
            return True
    except (OSError, ValueError) as error:  # a path that is too long, may not be listed, or holds a null character
        raise EverlearnError(f"{name} cannot be looked up ({getattr(error, 'strerror', None) or error})") from None
    if path.suffix.lower() in DATA_ENDINGS or name.count("/") > 1 or name.startswith((".", "/")):
        raise EverlearnError(f"no such file or folder: {name}")
    return "/" in name


def _is_backbone(name: str) -> bool:
    """Whether `backbones.load` accepts a text that is no short name; timm is imported only for a possible timm name."""
    bare, _, size = name.partition("@")
    if "/" in name or os.path.exists(name) or bare.endswith(".safetensors") or (size and bare in ("vit-tiny", "lit")):
        return True
    if "_" not in bare:
        return False
    from everlearn.backbones import vision

    return vision.is_timm_name(bare)


def run_folder(directory: Path) -> Path:
    """The run folder that was given to a command.

    Raises:
        EverlearnError: there is none.

    >>> run_folder(Path("nowhere"))
    Traceback (most recent call last):
    everlearn.errors.EverlearnError: nowhere: no such run folder; check the path
    """
    if not directory.is_dir():
        raise EverlearnError(f"{directory}: no such run folder; check the path")
    return directory
