"""The contract: a Method learns a stream through five verbs and two knobs.

| verb | default |
|---|---|
| `begin_task(task)` | grow the head. Structure only: it may not read data |
| `loss(batch)` | cross-entropy, or in-batch ranking for text pairs |
| `step(batch, update)` | loss, gradient, update |
| `end_task(task)` | nothing |
| `predict(batch)` | scores over every class seen so far |
| knob `param_groups()` | what requires grad; empty = nothing is trained |
| knob `batches(task)` | every epoch shuffled |

A method file overrides what its paper changes and calls `super()` for the rest. Because
`begin_task` is structure only, a run resumes by replaying it on saved task metadata and loading the
state dict; so memories and statistics are modules, and nothing else holds state.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from everlearn.backbones.backbone import Backbone
from everlearn.errors import EverlearnError
from everlearn.heads.linear import Linear
from everlearn.losses import multiple_negatives_ranking
from everlearn.streams.stream import Examples, Input, Task
from everlearn.streams.views import views

KINDS = ("class-incremental", "domain-incremental", "task-incremental", "online", "old-then-new")


@dataclass(frozen=True)
class Tags:
    """What a method is and needs; `compare` and the contract's checks choose by it.

    Args:
        family: prompt, representation, replay, regularisation, peft or baseline.
        trains: the largest thing that receives gradient.
        modalities: text and image are classification, pairs is retrieval.
        kinds: the stream kinds it can learn.
        needs_boundaries: whether it must be told where one task ends and the next begins.
        needs_task_id: whether `predict` must be told the task.
        retrains: whether the cost of a task grows with the number of tasks before it.
    """

    family: str
    trains: Literal["nothing", "head", "peft", "backbone"]
    modalities: tuple[str, ...] = ("text", "image")
    kinds: tuple[str, ...] = KINDS
    needs_boundaries: bool = False
    needs_task_id: bool = False
    retrains: bool = False


class Update:
    """One optimizer step. Call it with the loss; or, to change gradients in between, call
    `backward(loss)`, then `apply()`.

    Raises:
        EverlearnError: the loss is NaN or infinite. Nothing is updated then.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Any, clip: float | None) -> None:
        self.optimizer, self.schedule, self.clip = optimizer, schedule, clip
        self.batch: Examples | None = None

    def __call__(self, loss: torch.Tensor) -> None:
        self.backward(loss)
        self.apply()

    def backward(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            ids = list(self.batch.ids[:5]) if self.batch is not None else []
            raise EverlearnError(
                f"the loss is {loss.item()} at a batch with the records {', '.join(map(str, ids))}…: the last "
                "checkpoint is untouched; lower the learning rate (--method.lr) or look at these records"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def apply(self) -> None:
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.clip is not None:
            nn.utils.clip_grad_norm_(trained, self.clip)
        self.optimizer.step()
        # Fused optimizers write without telling: features would be served of weights long gone.
        torch.autograd.graph.increment_version(trained)
        self.schedule.step()


class Method(nn.Module):
    """The plain model: a backbone and a growing linear head. Subclasses say what their paper changes.

    Args:
        backbone: a pre-trained encoder, frozen unless the subclass thaws it.
        epochs: passes over each task's training examples; 1 on an online stream, whatever is given.
        batch_size: examples a step; an online stream brings its own.
        lr: learning rate of everything that `param_groups` does not give one of its own.
        seed: of everything random in the method.
    """

    tags: ClassVar[Tags]
    Optimizer: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW
    schedule: ClassVar[Literal["constant", "cosine", "quarter_cosine", "step"]] = "constant"
    """Of the learning rate within a task; "step" takes a tenth of it for the last tenth of the steps;
    "quarter_cosine", CODA-Prompt's as released, is whole for two epochs and goes down a quarter of a cosine
    from one epoch to the next after that."""
    clip: ClassVar[float | None] = None
    paper_compat: bool = False
    head_lr: float | None = None
    """Learning rate of the head, where it is not that of the rest."""
    head: Any
    """How features become scores: any module of `heads/`."""
    settings: dict[str, Any]
    """The keyword arguments it was built with; a run's configuration keeps them."""
    task: Task
    """The task being learned, without its data; set by `begin_task`."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        # Said outright: Python 3.11.2 reads it off __new__ where a subclass has no __init__ (3.11.7 does not).
        whole = inspect.signature(cls.__init__)
        cls.__signature__ = whole.replace(parameters=list(whole.parameters.values())[1:])  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **settings: Any) -> Method:
        method = super().__new__(cls)
        method.__dict__["settings"] = {name: value for name, value in settings.items() if name != "backbone"}
        return method

    def __init__(
        self, backbone: Backbone, *, epochs: int = 1, batch_size: int = 32, lr: float = 1e-3, seed: int = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if not backbone.origin:
            backbone.origin = backbone.digests()
        self.epochs, self.batch_size, self.lr, self.seed = epochs, batch_size, lr, seed
        self.head = Linear(backbone.width)

    # -- five verbs ----------------------------------------------------------------------------
    def begin_task(self, task: Task) -> None:
        """Change structure for `task`: grow the head. `task` has no data here."""
        self.task = task
        if task.modality != "pairs":
            self.head.grow(len(task.class_names))

    def loss(self, batch: Examples) -> torch.Tensor:
        """The scalar to minimise on a batch."""
        if batch.positives is not None:
            documents = self.backbone(batch.positives)
            return multiple_negatives_ranking(self.backbone(batch.inputs), documents, batch.positives)
        return F.cross_entropy(self.head(self.backbone(batch.inputs)), self.labels(batch))

    def step(self, batch: Examples, update: Update) -> torch.Tensor:
        """Learn from one batch; returns the loss."""
        loss = self.loss(batch)
        update(loss)
        return loss.detach()

    def end_task(self, task: Task) -> None:
        """What remains once the task is trained: prototypes, statistics, memory."""

    def predict(self, batch: Examples) -> torch.Tensor:
        """Scores (n, classes seen so far). Depends on each example alone."""
        return self.head(self.embed(batch.inputs))

    # -- two knobs -----------------------------------------------------------------------------
    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: everything that requires grad, the head apart where it has a learning rate of
        its own. Empty: nothing is trained in this task."""
        trained = [p for p in self.parameters() if p.requires_grad and p.numel()]
        apart = set() if self.head_lr is None else set(self.head.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p not in apart]},
            {"params": [p for p in trained if p in apart], "lr": self.head_lr},
        ]
        return [group for group in groups if group["params"]]

    def batches(self, task: Task) -> Sequence[Examples]:
        """The batches of the whole task in order: every epoch shuffled by the method's seed."""
        return self.shuffled(task.train, task)

    # -- for subclasses and users --------------------------------------------------------------
    def embed(self, inputs: Sequence[Input]) -> torch.Tensor:
        """Features (n, width) without gradient: from the feature store while the backbone is frozen."""
        return self.backbone.encode(inputs) if self.backbone.is_frozen else self.backbone.infer(inputs)

    def measures(self, task: Task) -> dict[str, float]:
        """Further scores on a task's test examples, kept as matrices beside the accuracy: how often a
        router is right, say. It is told the task, which `predict` never is; the same names every time."""
        return {}

    def diagnostics(self) -> dict[str, Any]:
        """What the report should show besides scores, as plain JSON; most methods have nothing."""
        return {}

    def labels(self, batch: Examples) -> torch.Tensor:
        """The batch's labels, on the backbone's device."""
        return batch.labels.to(self.backbone.device)

    def shuffled(self, examples: Examples, task: Task) -> Batches:
        """`examples` in shuffled batches, for as many epochs as the method and the stream ask."""
        seed = derived_seed(self.seed, task.index)
        if task.batch_size:
            return Batches(examples, 1, task.batch_size, seed, augment=task.augment)
        lengths = self.backbone.lengths(examples.inputs if examples.positives is None else examples.positives)
        return Batches(examples, self.epochs, self.batch_size, seed, lengths, task.augment)

    def train(self, mode: bool = True) -> Method:
        """As torch's, but the backbone stays in evaluation mode: without dropout a step is half as
        long on a CPU, and vision backbones have none anyway."""
        super().train(mode)
        self.backbone.eval()
        return self


