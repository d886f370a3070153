"""Strict parsing of JSON and YAML: plain values only, and nothing that means different things to different readers.

Refused are repeated keys, numbers that are not finite or do not fit 64 bits, half surrogate pairs, values nested
deeper than any of our files, and in YAML also tags, anchors and aliases (a file of 1 KB can name a billion values).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from everlearn.errors import DataError, printable

SURROGATES = re.compile("[\ud800-\udfff]")
DEEPEST = 50
"""Levels of nesting."""
MOST_YAML = 2**20
"""Bytes of a YAML file; a configuration has some hundred."""


def from_json(text: str | bytes, where: object, remedy: str = "correct the file", *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        where: the file, and its line if it has several texts; for the message.
        remedy: what the reader of the message can do.
        finite: refuse NaN and infinite numbers.

    Raises:
        DataError: it is not JSON, or holds something that is refused.

    >>> from_json('{"a": 1, "a": 2}', "shop.json")
    Traceback (most recent call last):
    everlearn.errors.DataError: shop.json: the key 'a' occurs twice: correct the file
    """
    try:
        value = json.loads(text, object_pairs_hook=_mapping)
        _check(value, finite)
        return value
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"{where}: broken JSON ({error.msg} at {at}): {remedy}") from None
    except RecursionError:
        raise DataError(f"{where}: the values are nested too deeply: {remedy}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason}): {remedy}") from None
    except ValueError as error:
        raise DataError(f"{where}: {printable(error)}: {remedy}") from None


def from_yaml(text: str, where: object, remedy: str = "correct the file") -> Any:
    """The value of a YAML text, of the types that JSON has.

    Raises:
        DataError: it is not YAML, or holds something that is refused.

    >>> from_yaml("a: [1, 2.5, yes]", "config.yaml")
    {'a': [1, 2.5, True]}
    """
    import yaml

    try:
        value = yaml.load(text, Loader=_loader())
        _check(value)
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0] or "not YAML"
        raise DataError(f"{where}{line}: {printable(problem)}: {remedy}") from None
    except RecursionError:
        raise DataError(f"{where}: the values are nested too deeply: {remedy}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:  # what PyYAML raises for odd scalars
        raise DataError(f"{where}: {printable(error)}: {remedy}") from None


def _mapping(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key '{printable(key)}' occurs twice")
        found[key] = value
    return found


def _check(value: Any, finite: bool = True, depth: int = 0) -> None:
    """Raise a ValueError for a value that is refused."""
    if depth > DEEPEST:
        raise ValueError(f"values are nested more than {DEEPEST} levels deep")
    if isinstance(value, str):
        if SURROGATES.search(value):
            raise ValueError(f"half a surrogate pair in {value[:50]!a}")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError("a whole number does not fit 64 bits")
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            raise ValueError(f"the number {value} is not finite")
    elif isinstance(value, list):
        for item in value:
            _check(item, finite, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {printable(key)} is a {type(key).__name__}, not a text")
            _check(key)
            _check(item, finite, depth + 1)
    else:
        raise ValueError(f"a {type(value).__name__} where a number, text, list or mapping belongs")


_made: list[type] = []


def _loader() -> type:
    """A loader of PyYAML for plain values, without tags, anchors and aliases, in which no key occurs twice."""
    if _made:
        return _made[0]
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            for part in ("anchor", "tag"):
                if getattr(event, part, None):  # an alias has an anchor too
                    problem = f"{part}s of YAML are not accepted"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return _mapping((self.construct_object(key, deep=True), self.construct_object(value, deep=True))
                            for key, value in node.value)  # fmt: skip

    # A date stays a text, and so do 1:30, which YAML 1.1 reads as 90, and 010, which it reads as 8.
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    whole, rest = r"[-+]?(0|[1-9][0-9_]*)", r"[-+]?((0|[1-9][0-9]*)\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    for kind, pattern in (("int", whole), ("float", rest)):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"{pattern}$"), list("-+.0123456789"))
    make: dict[str, Any] = {"map": Loader.construct_mapping, "seq": partial(Loader.construct_sequence, deep=True)}
    for kind, constructor in make.items():
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", constructor)
    _made.append(Loader)
    return Loader
