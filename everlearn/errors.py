"""What the user can mend is an EverlearnError: one clear line, no traceback, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EverlearnError(Exception):
    """A problem the user can mend. The message is one line: what, where, and the remedy."""


class DataError(EverlearnError):
    """A problem in the user's data: the message names the file, the row, the cause and the remedy."""


class ContractError(EverlearnError):
    """A method broke a promise of the contract; the message names the promise."""


def unknown(kind: str, name: object, known: Iterable[str]) -> EverlearnError:
    """The error for a name that does not exist, with the nearest one that does.

    >>> str(unknown("method", "ranpak", ["ranpac", "l2p"]))
    "unknown method 'ranpak': did you mean 'ranpac'? (known: l2p, ranpac)"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return EverlearnError(f"unknown {kind} '{name}': {hint}(known: {', '.join(names)})")


class EverlearnWarning(UserWarning):
    """What a reader of the results must know; runs collect it for the report."""
