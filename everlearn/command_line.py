"""What the command line looks like: the commands, their options, and the settings of method and stream."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from everlearn import __version__
from everlearn.errors import EverlearnError, unknown

ABOUT = """\
Update a pre-trained model with new data, keep what it could do, and prove both.

  everlearn run                                   the main job: CLINC150 in 10 tasks, RanPAC, MiniLM
  everlearn run --method l2p --help               the settings of one method
  everlearn run --stream tickets.csv --tasks 5    your own data
  everlearn compare --methods ranpac,ewc,joint    several methods on one stream, and which one to take
"""

EXIT = """\
exit codes: 0 done; 1 compare: a method failed; 2 what you asked for cannot be done, and why;
130 interrupted: all is saved and `everlearn resume DIR` goes on. EVERLEARN_DEBUG=1 shows tracebacks.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command (`verb`, None if there is none), its options, its `parser`, and the `settings`.

    Raises:
        EverlearnError: an unknown command or option, with the nearest right one; a missing value.
        SystemExit: after --help or --version.

    >>> parse(["run", "--tasks", "5", "--method.width", "20"]).settings["method"]
    {'width': '20'}
    """
    parser, verbs = _parsers()
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        raise unknown("command", argv[0], verbs)
    argv, settings = split_settings(argv)
    args, rest = parser.parse_known_args(argv)
    args.settings, args.parser = settings, verbs.get(args.verb, parser)
    if rest and rest[0].startswith("-"):
        raise unknown("option", rest[0].split("=")[0], args.parser._option_string_actions)
    if rest:
        raise EverlearnError(f"'{rest[0]}' is one argument too many (see {args.parser.prog} --help)")
    for section, values in settings.items():
        if values and f"--{section}.KEY" not in args.parser._option_string_actions:
            raise EverlearnError(f"`{args.parser.prog}` does not take --{section}.{next(iter(values))}: "
                                 "settings are given to `everlearn run`")  # fmt: skip
    return args


def split_settings(argv: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The arguments without --method.KEY and --stream.KEY, and these two as mappings.

    >>> split_settings(["run", "--method.width", "20", "--stream.kind=online"])
    (['run'], {'method': {'width': '20'}, 'stream': {'kind': 'online'}})
    """
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
            raise EverlearnError(f"--{section}.{key} needs a value, as --{section}.{key} VALUE")
        settings[section][key] = following
    return rest, settings


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line like all others."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)

    def error(self, message: str) -> NoReturn:
        raise EverlearnError(f"{message} (see {self.prog} --help)")


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="everlearn", description=ABOUT, epilog=EXIT)
    parser.add_argument("--version", action="version", version=f"everlearn {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=Parser)
    made: dict[str, Parser] = {}

    def verb(name: str, text: str, **keywords: Any) -> Parser:
        made[name] = verbs.add_parser(name, help=text, description=text, **keywords)
        return made[name]

    def common(p: Parser, out: str) -> None:
        p.add_argument("--stream", metavar="NAME|FILE", help="what is learned (default: clinc150)")
        p.add_argument(
            "--tasks", type=int, metavar="N", help="steps in which it arrives (default: 10, fewer for few classes)"
        )
        p.add_argument("--backbone", metavar="NAME|DIR", help="default: minilm, or vit-tiny for images")
        p.add_argument("--seed", type=int, metavar="N", help="default: 0")
        p.add_argument("--out", metavar="DIR", help=out)

    p = verb("run", "learn a stream with one method", add_help=False)
    p.add_argument("-h", "--help", action="store_true", help="this; with --method or --stream also its settings")
    common(p, "the run folder (default: a new one, runs/<stream>-<method>-seed<seed>)")
    p.add_argument("--method", metavar="NAME", help="how it is learned (default: ranpac)")
    p.add_argument("--method.KEY", metavar="VALUE", help="a setting of the method, as --method.width 2000")
    p.add_argument("--stream.KEY", metavar="VALUE", help="a setting of the stream, as --stream.text_column text")
    p.add_argument("--config", metavar="FILE", help="YAML; the config.yaml of a run repeats that run")
    p.add_argument("--recipe", default="auto", metavar="auto|papers|none|FILE", help="settings known to be good on "
                   "this stream, where there are any; papers: as published; clinc150, images: as for these; none: the "
                   "method's own defaults")  # fmt: skip
    p.add_argument("--save-minutes", type=float, default=5.0, metavar="M", help="a checkpoint that often (default: 5)")
    p.add_argument("--save-steps", type=int, metavar="N", help="a checkpoint every N steps as well")

    p = verb("compare", "learn a stream with several methods and say which one to take")
    common(p, "a folder with one run per method; the same folder again goes on where it stopped")
    p.add_argument("--stream.KEY", metavar="VALUE", help="a setting of the stream")
    p.add_argument("--methods", default="all", metavar="LIST", help="a,b or family:prompt or all (the default)")
    p.add_argument("--recipe", default="auto", metavar="auto|papers|none", help="as for run, but no file")
    p.add_argument("--jobs", type=int, metavar="N",
                   help="trained methods at once, each with its share of the cores (default: one a core, at most "
                        "four; one on an accelerator)")  # fmt: skip

    p = verb("resume", "go on with an interrupted run, to the same result")
    p.add_argument("directory", metavar="DIR", type=Path)
    p = verb("report", "write the HTML report of one run, or of several side by side")
    p.add_argument("directories", metavar="DIR", type=Path, nargs="+", help="run folders, or the folder of a compare")
    p.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in DIR, or here if several are given")
    p = verb("predict", "ask the model of a run: CSV with id, prediction, score")
    p.add_argument("directory", metavar="DIR", type=Path)
    p.add_argument("--input", required=True, type=Path, metavar="FILE",
                   help="CSV, TSV, JSON Lines, Parquet, one text a line (.txt), or images")  # fmt: skip
    p.add_argument("--column", metavar="NAME", help="the column of inputs, where it has no usual name")
    p.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    p.add_argument("--proba", action="store_true", help="a column for each class as well")
    p = verb("list", "what there is: methods, streams, backbones")
    p.add_argument("kind", nargs="?", choices=("methods", "streams", "backbones"))
    p = verb("cache", "the features kept of frozen backbones")
    p.add_argument("--clear", nargs="?", const="all", metavar="IDENTITY", help="remove them, or those of one backbone")
    for name in ("run", "compare", "resume", "predict", "list", "cache"):
        made[name].add_argument("--json", action="store_true", help="JSON on standard output, and nothing else there")
    return parser, made
