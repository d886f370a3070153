"""Damage to valid files: bytes, the structure of JSON, YAML and safetensors, and files that are no regular files.

Everything is drawn from one `random.Random`, so the same number gives the same damage. Odd values come from
Hypothesis, which finds stranger ones than a list would hold.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import strategies as st

from fuzzing.formats import PICKLE, SPECIAL, STRUCTURED

NUMBERS = (b"0", b"-1", b"1", b"2", b"7", b"1000000", b"4294967296", b"9223372036854775808", b"-9223372036854775809",
           b"9" * 40, b"1e400", b"-1e-400", b"NaN", b"Infinity", b"0.5", b"1e9", b"010", b"0x10")  # fmt: skip
WORDS = ("", " ", "0", "-1", "1", "3", "0.5", "1e400", "nan", "inf", "1000000000", "9" * 30, "true", "null", "None",
         "[]", "{}", "[1, 2]", "a=b", "--", "-", "..", ".", "~", "@", "*", "tiny@3", "full", "head", "lora",
         "lora(size=0)", "lora(size=-3, size=4)", "prefix(", "lora(size=1000000000)", "x" * 10_000, "a\nb", "\x1b[2J",
         "\x00", "\u202e", "\ud800", "hub:", "a/b", "!!python/object/apply:os.system ['true']", "&a [*a, *a]", "café",
         "日本")  # fmt: skip
DEEP = "@deep@"
BOMBS = (
    "&a [1]",
    "!!python/object/apply:os.system ['true']",
    "!!binary x",
    "2020-01-01",
    "1:30",
    "<<: *a",
    "&a [x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]",
)
EVIL = "open('ran', 'w').close()\nfrom everlearn.methods import SimpleCIL\nclass Evil(SimpleCIL): pass\n"
"""A module; that it ran is seen by the audit hook."""
MODULES = ("random.py", "json.py", "evil.py", "torch.py", "sitecustomize.py", "modeling_evil.py", "yaml/__init__.py")


def drawn(strategy: st.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """Up to `count` values of a strategy, the same for the same seed."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


def odd_values(count: int, seed: int) -> list[Any]:
    """Values as JSON has them, of every type, size and depth."""
    text = st.text(st.characters(), max_size=30)  # every character, also half surrogate pairs
    plain = (
        st.none() | st.booleans() | st.integers() | st.integers(-3, 40) | st.floats() | text | st.sampled_from(WORDS)
    )
    nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4))
    return drawn(plain | nested, count, seed)


def odd_texts(count: int, seed: int) -> list[str]:
    """Texts for the command line; half surrogate pairs stand for bytes that are not UTF-8."""
    characters = st.characters(exclude_categories=["Cs"]) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
    return drawn(st.text(characters, max_size=40) | st.integers().map(str) | st.floats().map(str), count, seed)


