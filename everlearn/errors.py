"""Errors that the user can correct: the command line prints them as one line, without a traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EverlearnError(Exception):
    """A problem that the user can correct. The message is one line: what is wrong, where, and the remedy."""


class DataError(EverlearnError):
    """A problem in the user's data: the message names the file, the row, the cause and the remedy."""


class ContractError(EverlearnError):
    """A method violates a rule of the method contract; the message names the rule."""


def unknown(kind: str, name: object, known: Iterable[str]) -> EverlearnError:
    """The error for an unknown name; the message suggests the most similar known name.

    >>> str(unknown("method", "ranpak", ["ranpac", "l2p"]))
    "unknown method 'ranpak': did you mean 'ranpac'? (known: l2p, ranpac)"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return EverlearnError(f"unknown {kind} '{name}': {hint}(known: {', '.join(names)})")


class EverlearnWarning(UserWarning):
    """A warning that readers of the results must know; runs collect these warnings for the report."""
