"""The commands. Large libraries are imported only when they are needed, so that help and lists are fast."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from everlearn import (
    distill_command,
    label_commands,
    lit_command,
    merge_command,
    methods,
    streams,
    tune_command,
    version_commands,
)  # fmt: skip
from everlearn.command_line import described, parse
from everlearn.config import (
    ELSEWHERE,
    arguments,
    build_config,
    check_out,
    default_out,
    kept_and_validated,
    run_folder,
)
from everlearn.errors import EverlearnError, printable, remedy_for
from everlearn.evaluate_command import run_evaluate
from everlearn.events_command import run_events
from everlearn.interrupts import Interrupted
from everlearn.predict_command import run_predict
from everlearn.retrieval import index_commands, migrate_commands
from everlearn.settings import Count, Minutes, checked
from everlearn.streams.packaged import OWN
from everlearn.version_commands import to_keep


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    >>> main(["list", "backbones", "--json"])  # doctest: +ELLIPSIS
    {...
    0
    """
    # Threads that wait actively slow down other processes on the same core; torch reads this setting only once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold bytes that the terminal's encoding cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        named = f"{getattr(args, 'method', '')}{getattr(args, 'methods', '')}"
        if ":" in named.replace("family:", "") and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # `--method my_file:MyMethod` may be a file in the current folder
        if args.verb is None:
            args.parser.print_help()
            return 0
        with _terminable():
            return COMMANDS[args.verb](args)
    except (Exception, KeyboardInterrupt) as error:
        code, line = _explain(error)
        if code is None or os.environ.get("EVERLEARN_DEBUG") == "1":
            raise
        if line:
            print(f"everlearn: {line}", file=sys.stderr)
        return code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within this context SIGTERM, which job schedulers and containers send, saves and stops like Ctrl-C."""

    def terminate(signum: int, frame: Any) -> None:
        interrupt = signal.getsignal(signal.SIGINT)  # it is ignored if a shell without job control started this process
        (interrupt if callable(interrupt) else signal.default_int_handler)(signum, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _explain(error: BaseException) -> tuple[int | None, str]:
    """The exit code and the message for an error; the code is None for an error that is a bug in everlearn."""
    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return 130, str(error) or "interrupted"
    if isinstance(error, EverlearnError):
        return 2, str(error)
    if isinstance(error, BrokenPipeError):  # `everlearn list | head`: the reader has closed the pipe, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, ""
    if isinstance(error, OSError):
        where = f" at {printable(os.fsdecode(error.filename))}" if isinstance(error.filename, str | bytes) else ""
        return 2, f"{printable(error.strerror or error)}{where}: {remedy_for(error)}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return 2, f"there is not enough memory ({printable(error, 100)}): give smaller settings or less data"
    return None, ""


def _run(args: argparse.Namespace) -> int:
    if args.help:
        return _help(args)
    checked("--save-minutes", args.save_minutes, Minutes)
    checked("--save-steps", args.save_steps, Count | None)
    config, recipe = build_config(_options(args), file=args.config, recipe=args.recipe)
    out = check_out(args.out) if args.out else default_out(config)
    if recipe is not None:
        name = str(recipe) if str(recipe) == args.recipe else f"{recipe.parent.name}/{recipe.stem}"
        other = args.recipe == "auto" and recipe.parent.name != config["stream"]["name"]
        print(f"settings: recipe {name}{', chosen on other data' * other} (--recipe none for the method's own)",
              file=sys.stderr)  # fmt: skip
    kept, validated = kept_and_validated(args.config) if args.config else (None, False)
    keep = to_keep(args.keep) if args.keep is not None or kept is None else kept
    with _only_json(args.json):
        from everlearn.protocol import run

        result = run(config["method"], config["stream"], backbone=config["backbone"], out=out, seed=config["seed"],
                     save_minutes=args.save_minutes, save_steps=args.save_steps, keep=keep,
                     validate=args.validate or validated, progress=True)  # fmt: skip
    return _show(result, args.json)


def _resume(args: argparse.Namespace) -> int:
    run_folder(args.directory)
    with _only_json(args.json):
        from everlearn.protocol import resume

        result = resume(args.directory, method=args.method, progress=True)
    return _show(result, args.json)


def _show(result: Any, as_json: bool) -> int:
    if as_json:
        print(json.dumps(result.results, indent=1))
    else:
        from everlearn.run_table import final_table

        final_table(result.results, result.directory)
    return 0


def _compare(args: argparse.Namespace) -> int:
    config = build_config(_options(args), recipe="none")[0]
    out = Path(args.out) if args.out else default_out({**config, "method": {"name": "compare"}})
    if args.jobs is not None and args.jobs < 1:
        raise EverlearnError("--jobs must be at least 1")
    gate = _gate(args.gate)
    with _only_json(args.json):
        from everlearn.comparison import compare
        from everlearn.processes import default_jobs

        results = compare(args.methods, config["stream"], backbone=config["backbone"], out=out, seed=config["seed"],
                          seeds=args.seeds, gate=gate, budget_bytes=args.budget_bytes,
                          budget_steps=args.budget_steps, progress=True, recipe=args.recipe,
                          jobs=args.jobs or default_jobs())  # fmt: skip
    from everlearn.judgement import above_joint
    from everlearn.recommendation import recommendation

    text = recommendation(results, gate)
    if args.json:
        told = {"results": results, "recommendation": text, "warnings": above_joint(results)}
        print(json.dumps(told, indent=1))
    else:
        from everlearn.comparison_table import compare_table

        compare_table(results, gate)
        print("\n" + textwrap.fill(text, 100))
        print(f"report   {out / 'report.html'}")
    return 1 if any("error" in r for r in results) else 0


def _gate(text: str) -> tuple[float, float]:
    """The two shares of --gate, which are given in per cent.

    >>> _gate("80,90")
    (0.8, 0.9)
    """
    try:
        old, new = (float(word) / 100 for word in text.split(","))
    except ValueError:
        raise EverlearnError(f"--gate {text}: give two numbers, in % of joint's score on old tasks and on the newest "
                             "one, such as --gate 80,90") from None  # fmt: skip
    return old, new


def _report(args: argparse.Namespace) -> int:
    from everlearn.report import write_report

    out = args.out or (args.directories[0] if len(args.directories) == 1 else Path()) / "report.html"
    print(write_report(args.directories, out))
    return 0


def _list(args: argparse.Namespace) -> int:
    import importlib

    kinds = [args.kind] if args.kind else ["methods", "streams", "backbones"]
    found = {kind: importlib.import_module(f"everlearn.{kind}").names() for kind in kinds}
    if args.json:
        print(json.dumps(found[args.kind] if args.kind else found, indent=1))
        return 0
    for kind, names in found.items():
        if not args.kind:
            print(f"{kind}:")
        print(described(names))
        if kind == "streams":
            print(f"\nyour own data, with --stream:\n{described(OWN)}")
    return 0


def _cache(args: argparse.Namespace) -> int:
    from everlearn.features import cache_info, clear_cache

    entries = cache_info()
    if args.clear is not None:
        begun = [entry["identity"] for entry in entries if entry["identity"].startswith(args.clear.rstrip("…"))]
        if args.clear != "all" and len(begun) != 1:
            raise EverlearnError(f"unknown identity '{printable(args.clear)}': give one that `everlearn cache` lists; "
                                 "its beginning is enough where no other begins so")  # fmt: skip
        freed = clear_cache(None if args.clear == "all" else begun[0])
        print(json.dumps({"freed_bytes": freed}) if args.json else f"freed {freed / 2**20:.1f} MiB")
    elif args.json:
        print(json.dumps(entries, indent=1))
    else:
        from everlearn.console import cache_table

        cache_table(entries)
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The part of the configuration that is given on the command line."""

    def given(**options: Any) -> dict[str, Any]:
        return {key: value for key, value in options.items() if value is not None}

    stream = {**given(name=args.stream, tasks=args.tasks), **args.settings["stream"]}
    method = {**given(name=getattr(args, "method", None)), **args.settings["method"]}
    return given(backbone=args.backbone, seed=args.seed, stream=stream, method=method)