class Draw:
    """What is drawn for one input.

    Args:
        number: identifies the input; the same number draws the same.
        values, texts: what `odd_values` and `odd_texts` gave.
        outside: a folder that no input may touch; links may lead there.
    """

    def __init__(self, number: str, values: list[Any], texts: list[str], outside: Path) -> None:
        self.random = random.Random(number)
        self.values, self.texts, self.outside = values, texts, outside
        self.told: list[str] = []

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def one(self, options: Any) -> Any:
        return self.random.choice(list(options))

    def value(self) -> Any:
        if self.chance(0.04):
            return DEEP
        return copy.deepcopy(self.one(self.values))

    def text(self) -> str:
        return self.one(WORDS) if self.chance(0.5) else self.one(self.texts)

    def argument(self) -> str:
        """A text that a shell can pass: without a null character, and no path to somewhere else."""
        found = self.text().replace("\x00", "").replace("/", "_")
        return os.fsdecode(found.encode("utf-8", "surrogateescape")) if "\ud800" not in found else "\udc80"

    # -- one file ----------------------------------------------------------------------------------
    def bytes(self, data: bytes) -> bytes:
        """The data with one to four changes."""
        for _ in range(self.random.choice((1, 1, 2, 4))):
            at, length = self.random.randint(0, len(data)), self.random.choice((1, 1, 2, 4, 16, 200))
            change = self.random.randrange(9)
            if change == 0 and data:  # flip a bit
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ 1 << self.random.randrange(8)]) + data[at + 1 :]
            elif change == 1:
                data = data[:at] + self.random.randbytes(length) + data[at + length :]
            elif change == 2:
                data = data[:at] + data[at + length :]
            elif change == 3:
                data = data[:at] + self.random.randbytes(length) + data[at:]
            elif change == 4:
                data = data[:at] + data[at : at + length] * self.random.choice((2, 3, 50)) + data[at + length :]
            elif change == 5:
                data = data[:at]
            elif change == 6:  # two parts exchanged
                data = data[at:] + data[:at]
            elif change == 7 and (numbers := list(re.finditer(rb"-?\d+(\.\d+)?", data))):
                number = self.random.choice(numbers)
                data = data[: number.start()] + self.random.choice(NUMBERS) + data[number.end() :]
            else:
                odd = self.text().encode("utf-8", "surrogatepass")
                data = data[:at] + odd + data[at:]
        return data

    def structure(self, value: Any) -> Any:
        """A copy of nested lists and mappings, with one to three changes anywhere."""
        value = {"": copy.deepcopy(value)}
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            places = list(_places(value))
            holder, key = self.random.choice(places)
            change = self.random.randrange(8)
            if change == 0 and len(places) > 1:
                del holder[key]
            elif change == 1 and isinstance(holder[key], dict):
                holder[key][self.text()] = self.value()
            elif change == 1 and isinstance(holder[key], list):
                holder[key].append(self.value())
            elif change == 2:
                other_holder, other = self.random.choice(places)
                holder[key] = copy.deepcopy(other_holder[other])
            elif change == 3 and isinstance(holder[key], int | float):
                near = (holder[key] + 1, holder[key] - 1, 2 * holder[key], -holder[key], 0, holder[key] + 0.5, 1000)
                holder[key] = self.one(near) if self.chance(0.6) else float(self.one(NUMBERS[:13]))
            elif change == 4 and isinstance(holder[key], str):
                holder[key] = holder[key] + self.text() if self.chance(0.5) else self.text()
            elif change == 5 and isinstance(holder[key], list) and holder[key]:
                holder[key] = holder[key] * self.random.choice((0, 2, 100))
            else:
                holder[key] = self.value()
            if not value:
                value = {"": None}
        return value.get("")

    def json(self, value: Any) -> bytes:
        """JSON text, not always valid: repeated keys, values nested too deeply, half surrogate pairs."""
        text = json.dumps(value, ensure_ascii=self.chance(0.7), indent=self.random.choice((None, 1)))
        if self.chance(0.05) and isinstance(value, dict) and value:
            key = json.dumps(self.one(value))
            text = text[:-1].rstrip() + f", {key}: {json.dumps(self.value())}}}"
        return text.replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000).encode("utf-8", "surrogatepass")

    def yaml(self, value: Any) -> bytes:
        try:
            text = yaml.safe_dump(value, allow_unicode=self.chance(0.5), sort_keys=False)
        except yaml.YAMLError:
            text = json.dumps(value)
        text = text.replace(DEEP, "[" * 2_000 + "]" * 2_000)
        if self.chance(0.1):
            lines = text.splitlines()
            lines.insert(
                self.random.randint(0, len(lines)), self.one((*BOMBS, *(f"x: {bomb}" for bomb in BOMBS), *lines))
            )
            text = "\n".join(lines)
        return text.encode("utf-8", "surrogatepass")

    def file(self, path: Path) -> None:
        """Damage one file in a way that suits its format, or any file."""
        if self.chance(0.1):
            self.special(path)
            return
        structured = STRUCTURED.get(path.suffix)
        if structured and self.chance(0.65):
            try:
                structured(self, path)
            except Exception:  # an earlier change has made it unreadable, which every library says in its own way
                pass
            else:
                self.told.append(f"structure of {path.name}")
                return
        path.write_bytes(self.bytes(path.read_bytes()))
        self.told.append(f"bytes of {path.name}")

    def special(self, path: Path) -> None:
        """Put something else in the place of a file."""
        kind = self.one(SPECIAL)
        content = path.read_bytes()
        path.unlink()
        SPECIAL[kind](self, path, content)
        self.told.append(f"{path.name} is {kind}")

    # -- a folder ----------------------------------------------------------------------------------
    def folder(self, place: Path, pattern: str = "*") -> None:
        """Damage one to three files of a folder, and now and then put a module, a pickle or a link beside them."""
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            files = [
                path
                for path in sorted(place.rglob(pattern))
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK) and path.stat().st_size < 10**7
            ]
            if files:
                self.file(self.one(files))
        if self.chance(0.12):
            self.intrude(place)

    def intrude(self, place: Path) -> None:
        """Put one more file into a folder."""
        folders = [place, *sorted(path for path in place.rglob("*") if path.is_dir())]
        folder = self.one(folders)
        change = self.random.randrange(4)
        if change == 0:
            name = self.one(MODULES)
            (folder / name).parent.mkdir(exist_ok=True)
            if not (folder / name).exists():
                (folder / name).write_text(EVIL)
        elif change == 1:
            name = self.one(("pytorch_model.bin", "adapter_model.bin", "method.pt", "state.pkl", "training.ckpt"))
            (folder / name).write_bytes(PICKLE)
        elif change == 2:
            name = self.one(
                (
                    ".lock",
                    "error.txt",
                    "report.html",
                    "results.json",
                    "metrics.jsonl",
                    "compare.json",
                    "about.json",
                    "task-009-step-000001",
                    ".task-000-step-000001.1",
                )
            )
            if not os.path.lexists(folder / name):
                (folder / name).symlink_to(self.one((self.outside / "canary.txt", self.outside, Path(name))))
        else:
            name = self.one((os.fsdecode(b"\xff\xfe"), "a\nb.png", "task-000-step-000000", "x" * 200, "\x1b[2J.csv"))
            (folder / name).mkdir(exist_ok=True)
        self.told.append(f"with {ascii(name)[:40]}")


def _places(value: Any) -> Any:
    """Every place in nested lists and mappings, as (list or mapping, index or key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
