"""The command line: the commands, their options, and the settings of method and stream."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from everlearn import (
    __version__,
    distill_command,
    evaluate_command,
    events_command,
    label_commands,
    lit_command,
    merge_command,
    methods,
    options,
    predict_command,
    streams,
    tune_command,
    version_commands,
)
from everlearn.config import DEFAULT_METHODS
from everlearn.errors import EverlearnError, unknown
from everlearn.retrieval import index_commands, migrate_commands
from everlearn.settings import arguments
from everlearn.streams.packaged import OWN

ABOUT = """\
Update a pre-trained model with new data, keep what it could do, and prove both.

  everlearn run                                              an example: CLINC150 in 10 tasks
  everlearn run --stream tickets.csv --tasks 1 --out model   learn your own data, with columns text and label
  everlearn predict model --input new.csv                    predict the classes of new texts
  everlearn update model --data next_month.csv               learn new data and new classes
  everlearn rollback model                                   return to the version before the update
  everlearn compare --methods lda,ranpac,joint               compare methods on one stream, with a recommendation
  everlearn run --method l2p --help                          the settings of one method
"""

SAME = {"--tasks": "--stream.tasks", "--stream": "--stream.name", "--method": "--method.name"}
"""Options that are short for a setting."""

SEVERAL = ("--template",)
"""Options that may be given several times."""

BACKBONE = ("the pre-trained encoder (default: minilm, or vit-tiny for images, but run takes that of its recipe where "
            "there is one); A+B joins the features of two")  # fmt: skip

EXIT = """\
exit codes: 0 success; 1 a method failed in compare; 2 the command cannot be carried out (the message says why);
130 interrupted: the state is saved, continue with `everlearn resume DIR`. EVERLEARN_DEBUG=1 shows tracebacks.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command (`verb`, None if none was given), its options, its `parser` and the `settings`.

    Raises:
        EverlearnError: an unknown command or option (the message suggests a similar one), or a missing value.
        SystemExit: after --help or --version.

    >>> parse(["run", "--tasks", "5", "--method.width", "20"]).settings["method"]
    {'width': '20'}
    """
    parser, verbs = _parsers()
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        raise unknown("command", argv[0], verbs)
    words = list(argv)
    argv, settings = split_settings(argv)
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        option, equals, value = word.partition("=")
        # An empty value is a variable of the shell that is not set; and argparse gives [] for --out=--.
        if option.startswith("--") and (value in ("", "--") if equals else following == ""):
            raise EverlearnError(f"{option} needs a value")
    args, rest = parser.parse_known_args(argv)
    args.settings, args.words = settings, words
    args.parser = verbs.get(f"{args.verb} {getattr(args, 'action', None)}", verbs.get(args.verb, parser))
    if rest and rest[0].startswith("-"):
        option, known = rest[0].split("=")[0], args.parser._option_string_actions
        if setting := _setting(option, args):
            raise EverlearnError(f"unknown option '{option}': did you mean '{setting}'?")
        raise unknown("option", option, known)
    if rest:
        raise EverlearnError(f"unexpected argument '{rest[0]}' (see {args.parser.prog} --help)")
    for section, values in settings.items():
        if values and f"--{section}.KEY" not in args.parser._option_string_actions:
            raise EverlearnError(f"`{args.parser.prog}` does not accept --{section}.{next(iter(values))}: "
                                 "give settings to `everlearn run`")  # fmt: skip
    return args


def _setting(option: str, args: argparse.Namespace) -> str | None:
    """The setting of the stream or the method that somebody who wrote `--text_column` or `--epochs` means, if any."""
    key, known = option.lstrip("-").replace("-", "_"), args.parser._option_string_actions
    name = getattr(args, "method", None) or DEFAULT_METHODS["classes"]
    if "--method.KEY" in known and name in methods.names() and key in arguments(methods.get(name)):
        return f"--method.{key}"
    of_stream = version_commands.SETTINGS if args.verb in ("update", "evaluate") else arguments(streams.load)
    return f"--stream.{key}" if "--stream.KEY" in known and key in of_stream else None


def split_settings(argv: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the arguments without --method.KEY and --stream.KEY, and the values of these two as mappings.

    Raises:
        EverlearnError: a setting without a value, or an option that is given twice.

    >>> split_settings(["run", "--method.width", "20", "--stream.kind=online"])
    (['run'], {'method': {'width': '20'}, 'stream': {'kind': 'online'}})
    """
    same = {**SAME, "--tasks": "--tasks"} if argv[:1] == ["tune"] else SAME
    options = [same.get(option, option) for option in (word.partition("=")[0] for word in argv) if option[:2] == "--"]
    if repeated := [option for option, count in Counter(options).items() if count > 1 and option not in SEVERAL]:
        names = " or ".join([*(short for short, name in same.items() if name == repeated[0]), repeated[0]])
        raise EverlearnError(f"{names} is given twice: give it once")
    rest: list[str] = []
    settings: dict[str, dict[str, str]] = {"method": {}, "stream": {}}
    words = iter(argv)
    for word in words:
        section, dot, key = word.removeprefix("--").partition(".")
        if not (word.startswith("--") and dot and section in settings):
            rest.append(word)
            continue
        key, equals, value = key.partition("=")
        following = value if equals else next(words, None)
        if following is None or (not equals and following.startswith("--")):
            raise EverlearnError(f"--{section}.{key} needs a value: --{section}.{key} VALUE")
        settings[section][key] = following
    return rest, settings


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises its errors as one-line EverlearnErrors."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)

    def error(self, message: str) -> NoReturn:
        raise EverlearnError(f"{message} (see {self.prog} --help)")