def _help(args: argparse.Namespace) -> int:
    """Print the options of `run`, then the settings of the given method and stream."""
    named: dict[str, Callable[..., Any]] = {}
    if args.method:
        named["method"] = methods.get(args.method)
    if args.stream:
        named["stream"] = streams.load
    args.parser.print_help()
    for section, function in named.items():
        print(f"\nsettings of the {section} {getattr(args, section)}:")
        for name, argument in arguments(function).items():
            if name not in ELSEWHERE:
                head = f"  --{section}.{name} ({argument.type_name}, default {argument.default!r})"
                print(head, *textwrap.wrap(argument.help, 90), sep="\n      ")
    return 0


def _only_json(redirect: bool) -> contextlib.AbstractContextManager[Any]:
    """Redirect the output of libraries to stderr, so that programs can read standard output."""
    return contextlib.redirect_stdout(sys.stderr) if redirect else contextlib.nullcontext()


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run, "compare": _compare, "resume": _resume, "report": _report, "predict": run_predict,
    "evaluate": run_evaluate, "events": run_events, "list": _list, "cache": _cache, **version_commands.COMMANDS,
    **index_commands.COMMANDS, **migrate_commands.COMMANDS, **label_commands.COMMANDS, **distill_command.COMMANDS,
    **lit_command.COMMANDS, **merge_command.COMMANDS, **tune_command.COMMANDS,
}  # fmt: skip
