"""Errors that the user can correct: the command line prints them as one line, without a traceback, exit code 2."""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that change how a terminal shows others, or stand for none: control characters, breaks of lines, changes
of the writing direction, half surrogate pairs."""
LONGEST = 1200
"""Characters of a message. What is longer quotes somebody's data, and its middle is left out."""


class EverlearnError(Exception):
    """A problem that the user can correct. The message is one line: what is wrong, where, and the remedy.

    >>> from everlearn import methods
    >>> try:
    ...     methods.get("simplecill")
    ... except EverlearnError as error:
    ...     print(str(error).split(":")[0])
    unknown method 'simplecill'
    """

    def __str__(self) -> str:
        return printable(" ".join(map(str, self.args)), LONGEST)


class DataError(EverlearnError):
    """A problem in the user's data: the message names the file, the row, the cause and the remedy.

    >>> issubclass(DataError, EverlearnError)
    True
    """


class ContractError(EverlearnError):
    """A method violates a rule of the method contract; the message names the rule.

    >>> issubclass(ContractError, EverlearnError)
    True
    """


def near(name: str) -> str:
    """The name of a stream, or a path, without the path of the present folder.

    >>> near(os.path.join(os.getcwd(), "may.csv")), near("clinc150")
    ('may.csv', 'clinc150')
    """
    return name.removeprefix(os.path.join(os.getcwd(), ""))


def printable(text: object, longest: int = 200) -> str:
    """The text on one line that any terminal can show: without control characters, and shortened in its middle.

    >>> printable("a\\nb" + chr(27) + "[2J"), printable("x" * 300, 9)
    ('a b\\\\x1b[2J', 'xxx … xxx')
    """
    shown = str(text)
    if len(shown) > longest:
        half = (longest - 3) // 2
        shown = f"{shown[:half]} … {shown[-half:]}"
    shown = " ".join(shown.split()) if any(space in shown for space in "\n\r\t\v\f") else shown
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), shown)


def as_word(value: object) -> str:
    """A path or name as one word of a command that is printed to be repeated in a shell.

    >>> as_word("my runs/x"), as_word("runs/x")
    ("'my runs/x'", 'runs/x')
    """
    return printable(shlex.quote(str(value)), 5000)  # longer than any path


def shown(value: object, longest: int = 200) -> str:
    """A value of the user's, as Python writes it, on one bounded line; a long list is not written out to be cut.

    >>> shown("shop"), shown(["x"] * 10**6), shown(10**5000)
    ("'shop'", "['x', 'x', 'x', 'x', 'x', 'x', ...]", 'a value of type int')
    """
    try:
        return printable(value.__repr__() if isinstance(value, str) else reprlib.repr(value), longest)
    except Exception:  # Python refuses to write a number of thousands of digits, and other classes may do anything
        return f"a value of type {type(value).__name__}"


@contextmanager
def one_line(where: object, remedy: str, kind: type[EverlearnError] | None = None) -> Iterator[None]:
    """Inside the block every error of a library becomes one line: what was read, the cause and the remedy.

    It is for code that reads what somebody else wrote, where a library may raise anything.

    >>> with one_line("shop.json", "write it again"):
    ...     raise KeyError("text")
    Traceback (most recent call last):
    everlearn.errors.DataError: shop.json cannot be read (KeyError: 'text'): write it again
    """
    try:
        yield
    except EverlearnError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        message = f"{where} cannot be read ({printable(reason)}): {remedy}"
        raise (kind or DataError)(message) from error


def remedy_for(error: Exception) -> str:
    """What helps against an error of the operating system while something is written or read.

    >>> remedy_for(OSError(28, "No space left on device"))
    'free some space'
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors tells the error of the system as a text only: "I/O error: No space left on device (os error 28)".
    told = any(f"(os error {number})" in str(error) or os.strerror(number) in str(error) for number in full)
    is_full = told or getattr(error, "errno", None) in full
    return "free some space" if is_full else "check the path and its permissions"


def unknown(kind: str, name: object, known: Iterable[str]) -> EverlearnError:
    """The error for an unknown name; the message suggests the most similar known name.

    >>> str(unknown("method", "ranpak", ["ranpac", "l2p"]))
    "unknown method 'ranpak': did you mean 'ranpac'? (known: l2p, ranpac)"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name)[:100], names, n=1, cutoff=0.6)
    hint = f": did you mean '{near[0]}'?" if near else ""
    return EverlearnError(f"unknown {kind} '{printable(name)}'{hint} (known: {', '.join(names)})")


def not_named(kind: str, value: object) -> EverlearnError:
    """The error for a stream or method that is neither a name nor a section."""
    in_memory = " (rows in memory become a stream by everlearn.streams.from_table)" if kind == "stream" else ""
    return EverlearnError(f"{kind}: {shown(value)} is neither a name nor a mapping with a name and settings{in_memory}")


class EverlearnWarning(UserWarning):
    """A warning that readers of the results must know; runs collect these warnings for the report.

    >>> issubclass(EverlearnWarning, UserWarning)
    True
    """
