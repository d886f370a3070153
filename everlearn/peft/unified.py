"""One view of adapters, LoRA and prefixes: He, Zhou, Ma, Berg-Kirkpatrick & Neubig, "Towards a Unified
View of Parameter-Efficient Transfer Learning", ICLR 2022, https://arxiv.org/abs/2110.04366

Each of them is a small network that changes a representation h. They differ in four choices:

| choice | values |
|---|---|
| functional form | Up(f(Down(x))): f linear (LoRA), relu, gelu or tanh (adapters), softmax (prefixes) |
| insertion form | parallel: reads the input of the site; sequential: reads its output |
| modified representation | query, key, value, heads, attention, mlp, or every operation of a block |
| composition | add: h + s·Δh; gate: (1 − λ)·h + λ·Δh, as attention weighs a prefix; scale: γ·h + β |

Each combination of choices is a point. `POINTS` holds the named points, and a new point takes one line::

    insert(backbone, Point(function="gelu", form="parallel", sites=("attention",), size=16, scale=2.0))
"""

from __future__ import annotations

import ast
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from torch import nn

from everlearn.errors import EverlearnError, printable, unknown
from everlearn.peft.adapter import FUNCTIONS, Adapter
from everlearn.peft.delta import Delta, Site, only
from everlearn.peft.lora import LoRA
from everlearn.peft.prefix import Prefix
from everlearn.peft.prompt import Prompt
from everlearn.peft.scale_shift import ScaleShift
from everlearn.seeds import seeded
from everlearn.settings import Factor, Index, Size, SizeOrZero, checked

if TYPE_CHECKING:
    from everlearn.backbones.backbone import Backbone, Block


LONGEST = 1000
"""Characters of the text of an insertion."""

SITES = ("query", "key", "value", "heads", "attention", "mlp", "output")
"""The sites of a block that a point can modify."""


@dataclass(frozen=True)
class Point:
    """A point of the unified view: one combination of choices.

    Args:
        function: linear, relu, gelu, tanh or softmax.
        form: parallel or sequential.
        sites: the representations of each block that are modified.
        size: rank (LoRA), bottleneck (adapters) or number of keys (prefixes).
        scale: factor s of the change.
        hidden: for softmax, the hidden size of the re-parametrisation; 0 for none.
        compensated: for softmax, whether the prefix counts in full, (1 − λ)·h + Δh, and not by its share λ alone.
        blocks: the indices of the blocks; all by default. `insert` refuses those beyond the depth of its backbone.

    Raises:
        EverlearnError: a value is out of its range, or the choices do not fit together.

    >>> from everlearn import backbones
    >>> point = Point("gelu", sites=("attention",), size=16, scale=2.0)
    >>> point.composition, len(insert(backbones.load("tiny"), point))
    ('add', 2)
    """

    function: str
    sites: tuple[str, ...]
    size: Size = 8
    form: Literal["parallel", "sequential"] = "parallel"
    scale: Factor = 1.0
    hidden: SizeOrZero = 0
    compensated: bool = False
    blocks: tuple[Index, ...] | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(Point, include_extras=True)
        for name, value in vars(self).items():
            checked(f"insertion.{name}", value, hints[name])
        for name, several in (("sites", self.sites), ("blocks", self.blocks or ())):
            if len(set(several)) < len(several):
                raise EverlearnError(f"insertion.{name}: {several} names one twice: give each once")
        if self.function not in ("linear", "softmax", *FUNCTIONS):
            raise unknown("function", self.function, ["linear", "softmax", *FUNCTIONS])
        for site in self.sites or ("",):
            if site not in SITES:
                raise unknown("site", site, SITES)
        if (self.function == "softmax") != (self.sites == ("heads",)):
            raise EverlearnError("the function softmax goes with the site 'heads' and no other, because only there "
                                 "keys and values are added")  # fmt: skip
        if self.compensated and self.function != "softmax":
            raise EverlearnError("insertion.compensated: only a prefix has a share of attention: leave it out, or take "
                                 "the insertion prefix")  # fmt: skip
        if self.function == "linear" and self.form == "sequential":
            raise EverlearnError("a linear function in sequential form is not supported: use form='parallel'")

    @property
    def composition(self) -> str:
        """How the change is combined with the representation: add or gate."""
        return "gate" if self.function == "softmax" else "add"

    def delta(self, site: Site) -> Delta:
        """A new delta for one site."""
        if self.function == "softmax":
            return Prefix(site.width, length=self.size, hidden=self.hidden, compensated=self.compensated)
        if self.function == "linear":
            return LoRA(site.width, site.out_width, rank=self.size, alpha=self.scale * self.size)
        return Adapter(site.width, site.out_width, bottleneck=self.size, scale=self.scale, form=self.form,
                       function=self.function)  # fmt: skip

    def placed(self, block: Block) -> list[tuple[Delta, Site]]:
        """A new delta for each of its sites of `block`, with the site."""
        return [(self.delta(site), site) for site in (getattr(block, name) for name in self.sites)]