class Batches(Sequence[Examples]):
    """Shuffled batches over several epochs. Batch k is a function of the seed and k alone, so a
    resumed run goes on at k without drawing what came before.

    Given the examples' lengths, each run of `WINDOW` batches is sorted by them before it is cut, and
    its batches are shuffled: short texts are not padded to long ones, which halves the tokens.

    >>> from everlearn.streams.stream import Examples
    >>> data = Examples(["a", "b", "c"], torch.tensor([0, 1, 0]), ["1", "2", "3"])
    >>> [len(batch) for batch in Batches(data, epochs=2, size=2, seed=0)]
    [2, 1, 2, 1]
    """

    WINDOW = 8

    def __init__(
        self, examples: Examples, epochs: int, size: int, seed: int, lengths: Sequence[int] | None = None,
        augment: bool = False,
    ) -> None:  # fmt: skip
        self.examples, self.size, self.seed, self.lengths, self.augment = examples, size, seed, lengths, augment
        self.per_epoch = -(-len(examples) // size)
        self.length = epochs * self.per_epoch
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        epoch, position = divmod(index, self.per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            order = torch.randperm(len(self.examples), generator=generator)
            self._order = (epoch, order if self.lengths is None else self._by_length(order, generator))
        batch = self.examples[self._order[1][position * self.size : (position + 1) * self.size]]
        return augmented(batch, self.seed, index) if self.augment else batch

    def _by_length(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        lengths = torch.tensor(self.lengths)
        batches: list[torch.Tensor] = []
        for window in order.split(self.WINDOW * self.size):
            window = window[lengths[window].argsort(stable=True)]
            cut = list(window.split(self.size))
            whole = [batch for batch in cut if len(batch) == self.size]
            shuffled = torch.randperm(len(whole), generator=generator).tolist()
            batches += [whole[i] for i in shuffled] + cut[len(whole) :]  # a smaller one stays the last
        return torch.cat(batches)


def augmented(batch: Examples, *seed: int) -> Examples:
    """The batch with a random view of each image instead of the image."""
    seeds = [derived_seed(*seed, row) for row in range(len(batch))]
    return replace(batch, inputs=views(batch.inputs, seeds))


def derived_seed(*parts: int) -> int:
    """A seed from several numbers, such that neighbours do not give neighbouring streams."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return mixed


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Inside the block torch draws from a generator seeded by `parts`; outside it goes on as before."""
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(*parts))
        yield
