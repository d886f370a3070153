"""DualPrompt: general prompts for all tasks, expert prompts for each (Wang et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.heads.linear import append_rows
from everlearn.method import Tags
from everlearn.methods.prompted import Prompted
from everlearn.peft.prefix import KeysValues
from everlearn.peft.prompt import PromptTokens
from everlearn.seeds import seeded
from everlearn.settings import Count, Index, Rate, Seed, Size, Strength
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Task


class DualPrompt(Prompted):
    """DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning. Wang, Zhang, Ebrahimi
    et al., ECCV 2022, https://arxiv.org/abs/2204.04799

    One general prompt is trained on every task; each task has one expert prompt and its key. An example
    gets the expert whose key is nearest to its frozen feature; in training, the expert of its own task.
    As prefixes, the first half of a prompt joins the keys and the second half the values of attention.

    Prompts and keys start within (0, 0.01), as released, and not within (-1, 1), as in the ports to PyTorch;
    a new expert starts as a copy of the last one, as released. Departures from the released code: the
    learning rate is used as given (the released code multiplies it by batch size / 256), and the choice is
    among the experts of tasks seen so far only.

    Args:
        backbone: a pre-trained encoder, frozen.
        general_length: tokens of the general prompt; as a prefix half are keys, half values.
        expert_length: tokens of an expert prompt, likewise.
        general_blocks: the blocks of the general prompt, from 0; those beyond the encoder's depth are dropped.
        expert_blocks: the blocks of the expert prompts; the last block where all lie beyond the depth.
        form: "prefix" or "prompt". As prompts, which need equal lengths, tokens take the places of the
            block before's instead of being added to them: the sequence grows once, before block 0, which must be
            one of the blocks.
        pull: weight of the key's distance to the query, lambda of the paper.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate (Adam) of prompts and keys.
        head_lr: learning rate of the head, for features of norm 1; it is divided by their norm. With None it is `lr`.
        seed: of the prompts, the head and the order of examples.
        settings: order and rescore, as of every method that trains (`Method`).

    Raises:
        EverlearnError: lengths or blocks that do not fit the form, or a block that is given twice.

    Relations: `l2p` has one pool at the input; `coda_prompt` weighs all prompts instead of choosing.

    >>> from everlearn import backbones
    >>> DualPrompt(backbones.load("tiny")).expert_blocks
    (1,)
    """

    tags = Tags(family="prompt", trains="peft", needs=("last layer",))
    Optimizer = torch.optim.Adam
    clip = 1.0

    def __init__(
        self, backbone: Backbone, *, general_length: Size = 6, expert_length: Size = 20,
        general_blocks: tuple[Index, ...] = (0, 1), expert_blocks: tuple[Index, ...] = (2, 3, 4),
        form: Literal["prefix", "prompt"] = "prefix", pull: Strength = 1.0,
        epochs: Count = 5, batch_size: Count = 16, lr: Rate = 0.001875, head_lr: Rate | None = 0.1,
        seed: Seed = 0, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, **settings)
        if form == "prefix" and (general_length % 2 or expert_length % 2):
            raise EverlearnError("method.form: 'prefix' splits a prompt into keys and values: give even lengths, not "
                                 f"{general_length} and {expert_length}")  # fmt: skip
        if form == "prompt" and general_length != expert_length:
            raise EverlearnError("method.form: 'prompt' needs general_length equal to expert_length, not "
                                 f"{general_length} and {expert_length}: give the same for both")  # fmt: skip
        for name, blocks in (("general_blocks", general_blocks), ("expert_blocks", expert_blocks)):
            if len(set(blocks)) < len(blocks):
                raise EverlearnError(f"method.{name}: a block occurs twice in {list(blocks)}: give each block once")
        self.expert_blocks = tuple(b for b in expert_blocks if b < backbone.depth) or (backbone.depth - 1,)
        within = (b for b in general_blocks if b < backbone.depth)
        self.general_blocks = tuple(b for b in within if b not in self.expert_blocks)
        if form == "prompt" and 0 not in (*self.general_blocks, *self.expert_blocks):
            raise EverlearnError("method.form: 'prompt' adds its tokens to the sequence before block 0, which is in "
                                 f"neither general_blocks {list(general_blocks)} nor expert_blocks "
                                 f"{list(expert_blocks)}: add it to one of them, or give prefix")  # fmt: skip
        self.form, self.strength, self.head_lr = form, pull, head_lr
        with seeded(seed):
            general = torch.empty(len(self.general_blocks), general_length, backbone.hidden_width).uniform_(0, 0.01)
        self.general = nn.Parameter(general)
        self.experts = nn.Parameter(torch.empty(0, len(self.expert_blocks), expert_length, backbone.hidden_width))
        self.keys = nn.Parameter(torch.empty(0, backbone.width))
        self.inserted = nn.ModuleList()
        for index in (*self.general_blocks, *self.expert_blocks):
            self.inserted.append(self._insert(index))

    def _insert(self, index: int) -> Any:
        if self.form == "prefix":
            return self.backbone.attach(KeysValues(), self.backbone.block(index).heads)
        site = self.backbone.tokens if index == 0 else self.backbone.block(index - 1).output
        return self.backbone.attach(PromptTokens(replaces=index > 0), site)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        first = torch.empty(1, *self.experts.shape[1:]).uniform_(0, 0.01)
        self.experts = append_rows(self.experts, self.experts.detach()[-1:] if len(self.experts) else first)
        self.keys = append_rows(self.keys, torch.empty(1, self.backbone.width).uniform_(0, 0.01))

    def prompted(self, inputs: Sequence[Input], choice: Tensor) -> Tensor:
        """Features (n, width) with the general prompts and those of the expert that was chosen for each example."""
        general = [p.expand(len(choice), -1, -1) for p in self.general]
        prompts = [*general, *self.experts[choice].unbind(1)]
        with ExitStack() as stack:
            for inserted, prompt in zip(self.inserted, prompts, strict=True):
                given = prompt.chunk(2, dim=1) if self.form == "prefix" else (prompt,)
                stack.enter_context(cast(Any, inserted).given(*given))
            return self.backbone(inputs)

    def pull(self, queries: Tensor, choice: Tensor) -> Tensor:
        return self.strength * (1 - cosine_similarity(queries, self.keys[choice]))