POINTS: dict[str, tuple[Point, ...]] = {
    "houlsby": (Point("gelu", ("attention", "mlp"), size=64, form="sequential"),),
    "parallel_adapter": (Point("relu", ("mlp",), size=64),),
    "adaptformer": (Point("relu", ("mlp",), size=64, scale=0.1),),  # Chen et al., NeurIPS 2022
    "scaled_parallel_adapter": (Point("relu", ("mlp",), size=64, scale=4.0),),
    "lora": (Point("linear", ("query", "value"), size=8, scale=2.0),),
    "prefix": (Point("softmax", ("heads",), size=10),),
    "prefix_mlp": (Point("softmax", ("heads",), size=10, hidden=512),),
    "mam": (Point("softmax", ("heads",), size=30), Point("relu", ("mlp",), size=512, scale=4.0)),
}
"""The insertions that are points of the view. The insertions `ssf`, `prompt` and `deep_prompt` are not (He et al.
treat prompts as a prefix of the first block), but `insert` accepts them too."""

INSERTIONS = (*POINTS, "ssf", "prompt", "deep_prompt")


class DeltaSet(nn.ModuleList):
    """Deltas that belong together: those of one insertion. They are attached, detached and switched together.

    >>> from everlearn import backbones
    >>> tiny = backbones.load("tiny")
    >>> deltas = insert(tiny, "houlsby")
    >>> with deltas.only(False):
    ...     print(len(tiny.active))
    0
    """

    def __iter__(self) -> Iterator[Delta]:  # type: ignore[override]
        return super().__iter__()  # type: ignore[return-value]

    def switch(self, active: bool) -> None:
        """Switch all deltas on or off."""
        for delta in self:
            delta.is_active = active

    def only(self, active: bool = True) -> AbstractContextManager[None]:
        """Switch all deltas on (or off) inside the `with` statement, and restore their previous state afterwards."""
        return only(self, active)

    def detach(self, backbone: Backbone) -> None:
        """Take all deltas off the backbone. `attach` puts them back on the sites that they were made for."""
        for delta in self:
            backbone.detach(delta)

    def attach(self, backbone: Backbone) -> None:
        """Put each delta on the site of `backbone` that has the same name as the site that it was made for."""
        named = sites(backbone)
        for delta in self:
            backbone.attach(delta, named[delta.site_name])


def insert(backbone: Backbone, what: str | Point | Sequence[Point], *, length: int = 5) -> DeltaSet:
    """Put an insertion into a backbone: make its deltas and attach them.

    Args:
        backbone: an encoder; its own weights are not touched.
        what: one of `INSERTIONS`, also with other settings, as "lora(size=4)" or "prompt(length=10)"; a point
            written out, as "gelu(sites=('attention',), size=16)"; or points.
        length: tokens of a prompt, for prompt and deep_prompt.

    Raises:
        EverlearnError: an unknown name or setting.

    >>> from everlearn import backbones
    >>> tiny = backbones.load("tiny")
    >>> before, deltas = tiny(["a text"]), insert(tiny, "lora(size=4)")
    >>> len(deltas), bool((tiny(["a text"]) == before).all())
    (4, True)
    """
    placed: list[tuple[Delta, Site]] = []
    name, points = "", (what,) if isinstance(what, Point) else what
    if isinstance(points, str):
        name, points, length = points_of(points, length)
    checked("insertion.length", length, Size)
    beyond = [block for point in points for block in point.blocks or () if block >= backbone.depth]
    if beyond:
        raise EverlearnError(f"insertion.blocks: backbone '{backbone.name}' has no block {beyond[0]}: its blocks are 0 "
                             f"to {backbone.depth - 1}")  # fmt: skip
    if name in ("prompt", "deep_prompt"):
        placed.append((Prompt(backbone.hidden_width, length=length), backbone.tokens))
    for index in range(backbone.depth):
        block = backbone.block(index)
        for point in points:
            if point.blocks is None or index in point.blocks:
                placed += point.placed(block)
        if name == "ssf":
            placed += [(ScaleShift(site.out_width), site) for site in block.operations]
        if name == "deep_prompt" and index < backbone.depth - 1:
            placed.append((Prompt(backbone.hidden_width, length=length, replaces=True), block.output))
    if not placed:
        raise EverlearnError(f"{what!r} puts nothing into backbone '{backbone.name}': name at least one block")
    return DeltaSet([backbone.attach(delta, site) for delta, site in placed])


