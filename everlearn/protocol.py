"""The protocol: start a run from names or objects, or resume one that was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from everlearn import backbones, methods, streams
from everlearn.config import DEFAULT_METHODS, check_arguments
from everlearn.errors import EverlearnError, as_word, not_named
from everlearn.evaluation import supports
from everlearn.files import rewrite_lines, write_whole
from everlearn.held_out import KEEP
from everlearn.locks import alone
from everlearn.method import Method
from everlearn.results import Result, write_results
from everlearn.schemas.config import read_config
from everlearn.schemas.results import read_results
from everlearn.schemas.values import check_names
from everlearn.session import Session
from everlearn.settings import Count, Minutes, Natural, Seed, checked
from everlearn.streams.stream import Stream

FILES = ("name", "test", "validation", "new")  # what may name a file in the settings of a stream


def run(
    method: str | dict[str, Any] | Method | None = None,
    stream: str | dict[str, Any] | Stream = "clinc150",
    *,
    backbone: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    save_minutes: float = 5.0,
    save_steps: int | None = None,
    keep: int = KEEP,
    validate: bool = False,
    progress: bool = False,
) -> Result:
    """Learn a stream with a method and evaluate it on every task so far, after every task.

    Args:
        method: a name, ``{"name": "ranpac", "width": 5000}``, or a Method of your own. By default the one that
            `everlearn.config.DEFAULT_METHODS` names for the goal of the stream.
        stream: a name or file, ``{"name": "clinc150", "tasks": 10}``, or a Stream, such as
            `everlearn.streams.from_rows` and `from_table` give it.
        backbone: a name for `everlearn.backbones.load`; by default minilm for texts, vit-tiny for images.
        out: the run's folder: configuration, checkpoints, results, report. None keeps nothing on disk.
        seed: of everything random in the method. The class order has its own (`class_seed`). A Method of your own is
            built with its seed, and with its backbone.
        save_minutes: a checkpoint at least this often while a task is trained.
        save_steps: a checkpoint every so many steps as well.
        keep: how many test examples, and how many of those for calibration, stay in the folder, so that an update can
            be compared with what was before; 0 keeps none.
        validate: whether the stream's validation examples are scored at the end too, so that methods can be chosen by
            them and not by the tests.
        progress: whether to show progress bars.

    Returns:
        The result; its fields are those of results.json.

    Raises:
        EverlearnError: a name, a setting or the data is wrong, or the folder holds a run already.
        Interrupted: Ctrl-C, after saving.

    >>> result = run("simplecil", {"name": "digits", "tasks": 5, "max_train_per_class": 9}, backbone="tiny")
    >>> len(result.accuracy_matrix)
    5
    """
    checked("seed", seed, Seed)
    checked("save_minutes", save_minutes, Minutes)
    checked("save_steps", save_steps, Count | None)
    checked("keep", keep, Natural)
    built = stream if isinstance(stream, Stream) else load_stream(absolute(_named("stream", stream)))
    check_names((built.name, *built.class_names))
    method = DEFAULT_METHODS[built.goal] if method is None else method
    learner, name = build_method(method, built, backbone, seed)
    section, encoder = _method_config(method, name), backbones.absolute(learner.backbone.name)
    config = {"stream": _about(built), "method": section, "backbone": encoder, "seed": learner.seed}
    saving = {"save_minutes": save_minutes, "save_steps": save_steps, "keep": keep, "validate": validate}
    folder = _folder(out) if out is not None else None
    with alone(folder) if folder else nullcontext():
        if folder:  # not before the lock: of two runs that begin at once, one would write over the other
            _claim(folder, {**config, "saving": saving})
        session = Session(learner, built, config, folder, save_minutes, save_steps, progress, keep, validate)
        return session.learn()


def resume(
    directory: str | Path, *, method: str | type[Method] | None = None, stream: Stream | None = None,
    progress: bool = False,
) -> Result:  # fmt: skip
    """Continue a run that was stopped or killed; the result is the one that it would have had.

    Args:
        directory: the run's folder.
        method: the method that the folder holds. It must be given where that is not a method of everlearn, because
            code is never imported at the word of a file.
        stream: the same data again. It must be given where the run learned rows in memory.
        progress: whether to show progress bars.

    Raises:
        EverlearnError: not a run's folder, a damaged checkpoint, data that has changed since, a method that is not
            the expected one, or a process that is still learning there.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> small = {"name": "clinc150", "tasks": 2, "max_train_per_class": 2, "max_test_per_class": 1}
    >>> result = run("simplecil", small, backbone="tiny", out=folder)
    >>> resume(folder).final_accuracy == result.final_accuracy  # it was finished: the same result again
    True
    """
    folder = Path(directory)
    config, saving = read_run(folder)
    if (folder / "results.json").exists():
        results = read_results(folder / "results.json")
        if not (folder / "report.html").exists():
            write_results(folder, results)  # killed between the two
        return Result(results, folder)
    if (folder / "checkpoints").is_symlink():
        raise EverlearnError(f"{folder / 'checkpoints'} is a link, and a run writes only into its own folder: replace "
                             "it by the folder that it points to")  # fmt: skip
    cls = methods.named_by(folder, config["method"]["name"], method)
    if stream is None and config["stream"].get("in_memory"):
        remedy = "give the same again in Python: everlearn.resume(DIR, stream=everlearn.streams.from_rows(…))"
        raise EverlearnError(f"the run in {folder} learned rows in memory, which it does not keep: {remedy}")
    if stream is not None and _about(stream) != config["stream"]:
        raise EverlearnError(f"the run in {folder} began with other rows or options than those of the stream: give the "
                             "same again")  # fmt: skip
    built = stream or load_stream(config["stream"])
    learner, _ = build_method(config["method"], built, config["backbone"], config["seed"], cls)
    session = Session(learner, built, config, folder, **saving, progress=progress)
    with alone(folder):
        session.restore()
        return session.learn()


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run folder's configuration, and how it saves.

    Raises:
        EverlearnError: it is not a run's folder.
    """
    config = read_config(folder)
    return config, {"save_minutes": 5.0, "save_steps": None, "keep": KEEP} | config.pop("saving", {})


