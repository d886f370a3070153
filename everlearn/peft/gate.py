"""Gates: attention of tasks on hidden units, such that a unit that a task has used never changes afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.peft.adapter import Adapter
from everlearn.peft.delta import Site
from everlearn.peft.lora import LoRA
from everlearn.peft.unified import DeltaSet, insert
from everlearn.peft.weight import Weight, linear_sites
from everlearn.state import Stateful, check_saved


class Gate(Stateful):
    """How much the newest task uses each unit, sigmoid(sharpness · e) while it is trained, and which units each
    finished task used.

    Where no sharpness is set, a gate is 0 or 1. The gradient of e is that of the sigmoid without sharpness, times
    `sharpest`: what the compensation of the paper comes to.

    Args:
        units: how many.
        sharpest: the largest sharpness.

    >>> gate = Gate(3, sharpest=400.0)
    >>> _ = gate.e.data.copy_(torch.tensor([1.0, -1.0, 2.0]))
    >>> gate().tolist()
    [1.0, 0.0, 1.0]
    """

    used: Tensor
    BOUND = 6.0
    """The largest size of e. Beyond it the gradient is too small for a gate to come back."""

    def __init__(self, units: int, *, sharpest: float) -> None:
        super().__init__()
        self.sharpest = sharpest
        self.e = nn.Parameter(torch.empty(units))
        self.register_buffer("used", torch.empty(0, units, dtype=torch.bool))
        self.task, self.sharpness = 0, 0.0
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Draw e for a new task: all gates are open."""
        self.e.uniform_(0.0, 2.0)

    def forward(self) -> Tensor:
        """The attention (units,) of the task."""
        if self.is_finished:
            return self.used[self.task].to(self.e.dtype)
        if not self.sharpness:
            return (self.e > 0).to(self.e.dtype)
        plain = torch.sigmoid(self.e)
        return torch.sigmoid(self.sharpness * self.e).detach() + self.sharpest * (plain - plain.detach())

    @property
    def is_finished(self) -> bool:
        """Whether the task is learned, so that the units that it uses stay."""
        return self.task < len(self.used)

    @property
    def taken(self) -> Tensor:
        """Which units finished tasks use, (units,)."""
        return self.used.any(0)

    def finish(self) -> None:
        """Keep which units the newest task uses."""
        self.used = torch.cat([self.used, (self.e > 0)[None]])

    @torch.no_grad()
    def bound(self) -> None:
        """Keep e within its bounds."""
        self.e.clamp_(-self.BOUND, self.BOUND)

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """A finished task has one row of `used`, (tasks, units)."""
        super().check_saved(saved)
        if "used" in saved:
            check_saved("used", saved["used"], self.used, (len(saved["used"]), len(self.e)))


class Incoming(nn.Module):
    """A parametrization of the weights (units, …) that make the units: those of taken units get no gradient.

    >>> layer, gate = nn.Linear(2, 3), Gate(3, sharpest=400.0)
    >>> _ = parametrize.register_parametrization(layer, "weight", Incoming(gate))
    >>> gate.used, gate.task = torch.tensor([[True, False, False]]), 1
    >>> layer.weight.sum().backward()
    >>> layer.parametrizations.weight.original.grad.sum(1).tolist()
    [0.0, 2.0, 2.0]
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = (gate,)  # in a tuple: `Outgoing` has it as a module, and it is saved once

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, of the same shape; of a finished task without the units that it does not use."""
        gate, column = self.gate[0], (-1, *[1] * (weight.dim() - 1))
        if gate.is_finished:
            return weight * gate().view(column)  # they change later, and the weights of a finished task do not
        return _learned(weight, ~gate.taken.view(column))


class Outgoing(nn.Module):
    """A parametrization of the weights (…, units) that read the units: each column times the gate of its unit, which is
    the same as each unit times its gate; those of taken units get no gradient.

    >>> layer, gate = nn.Linear(2, 1), Gate(2, sharpest=400.0)
    >>> _ = parametrize.register_parametrization(layer, "weight", Outgoing(gate))
    >>> _ = gate.e.data.copy_(torch.tensor([1.0, -1.0]))
    >>> (layer.weight != 0).tolist()
    [[True, False]]
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight, of the same shape."""
        return _learned(weight, ~self.gate.taken) * self.gate()


