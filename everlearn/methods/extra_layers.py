"""Extra layers: new layers on a frozen body, which change nothing until they are trained (Rusu et al., 2016)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from everlearn.backbones.backbone import Backbone, Hidden, Role
from everlearn.errors import EverlearnError
from everlearn.heads.stages import attention_heads
from everlearn.losses import distillation
from everlearn.method import Method, Tags
from everlearn.settings import Count, Factor, LargeSize, Rate, Seed, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Examples, Task


class ExtraLayers(Method):
    """Progressive Neural Networks. Rusu, Rabinowitz, Desjardins, Soyer, Kirkpatrick, Kavukcuoglu, Pascanu & Hadsell,
    2016, https://arxiv.org/abs/1606.04671: what was learned is frozen, and new layers read it. Here they lie on top of
    it, one after another, and there is one head for all classes.

    The last layer of a new block is zero, so that at first every old score is, to the bit, what it was. Old rows of the
    head are kept: new classes get new rows, and an old row changes only where a task has examples of its class. The
    cross-entropy compares the classes of the task alone. The new block moves the features of old classes too;
    distillation (Li & Hoiem, 2016, https://arxiv.org/abs/1606.09282) holds the old scores of the new examples.
    Where classes come again, their rows change in the task, and the old scores are those of the older blocks under the
    rows as they are now: what is held then is the feature, as the present head reads it.

    Args:
        backbone: a pre-trained encoder, frozen.
        layer: "mlp" reads the pooled feature, which is computed once per example; "transformer" reads the states of
            all tokens before they are pooled, which takes a pass of the encoder per step.
        blocks: "shared" trains one block further and further; "per task" puts a new block on the older ones, which are
            frozen.
        hidden: units between the two layers of a block.
        strength: weight of the distillation; 0 leaves it out.
        temperature: of the distillation.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the block (AdamW).
        head_lr: learning rate of the head, for features of norm 1; it is divided by their norm.
        seed: of the blocks, new rows of the head and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: layer="transformer" on a backbone whose features are those of several layers.

    Relations: `task_adapters` puts new parameters inside the encoder, a set per task, and a router chooses among them;
    `lwf` trains the whole encoder with the same distillation; `logistic` solves the head without any layer.

    >>> from everlearn import backbones
    >>> from everlearn.streams import Task
    >>> method = ExtraLayers(backbones.load("tiny"), hidden=8)
    >>> method.begin_task(Task(0, "task 1", (0, 1), ("tea", "sofa")))
    >>> before = method.predict(["a cup of tea"])
    >>> method.begin_task(Task(1, "task 2", (2,), ("tea", "sofa", "train")))
    >>> after = method.predict(["a cup of tea"])
    >>> tuple(after.shape), torch.equal(after[:, :2], before)
    ((1, 3), True)
    """

    tags = Tags(family="peft", trains="peft")
    masked = True

    def __init__(
        self, backbone: Backbone, *, layer: Literal["mlp", "transformer"] = "mlp",
        blocks: Literal["shared", "per task"] = "shared", hidden: LargeSize = 512, strength: Strength = 1.0,
        temperature: Factor = 2.0, epochs: Count = 10, batch_size: Count = 32, lr: Rate = 1e-4, head_lr: Rate = 1e-2,
        seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        if layer == "transformer" and backbone.layers > 1:
            raise EverlearnError("method.layer: a transformer layer reads one state per token, and the backbone "
                                 f"'{backbone.name}' gives several: leave @layers= out, or give mlp")  # fmt: skip
        self.state_width = backbone.width if layer == "mlp" else backbone.hidden_width
        self.layer, self.is_shared, self.hidden, self.head_lr = layer, blocks == "shared", hidden, head_lr
        self.strength, self.temperature = strength, temperature
        self.blocks, self.before = nn.ModuleList(), nn.ModuleList()  # the second: a shared block before the task

    def begin_task(self, task: Task) -> None:
        self.known = self.head.classes  # that have scores to be held
        super().begin_task(task)
        self.blocks.requires_grad_(self.is_shared)
        if self.is_shared:
            self.before = copy.deepcopy(self.blocks).requires_grad_(False)
        if not (self.is_shared and len(self.blocks)):
            make = MLP if self.layer == "mlp" else Transformer
            self.blocks.append(make(self.state_width, self.hidden))

    def param_groups(self) -> list[dict[str, Any]]:
        # Without weight decay, a row of the head that gets no gradient stays as it is.
        return [{**group, "weight_decay": 0.0} for group in super().param_groups()]

    def batches(self, task: Task) -> Sequence[Examples]:
        if self.layer == "mlp" and not task.augment:
            self.backbone.encode(task.train.inputs)  # all at once is faster than batch by batch
        return super().batches(task)

    def features(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        return self._through(self.blocks, *self._body(inputs))

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        if self.layer == "transformer":
            return super().embed(inputs, role)
        with torch.no_grad():
            return self._through(self.blocks, self.backbone.encode(inputs), None)

    def losses(self, batch: Examples) -> Tensor:
        body = self._body(batch.inputs)
        features = self._through(self.blocks, *body)
        losses = self.classification_losses(self.head(features), batch)
        if not self.known or not self.strength:
            return losses
        with torch.no_grad():
            older = self.before if self.is_shared else self.blocks[:-1]
            before = self.head(self._through(older, *body))[:, : self.known]
        now = linear(features, self.head.weight.detach(), self.head.bias.detach())  # it moves the block, not the rows
        return losses + self.strength * distillation(now, before, temperature=self.temperature)

    def _body(self, inputs: Sequence[Input]) -> tuple[Tensor, Tensor | None]:
        """What the frozen body gives: features (n, width), or states (n, tokens, width) with their mask."""
        if self.layer == "mlp":
            return (self.backbone.infer if self.task.augment else self.backbone.encode)(inputs), None
        with torch.no_grad():
            hidden = self.backbone.hidden(self.backbone.prepare(inputs))
        return hidden.states, hidden.mask

    def _through(self, blocks: Iterable[nn.Module], states: Tensor, mask: Tensor | None) -> Tensor:
        """(n, width) features after these blocks."""
        for block in blocks:
            states = block(states, mask)
        return states if mask is None else self.backbone.pool(Hidden(states, mask, prompts=0))


class MLP(nn.Module):
    """x + Up(gelu(Down(norm(x)))), with Up zero at first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.down, self.up = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        _zero(self.up)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """(n, width) -> (n, width)."""
        return states + self.up(gelu(self.down(self.norm(states))))


class Transformer(nn.TransformerEncoderLayer):
    """Attention and an MLP, each added to what it reads, with their last layers zero at first."""

    def __init__(self, width: int, hidden: int) -> None:
        heads = attention_heads(width)
        super().__init__(width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        _zero(self.self_attn.out_proj)
        _zero(self.linear2)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        """(n, tokens, width) with the mask (n, tokens) -> (n, tokens, width)."""
        return super().forward(states, src_key_padding_mask=None if mask is None else mask == 0)


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