def described(names: Mapping[str, str]) -> str:
    """Names and what they are, in two columns.

    >>> print(described({"digits": "10 handwritten digits"}))
    digits  10 handwritten digits
    """
    width = max(map(len, names), default=0)
    return "\n".join(
        textwrap.fill(text, 100, initial_indent=f"{name:<{width}}  ", subsequent_indent=" " * (width + 2))
        for name, text in names.items()
    )


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="everlearn", description=ABOUT, epilog=EXIT)
    parser.add_argument("--version", action="version", version=f"everlearn {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=Parser)
    made: dict[str, Parser] = {}

    own = f"your own data, with --stream:\n{described(OWN)}"

    def verb(name: str, text: str, **keywords: Any) -> Parser:
        made[name] = verbs.add_parser(name, help=text, description=text, **keywords)
        return made[name]

    def common(p: Parser, out: str) -> None:
        p.add_argument("--stream", metavar="NAME|FILE", help="the data to learn (default: clinc150)")
        p.add_argument(
            "--tasks", type=int, metavar="N", help="number of tasks (default: 10, or fewer if there are few classes)"
        )
        p.add_argument("--backbone", metavar="NAME|DIR", help=BACKBONE)
        p.add_argument("--seed", type=int, metavar="N", help="the random seed (default: 0)")
        p.add_argument("--out", metavar="DIR", help=out)
        options.as_json(p)

    p = verb("run", "learn a stream with one method", add_help=False, epilog=own)
    p.add_argument("-h", "--help", action="store_true", help="show this help; --method, --stream add their settings")
    common(p, "the run folder (default: a new one, runs/<stream>-<method>-seed<seed>)")
    usual = "{classes}; {ranking} for retrieval".format(**DEFAULT_METHODS)
    p.add_argument("--method", metavar="NAME", help=f"the continual learning method (default: {usual})")
    p.add_argument("--method.KEY", metavar="VALUE", help="a setting of the method, e.g. --method.rows 5000")
    p.add_argument("--stream.KEY", metavar="VALUE", help="a setting of the stream, e.g. --stream.text_column text")
    p.add_argument("--config", metavar="FILE", help="a YAML file; the config.yaml of a run repeats that run")
    p.add_argument("--recipe", default="auto", metavar="auto|papers|none|FILE", help="where settings of "
                   "the method come from. auto: chosen for this stream, or for texts or images if the data are your "
                   "own (default); papers: the published settings; clinc150, images: the settings for these data; "
                   "none: the defaults of the method; FILE: a recipe, as `tune --write` makes it")  # fmt: skip
    p.add_argument("--save-minutes", type=float, default=5.0, metavar="M", help="save every M minutes (default: 5)")
    p.add_argument("--save-steps", type=int, metavar="N", help="also save every N steps")
    options.keep(p, "2000 for tests, 2000 for calibration")
    p.add_argument("--validate", action="store_true", help="also compute the scores on the validation examples at the "
                   "end; compare always does, and chooses by these scores")  # fmt: skip

    p = verb("compare", "learn a stream with several methods and recommend one of them", epilog=own)
    common(p, "the folder of all runs; give the same folder again to continue")
    p.add_argument("--stream.KEY", metavar="VALUE", help="a setting of the stream")
    p.add_argument("--methods", default="all", metavar="LIST", help="names such as lda,er,joint, or a family such "
                   "as family:prompt (default: all)")  # fmt: skip
    p.add_argument("--recipe", default="auto", metavar="auto|papers|none", help="as for run, but not a file")
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="compare N times, each time with another order of "
                   "the classes, other drawn examples and another seed of the methods, and give 95 %% intervals "
                   "(default: 1)")  # fmt: skip
    p.add_argument("--gate", default="80,90", metavar="OLD,NEW", help="the limits of the gate, in %% of the "
                   "score of joint on old tasks and on the newest task (default: 80,90)")  # fmt: skip
    p.add_argument("--budget-bytes", type=int, metavar="N", help="bytes of old examples that each method may keep, "
                   "instead of a number of examples")  # fmt: skip
    p.add_argument("--budget-steps", type=int, metavar="N", help="optimizer steps in a task for each method that "
                   "trains, rounded to whole epochs")  # fmt: skip
    p.add_argument("--jobs", type=int, metavar="N",
                   help="number of trained methods to run in parallel; they share the cores (default: one per core, "
                        "at most four; one on an accelerator)")  # fmt: skip

    tune_command.add_parser(verb)

    p = verb("resume", "continue an interrupted run, with the same result")
    options.run_folder(p)
    options.own_method(p)
    options.as_json(p)
    p = verb("report", "write the HTML report of one run, or a comparison of several runs")
    p.add_argument("directories", metavar="DIR", type=Path, nargs="+", help="run folders, or a comparison's folder")
    p.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in DIR, or here for several DIRs")
    events_command.add_parser(verb)
    predict_command.add_parser(verb)
    evaluate_command.add_parser(verb)
    version_commands.add_parsers(verb)
    label_commands.add_parser(verb)
    merge_command.add_parser(verb)
    index_commands.add_parsers(verb, made)
    migrate_commands.add_parser(verb)
    distill_command.add_parser(verb)
    lit_command.add_parser(verb)
    p = verb("list", "list the available methods, streams and backbones")
    p.add_argument("kind", nargs="?", choices=("methods", "streams", "backbones"))
    options.as_json(p)
    p = verb("cache", "show or clear the stored features of frozen backbones")
    p.add_argument(
        "--clear", nargs="?", const="all", metavar="IDENTITY", help="remove the features of all backbones, or of one"
    )
    options.as_json(p)
    return parser, made