def gated_parts(backbone: Backbone, train: str, sharpest: float) -> DeltaSet:
    """Deltas in which every weight that can be trained belongs to a gated unit; their other parameters are frozen.

    Args:
        train: "full" (the units are those of each block's feed-forward layer, whose two weights are replaced by weights
            that can be trained), or an insertion of LoRA or adapters (their ranks or bottlenecks).
        sharpest: the largest sharpness of the gates.

    Raises:
        EverlearnError: the insertion has no hidden units, or the feed-forward layers are not two linear layers with a
            function between them that reads each unit alone.

    >>> from everlearn import backbones
    >>> [len(gate.e) for gate in gates(gated_parts(backbones.load("tiny"), "lora(size=4)", 400.0))]
    [4, 4, 4, 4]
    """
    if train == "full":
        deltas = DeltaSet()
        for index in range(backbone.depth):
            pair = [backbone.attach(Weight(site), site) for site in _feed_forward(backbone, index)]
            _gate(pair[0], "weight", "bias", pair[1], "weight", sharpest)
            deltas.extend(pair)
        return deltas
    deltas = insert(backbone, train)
    for delta in deltas:
        if isinstance(delta, LoRA):
            _gate(delta, "a", "", delta, "b", sharpest)
        elif isinstance(delta, Adapter):
            _gate(delta.down, "weight", "bias", delta.up, "weight", sharpest)
        else:
            raise EverlearnError(f"method.train: hat needs hidden units, and {train} has none: give full, lora or an "
                                 "adapter such as houlsby")  # fmt: skip
    return deltas


def gates(module: nn.Module) -> Iterator[Gate]:
    """The gates in a module.

    >>> list(gates(nn.Linear(2, 2)))
    []
    """
    return (part for part in module.modules() if isinstance(part, Gate))


def gated(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of a module that belong to gated units, each of the shape of its layer.

    >>> list(gated(nn.Linear(2, 2)))
    []
    """
    for part in module.modules():
        if isinstance(part, parametrize.ParametrizationList):
            yield part.original  # type: ignore[misc]


def _learned(weight: Tensor, where: Tensor) -> Tensor:
    """The weight, which gets a gradient there alone. As `torch.where` with a detached copy, in a fifth of the time."""
    weight = weight.view_as(weight)
    if weight.requires_grad:
        factor = where.to(weight.dtype)
        weight.register_hook(lambda gradient: gradient * factor)
    return weight


def _gate(first: nn.Module, weight: str, bias: str, second: nn.Module, outgoing: str, sharpest: float) -> None:
    """Gate the units between two layers: `weight` and `bias` of the first make them, `outgoing` of the second reads."""
    gate = Gate(len(getattr(first, weight)), sharpest=sharpest)
    for name in (weight, bias):
        if name and getattr(first, name) is not None:
            parametrize.register_parametrization(first, name, Incoming(gate))
    parametrize.register_parametrization(second, outgoing, Outgoing(gate))


def _feed_forward(backbone: Backbone, index: int) -> list[Site]:
    """The sites of the two linear layers of a block's feed-forward layer."""
    mlp = backbone.block(index).mlp
    inside = [m for m in mlp.enter.modules() if next(m.parameters(recurse=False), None) is not None]
    layers = inside if mlp.leave is mlp.enter else [*inside, mlp.leave]
    sites = {site.leave: site for site in linear_sites(backbone)}
    found = [sites[layer] for layer in layers if layer in sites]
    if len(found) != 2 or len(layers) != 2 or found[0].out_width != found[1].width:
        raise EverlearnError(f"backbone '{backbone.name}' has feed-forward layers of another form than two linear "
                             "layers with a function between them: give --method.train lora")  # fmt: skip
    return found