def build_method(
    method: str | dict[str, Any] | Method, stream: Stream, backbone: str | None, seed: int,
    cls: type[Method] | None = None,
) -> tuple[Method, str]:  # fmt: skip
    """A method that has learned nothing, on the device where it learns, and its name.

    Raises:
        EverlearnError: it cannot learn the stream with the backbone.
    """
    if isinstance(method, Method):
        if hasattr(method, "task"):
            raise EverlearnError(f"the method has learned {method.task.index + 1} tasks already, and a run starts from "
                                 "an untouched one: build a new one, or teach this one with "
                                 "everlearn.engine.learn")  # fmt: skip
        own = method.backbone.name
        for key, given, has in (("backbone", backbone or own, own), ("seed", seed or method.seed, method.seed)):
            if given != has:
                raise EverlearnError(f"{key}={given}: the method was built with {key} {has}, which a run keeps: leave "
                                     f"{key} out here, and build the method with it")  # fmt: skip
        cls, name, settings = type(method), methods.name_of(type(method)), method.settings
    else:
        settings = _named("method", method)
        name = settings.pop("name")
        cls = cls or methods.get(name)
        settings = check_arguments("method", cls, settings)
    if reason := supports(cls.tags, stream):
        raise EverlearnError(f"method '{name}' {reason}")
    usual = backbones.default_for(stream.input)
    load = backbones.load_when_needed if methods.is_own(cls) else backbones.load
    encoder = method.backbone if isinstance(method, Method) else load(backbone or usual)
    if stream.input not in encoder.reads:
        raise EverlearnError(f"backbone '{encoder.name}' reads {' and '.join(encoder.reads)}, but stream "
                             f"'{stream.name}' has {stream.input}: try --backbone {usual}")  # fmt: skip
    if reason := supports(cls.tags, stream, encoder, settings):
        raise EverlearnError(f"method '{name}' {reason}")
    learner = method if isinstance(method, Method) else cls(encoder, **settings, seed=seed)
    return learner.to("cuda" if torch.cuda.is_available() else "cpu"), name


def load_stream(section: dict[str, Any]) -> Stream:
    """The stream of a section of the configuration."""
    settings = {key: value for key, value in section.items() if key != "name"}
    return streams.load(section["name"], **check_arguments("stream", streams.load, settings))


def _about(stream: Stream) -> dict[str, Any]:
    """What config.yaml says of a stream: how it is loaded again, or the fingerprint of rows that were in memory."""
    return stream.config or {"name": stream.name, "in_memory": stream.fingerprint()}


def _named(kind: str, section: str | dict[str, Any]) -> dict[str, Any]:
    named = {"name": section} if isinstance(section, str) else section
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        raise not_named(kind, section)
    return dict(named)


def absolute(section: dict[str, Any]) -> dict[str, Any]:
    """The section with absolute paths of its files, so that a run can be resumed from any folder."""
    named = {key: value for key, value in section.items() if key in FILES and isinstance(value, str)}
    # A packaged stream keeps its name, even where a file or folder here is called the same.
    paths = {key: Path(value) for key, value in named.items() if value not in streams.names()}
    return {**section, **{key: str(path.resolve()) for key, path in paths.items() if path.exists()}}


def _method_config(method: Any, name: str) -> dict[str, Any]:
    if isinstance(method, Method):
        return {"name": name, **{key: value for key, value in method.settings.items() if key != "seed"}}
    return _named("method", method)


def _folder(out: str | Path) -> Path:
    """The folder of a new run, which is made where there is none."""
    folder = Path(out)
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _claim(folder: Path, config: dict[str, Any]) -> None:
    """Write what the folder is a run of. The caller holds the folder's lock.

    Raises:
        EverlearnError: it holds a run already, or cannot be written.
    """
    if (folder / "config.yaml").exists():
        raise EverlearnError(f"{folder} holds a run already: `everlearn resume {as_word(folder)}`, or give another "
                             "--out")  # fmt: skip
    with _writable(folder):
        rewrite_lines(folder / "metrics.jsonl", [])
        write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EverlearnError(f"{folder} cannot be written ({error.strerror or error}): give another --out") from error
