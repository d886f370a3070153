"""The base class of all backbones: features, named sites, and an identity that says what computed the features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from everlearn.backbones.digests import Digests, digest
from everlearn.features import default_store
from everlearn.peft.delta import Delta, Site, only
from everlearn.streams.inputs import Input


class Hidden(NamedTuple):
    """The output of the last layer: `states` (n, tokens, width) and `mask` (n, tokens), 1 for tokens, 0 for padding.

    If prompt tokens were appended, they are the last `prompts` columns.
    """

    states: torch.Tensor
    mask: torch.Tensor
    prompts: int


@dataclass(frozen=True)
class Block:
    """The sites of one transformer block.

    `attention` goes from the input of the attention layer to the output of its output projection. `heads` is the
    place where queries attend to keys and values. `operations` are all linear and normalisation layers.
    """

    query: Site
    key: Site
    value: Site
    heads: Site
    attention: Site
    mlp: Site
    output: Site
    operations: tuple[Site, ...]


class Backbone(nn.Module):
    """A pre-trained encoder. It is frozen unless a method trains it.

    Subclasses define `prepare`, `mask`, `hidden`, `pool`, `tokens` and `block`, and set

    * `name`, as the user wrote it;
    * `reads`: the kinds of input that it reads, e.g. ``("text",)``;
    * `width`: the size of a feature;
    * `precision`: the precision of matrix products without gradients, ``float32`` or ``bfloat16``;
    * `training_precision`: the same with gradients. Weights, gradients and updates are always float32;
    * `settings`: everything else that determines the features (preprocessing, pooling), as plain JSON.
    """

    name: str
    reads: tuple[str, ...]
    width: int
    depth: int
    precision = "float32"
    training_precision = "float32"
    settings: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.attached: list[Delta] = []
        self.origin: dict[str, str] = {}  # digests of the pre-trained tensors; empty until a method is built on it
        self._exact: dict[int, torch.Tensor] = {}  # in `inference`: the float32 weights, by parameter id
        self._digests = Digests()

    # -- defined by subclasses -----------------------------------------------------------------
    def prepare(self, inputs: Sequence[Input]) -> Any:
        """Convert raw inputs to the input of `hidden`: token ids or pixels. This is part of the backbone's identity."""
        raise NotImplementedError

    def mask(self, prepared: Any) -> torch.Tensor:
        """The mask of the embedded tokens without prompts, (n, tokens): 1 for tokens, 0 for padding."""
        raise NotImplementedError

    def hidden(self, prepared: Any) -> Hidden:
        """The output of the last layer."""
        raise NotImplementedError

    def pool(self, hidden: Hidden) -> torch.Tensor:
        """One feature per example, of shape (n, width)."""
        raise NotImplementedError

    @property
    def tokens(self) -> Site:
        """The site of the embedded sequence, before the first block."""
        raise NotImplementedError

    def block(self, index: int) -> Block:
        """The sites of block `index`, counted from 0."""
        raise NotImplementedError

    def lengths(self, inputs: Sequence[Input]) -> list[int]:
        """The length of each input, by which batches are sorted; all equal if all inputs have the same size."""
        return [0] * len(inputs)

    # -- used by methods -----------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width) of the model in its current state, with gradients if anything is trained."""
        return self.pool(self.hidden(self.prepare(inputs)))

    def infer(
        self, inputs: Sequence[Input],
        compute: Callable[[list[Input], list[int]], torch.Tensor] | None = None, batch_size: int = 64,
    ) -> torch.Tensor:  # fmt: skip
        """Features (n, width) without gradients, computed in batches of similar length. Nothing is stored.

        Args:
            compute: a function from some inputs and their row numbers to features; `forward` by default.
        """
        features = torch.empty(len(inputs), self.width, device=self.device)
        lengths = self.lengths(inputs)
        order = sorted(range(len(inputs)), key=lengths.__getitem__)
        with self.inference():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = [inputs[row] for row in rows]
                features[rows] = (compute(batch, rows) if compute else self(batch)).float()
        return features

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Inside the `with` statement: evaluation mode, no gradients, `precision`. Afterwards all is restored."""
        was_training = self.training
        self.eval()
        weights = [m.weight for m in self.modules() if isinstance(m, nn.Linear)] if self.precision != "float32" else []
        exact, outer = [weight.data for weight in weights], self._exact
        self._exact = {**{id(weight): data for weight, data in zip(weights, exact, strict=True)}, **outer}
        try:
            with torch.no_grad(), self.mixed_precision():
                for weight in weights:  # cast once here; autocast would cast again for every batch
                    weight.data = weight.data.bfloat16()
                yield
        finally:
            for weight, data in zip(weights, exact, strict=True):
                weight.data = data
            self._exact = outer
            self.train(was_training)

    @contextmanager
    def mixed_precision(self) -> Iterator[None]:
        """Inside the `with` statement, matrix products run in `precision`; with gradients in `training_precision`."""
        training = torch.is_grad_enabled()
        if (self.training_precision if training else self.precision) == "float32":
            yield
            return
        # On a CPU, the bfloat16 backward pass of fused attention takes three times as long as that of plain attention.
        plain = sdpa_kernel(SDPBackend.MATH) if training and self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, torch.bfloat16), plain:
            yield

    def encode(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width) of the frozen backbone, read from the feature store or computed and stored there."""
        return default_store().encode(self, inputs).to(self.device)

    def attach(self, delta: Delta, site: Site) -> Delta:
        """Put `delta` on `site`. The method owns the parameters of the delta; the backbone only refers to it."""
        delta.attach(site)
        self.attached.append(delta)
        return delta

    def detach(self, delta: Delta) -> None:
        delta.detach()
        self.attached = [other for other in self.attached if other is not delta]

    def pretrained(self) -> Any:
        """Inside the `with` statement no delta is active, so the backbone computes without any of them."""
        return only(self.attached, active=False)

    @property
    def active(self) -> list[Delta]:
        return [delta for delta in self.attached if delta.is_active]

    @property
    def is_frozen(self) -> bool:
        """Whether neither the backbone nor an active delta has trainable parameters."""
        modules: list[nn.Module] = [self, *self.active]
        return not any(p.requires_grad for module in modules for p in module.parameters())

    def encoders(self) -> list[Backbone]:
        """The encoders that it consists of, each with an identity of its own; most backbones are one."""
        return [self]

    # -- identity ------------------------------------------------------------------------------
    def digests(self, module: nn.Module | None = None, prefix: str = "") -> dict[str, str]:
        """SHA-256 of every tensor, by name. A tensor is hashed again only if it was written to: torch counts the
        writes in its version, except those through `.data` and numpy, for which `doubt` has its content compared."""
        return self._digests.of(self if module is None else module, prefix, self._exact)

    def doubt(self) -> None:
        """Say that code has run which may have written to the weights through `.data` or numpy: the next `identity`
        compares the content of every tensor, of the active deltas too. It reads them once, at the speed of memory."""
        for encoder in self.encoders():
            encoder._digests.doubts += 1

    def identity(self) -> str:
        """A hash of all that determines a feature: weights, active deltas, preprocessing, pooling, precision."""
        deltas = [
            (delta.site_name, type(delta).__name__, self.digests(delta, f"delta {number} "), _plain_state(delta))
            for number, delta in enumerate(self.attached)
            if delta.is_active
        ]
        what = json.dumps([self.digests(), deltas, self.settings, self.precision], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:32]


def _plain_state(delta: Delta) -> dict[str, Any]:
    """What determines the output of a delta besides its parameters, such as a scale or the tokens given to it."""
    return {
        f"{path}.{name}": _plain(value)
        for path, module in delta.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str | tuple | torch.Tensor) and name not in ("training", "_input")
    }


def _plain(value: Any) -> Any:
    """A value as JSON, a tensor as its digest; nothing for what is neither."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return digest(value)
    return value if isinstance(value, bool | int | float | str) else None


def config_hash(config: Any) -> str:
    """A hash of a transformers configuration: with other heads or activations, equal weights give other features."""
    leave_out = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
    told = {key: value for key, value in config.to_dict().items() if key not in leave_out}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def has_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether the hardware supports bfloat16 matrix products natively."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported()) and "bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith("flags")), "")
    except OSError:  # not Linux: no such file, and no claim of native bfloat16
        return ""