def train_part(backbone: Backbone, train: str, *, seed: int) -> DeltaSet:
    """Have part of the model trained, and return the deltas that were inserted for that, if any.

    Args:
        train: "full" (every weight of the backbone; of two towers, those of the first), "head" (none of them), or an
            insertion as `insert` takes it.
        seed: of the first values of what is inserted.

    Raises:
        EverlearnError: `train` is none of these.

    >>> from everlearn import backbones
    >>> tiny = backbones.load("tiny")
    >>> len(train_part(tiny, "lora", seed=0)), tiny.is_frozen
    (4, False)
    """
    if train in ("full", "head"):
        backbone.first.requires_grad_(train == "full")
        return DeltaSet()
    with seeded(seed):
        return insert(backbone, train)


def rate_for(train: str, lr: float | None, full: float = 5e-5) -> float:
    """The learning rate of what is trained besides the head: `lr`; where that is None, `full` for every weight of the
    encoder, and 1e-3 for an insertion, which is new.

    >>> rate_for("full", None), rate_for("lora", None), rate_for("lora", 0.1)
    (5e-05, 0.001, 0.1)
    """
    return lr if lr is not None else full if train == "full" else 1e-3


def read_insertion(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings in the text of an insertion.

    Raises:
        EverlearnError: it is neither a name nor a name with settings in parentheses.

    >>> read_insertion("lora(size=4)")
    ('lora', {'size': 4})
    """
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        node = ast.parse(text.strip() if len(text) <= LONGEST else "", mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            words = [(str(word.arg), ast.literal_eval(word.value)) for word in node.keywords]
            if repeated := [name for name, count in Counter(name for name, _ in words).items() if count > 1]:
                raise EverlearnError(f"{text!r} has the setting {repeated[0]} twice: give it once")
            return node.func.id, dict(words)
    raise EverlearnError(f"{printable(repr(text))} is not an insertion: give a name ({', '.join(INSERTIONS)}), with "
                         "settings if you like, as lora(size=4)")  # fmt: skip


def points_of(text: str, length: int = 5) -> tuple[str, tuple[Point, ...], int]:
    """The name of an insertion, its points and the tokens of its prompts, from its text.

    Raises:
        EverlearnError: an unknown name or setting, or a value out of its range.

    >>> name, points, _ = points_of("lora(size=4)")
    >>> name, points[0].size, points[0].sites
    ('lora', 4, ('query', 'value'))
    """
    name, settings = read_insertion(text)
    if name in ("prompt", "deep_prompt"):
        length = checked("insertion.length", settings.pop("length", length), Size)
    return name, _points(name, settings), length


def _points(name: str, settings: dict[str, Any]) -> tuple[Point, ...]:
    """The points of a named insertion with these settings, or the one point that is written out."""
    for name_of_several in ("sites", "blocks"):  # one of them may stand without parentheses
        if isinstance(settings.get(name_of_several), str | int):
            settings[name_of_several] = (settings[name_of_several],)
    if name in INSERTIONS:
        points = POINTS.get(name, ())
    elif name in (*FUNCTIONS, "linear", "softmax"):
        points = (Point(name, settings.pop("sites", ())),)
    else:
        raise unknown("insertion", name, INSERTIONS)
    known = [f.name for f in fields(Point) if f.name != "function"] if points else []
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of the insertion '{name}'", setting, known or ["none"])
    return tuple(replace(point, **settings) for point in points)


def sites(backbone: Backbone) -> dict[str, Site]:
    """Every site of a backbone by its name.

    >>> from everlearn import backbones
    >>> "block 1 mlp" in sites(backbones.load("tiny"))
    True
    """
    found = []
    for index in range(backbone.depth):
        block = backbone.block(index)
        found += [getattr(block, name) for name in SITES]
        found += block.operations
    with_tokens = {site.name: site for site in found}
    with contextlib.suppress(EverlearnError):  # rotary positions: no token joins, no delta was made for it
        with_tokens["tokens"] = backbone.tokens
    return with_tokens
