"""The contract: a Method learns a stream through five verbs and two knobs, which stand on one ladder.

| verb | default |
|---|---|
| `begin_task(task)` | grow the head. Structure only: it may not read data |
| `loss(batch)` | the mean of `losses(batch)` |
| `step(batch, optimizer_step)` | loss, gradient, update of the weights |
| `end_task(task)` | nothing |
| `predict(inputs, task=None)` | scores over every class seen so far, from the inputs alone |
| knob `param_groups()` | what requires grad; empty = nothing is trained |
| knob `batches(task)` | every epoch shuffled |

The ladder is `features(inputs)` → `scores(inputs)` → `losses(batch)`. Override the rung that a paper
changes, and the rungs above follow; `embed` and `predict` are the same without gradient.

A method file overrides what its paper changes and calls `super()` for the rest. Because `begin_task` is
structure only, a run resumes by replaying it on saved task metadata and loading the state dict; so
memories and statistics are modules, and nothing else holds state.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from everlearn.backbones.backbone import Backbone, Role
from everlearn.batches import Batches
from everlearn.cached_gradients import in_parts
from everlearn.curriculum import Curriculum, Order
from everlearn.errors import EverlearnError
from everlearn.heads.linear import Linear
from everlearn.losses import cross_entropy, ranking_scores
from everlearn.metrics.retrieval import comparable, nearest
from everlearn.optimizer_step import OptimizerStep
from everlearn.schedules import Schedule, constant
from everlearn.seeds import derived_seed
from everlearn.settings import Count, Rate, Seed, check
from everlearn.streams.inputs import Input, original
from everlearn.streams.stream import Examples, Task

Presented = tuple[Sequence[str], Tensor, Tensor]
"""The ids of n examples, what is right and what was answered, each (n,): labels, or places of documents in a batch."""

KINDS = ("class-incremental", "domain-incremental", "task-incremental", "online", "old-then-new")


@dataclass(frozen=True)
class Tags:
    """What a method is and needs; `compare` and the contract's checks choose by it.

    Args:
        family: prompt, representation, replay, regularisation, mixture, isolation, peft or baseline.
        trains: the largest thing that receives gradient, unless the setting `train` says otherwise.
        own_weights: whether, where it trains all weights, these are weights of its own that start as those of the
            backbone and are used in their place; the backbone stays as it was pre-trained.
        inputs: what an example may be: text, image or image-text.
        goals: what it can learn: classes, or ranking documents for a query.
        kinds: the stream kinds it can learn.
        needs: "class names" where it reads the names of the classes, "two towers" where it needs a backbone
            with a second encoder, "last layer" where it pools the states of the last layer itself.
        task_at_test: what `predict` does with the task where the stream tells it: it is "ignored" (and not
            told), "used", or "needed".
        retrains: whether the cost of a task grows with the number of tasks before it.
        index: where it ranks documents, how those of earlier domains are found: their embeddings are "re-encoded" by
            the present model, or "kept" as they were when their domain was learned (see `queries_for`).
        exact: whether `forget` and `merge` give what learning without, or with, the examples would have given.

    >>> from everlearn.methods import LDA
    >>> LDA.tags.trains, LDA.tags.exact, LDA.tags.trained_by({})
    ('nothing', True, 'nothing')
    """

    family: str
    trains: Literal["nothing", "head", "peft", "backbone"]
    own_weights: bool = False
    inputs: tuple[str, ...] = ("text", "image")
    goals: tuple[str, ...] = ("classes",)
    kinds: tuple[str, ...] = KINDS
    needs: tuple[Literal["class names", "two towers", "last layer"], ...] = ()
    task_at_test: Literal["ignored", "used", "needed"] = "ignored"
    retrains: bool = False
    index: Literal["re-encoded", "kept"] = "re-encoded"
    exact: bool = False

    def trained_by(self, settings: Mapping[str, Any]) -> str:
        """The largest thing that receives gradient where a method has these settings."""
        train = settings.get("train")
        return self.trains if train is None else {"full": "backbone", "head": "head"}.get(train, "peft")


class Method(nn.Module):
    """The plain model: a backbone and a growing linear head. Subclasses say what their paper changes.

    Args:
        backbone: a pre-trained encoder, frozen unless the subclass trains it.
        epochs: passes over each task's training examples; 1 on an online stream, whatever is given.
        batch_size: examples per step; an online stream brings its own.
        lr: learning rate of everything that `param_groups` does not give one of its own.
        seed: of everything random in the method.
        order: which examples a step sees: "shuffled"; "easy first" or "hard first", by what the model confuses at
            present (`everlearn.curriculum`); "mixed" draws equally often from easy, medium and hard ones.
        rescore: where the order is not shuffled, steps after which easy and hard are told anew.

    Raises:
        EverlearnError: an unknown setting, one whose value is not in the range that its annotation gives, or another
            order than shuffled on an online stream.

    >>> from everlearn import backbones, streams
    >>> from everlearn.engine import learn
    >>> class NearestMean(Method):
    ...     tags = Tags(family="representation", trains="nothing")
    ...     def param_groups(self):
    ...         return []
    ...     def begin_task(self, task):
    ...         super().begin_task(task)
    ...         self.head.weight.requires_grad_(False)
    ...     def end_task(self, task):
    ...         features = self.embed(task.train.inputs)
    ...         for label in task.classes:
    ...             self.head.weight[label] = features[task.train.labels == label].mean(0)
    >>> method = NearestMean(backbones.load("tiny"))
    >>> task = streams.task_from([streams.Record("tea please", "drink"), streams.Record("a sofa", "furniture")])
    >>> _ = learn(method, task)
    >>> tuple(method.predict(["a tea"]).shape)
    (1, 2)
    """

    tags: ClassVar[Tags]
    Optimizer: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW
    schedule: Schedule = staticmethod(constant)
    """How the learning rate changes within a task."""
    clip: ClassVar[float | None] = None
    """The largest norm of a gradient; None leaves gradients as they are."""
    masked: ClassVar[bool] = False
    """Whether the cross-entropy compares the classes of the current task only. A class that comes alone is
    then compared with nothing: it is not learned, and `engine.learn` warns."""
    aligned: ClassVar[bool] = False
    """Whether the head is learned again after each task, so that it knows a class that came alone."""
    paper_compat: bool = False
    head_lr: float | None = None
    """Learning rate of the head, where it has one of its own: for features of norm 1. It is divided by the norm of the
    features, because a step of Adam changes a score by the rate times the size of the features; with SGD by the square
    of the norm, because the gradient grows with the features too."""
    feature_norm: float = 1.0
    """The mean norm of the features, found before a task is trained on."""
    head: Any
    """How features become scores: any module of `heads/`."""
    settings: dict[str, Any]
    """The keyword arguments it was built with; a run's configuration keeps them."""
    task: Task
    """The task being learned, without its data; set by `begin_task`."""
    presented: list[Presented] | None = None
    """Where it is a list, every batch that is trained on adds what was answered (`everlearn.presentations`)."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        # Said outright: Python 3.11.2 reads it off __new__ where a subclass has no __init__ (3.11.7 does not).
        # Where the constructor passes **settings on, they are those of the class above.
        full = inspect.signature(cls.__init__)
        own = [p for p in list(full.parameters.values())[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if len(own) + 1 < len(full.parameters):
            base = cls.__mro__[1]
            above = inspect.signature(base.__init__ if base is Method else base).parameters.values()
            own += [p for p in above if p.name not in ["self", *(mine.name for mine in own)]]
        cls.__signature__ = full.replace(parameters=own)  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **settings: Any) -> Method:
        check("method", cls, settings)
        method = super().__new__(cls)
        method.__dict__["settings"] = {name: value for name, value in settings.items() if name != "backbone"}
        return method

    def __init__(
        self, backbone: Backbone, *, epochs: Count = 1, batch_size: Count = 32, lr: Rate = 1e-3, seed: Seed = 0,
        order: Order = "shuffled", rescore: Count = 50,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = backbone
        for encoder in backbone.encoders():
            encoder.origin = encoder.origin or encoder.digests()
        self.epochs, self.batch_size, self.lr, self.seed = epochs, batch_size, lr, seed
        self.head = Linear(backbone.width)
        self.curriculum = None if order == "shuffled" else Curriculum(order, rescore)

    # -- five verbs ----------------------------------------------------------------------------
    def begin_task(self, task: Task) -> None:
        """Change structure for `task`: grow the head. `task` has no data here."""
        self.task = task
        if task.goal == "classes":
            self.head.grow(task.class_names)

    def loss(self, batch: Examples) -> Tensor:
        """The scalar to minimise on a batch."""
        return self.losses(batch).mean()

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        """Learn from one batch; returns the loss, a scalar without gradient."""
        loss = self.loss(batch)
        optimizer_step.backward(loss)
        total = loss.detach() + self.hold(optimizer_step)
        optimizer_step.apply()
        return total

    def hold(self, optimizer_step: OptimizerStep) -> Tensor | float:
        """Add the gradients of a penalty to those of the loss, and return it, a scalar. There is none here."""
        return 0.0

    def end_task(self, task: Task) -> None:
        """What remains to do after training: prototypes, statistics, memory. `task` has no test data here."""

    def drop_helpers(self) -> tuple[str, ...]:
        """Remove the modules that are only needed while a task is learned, such as the teacher of `lwf`, so that they
        are neither held nor stored until the next one.

        Returns:
            How the names of their tensors begin.
        """
        # The class is asked, because an attribute of an encoder that is not loaded would have it loaded.
        helpers = [name for name, module in self.named_children() if getattr(type(module), "is_helper", False)]
        for name in helpers:
            setattr(self, name, None)
        return tuple(f"{name}." for name in helpers)

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        """Scores (n, classes seen so far), without gradient. Each depends on its own input alone.

        Args:
            inputs: n texts or images.
            task: the index of the task they belong to; given only where the stream tells it and the tags
                ask for it.
        """
        return self.head(self.embed(inputs))

    # -- the ladder ----------------------------------------------------------------------------
    def features(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        """(n, width), with gradient where something is trained; of a frozen backbone they come from the feature store.

        Args:
            role: where the goal is ranking, whether these are queries or documents.
        """
        with self.backbone.reading(role) if role else nullcontext():
            # The store has the features of whole images, and none of the views that augmentation makes of them.
            if self.backbone.is_frozen and all(item is original(item) for item in inputs):
                return self.backbone.encode(inputs)
            return self.backbone(inputs)

    def scores(self, inputs: Sequence[Input]) -> Tensor:
        """(n, classes seen so far), with gradient."""
        return self.head(self.features(inputs))

    def losses(self, batch: Examples) -> Tensor:
        """(n,): the loss of each example. Cross-entropy; where the goal is ranking, of each query's
        document among all documents of the batch, the negatives too."""
        if batch.positives is not None:
            texts = batch.documents
            queries, documents = self._by_parts(batch.inputs, "query"), self._by_parts(texts, "document")
            return self.ranking_losses(queries, documents, texts, batch)
        return self.classification_losses(self.scores(batch.inputs), batch)

    def _by_parts(self, texts: Sequence[Input], role: Role) -> Tensor:
        """`features` of all that are compared with each other, in memory that does not grow with their number."""
        most_tokens = 2 * self.backbone.tokens_at_once
        return in_parts(lambda part: self.features(part, role), texts, self.backbone.lengths(texts), most_tokens)

    def classification_losses(self, scores: Tensor, batch: Examples) -> Tensor:
        """(n,): the cross-entropy of (n, classes) scores, over the task's own classes where `masked`."""
        self._answered(batch, scores, self.labels(batch))
        return cross_entropy(scores, self.labels(batch), self.task.classes if self.masked else None)

    def ranking_losses(self, queries: Tensor, documents: Tensor, texts: Sequence[str], batch: Examples) -> Tensor:
        """(n,): the cross-entropy of finding each query's document among all (m, width) documents of the batch."""
        scores = ranking_scores(queries, documents, texts, self.backbone.similarity, batch.inputs)
        own = torch.arange(len(queries), device=scores.device)
        self._answered(batch, scores, own)
        return cross_entropy(scores, own)

    def _answered(self, batch: Examples, scores: Tensor, labels: Tensor) -> None:
        """Tell whoever listens what the (n, answers) scores say, and what is right, while the batch is trained on."""
        if self.presented is not None and torch.is_grad_enabled():
            self.presented.append((batch.ids, labels.detach(), scores.detach().argmax(1)))

    def embed(self, inputs: Sequence[Input], role: Role | None = None) -> Tensor:
        """`features` (n, width) without gradient; of a frozen backbone they come from the feature store."""
        if self._is_read_from_the_store:
            with self.backbone.reading(role) if role else nullcontext():
                return self.backbone.encode(inputs)
        return self.backbone.infer(inputs, lambda batch, rows: self.features(batch, role))

    def zero_shot(self, inputs: Sequence[Input], names: Sequence[str]) -> Tensor:
        """(n, names), without gradient: how near each image is to the names of classes that are not learned, by a
        backbone with an image encoder and a text encoder (`everlearn.unseen`)."""
        backbone = self.backbone
        images = self.embed(inputs)
        if images.shape[1] != backbone.width:  # a method that joins further features to those of the pair
            images = backbone.infer(inputs)
        texts = backbone.class_features(names, None if backbone.is_frozen else backbone.infer)
        return normalize(images) @ normalize(texts).T

    @property
    def _is_read_from_the_store(self) -> bool:
        """Whether `features` are those of a frozen backbone."""
        return type(self).features is Method.features and self.backbone.is_frozen

    def search(self, queries: Sequence[Input], documents: Sequence[Input], k: int = 10) -> list[list[int]]:
        """For each query the positions of up to k documents, best first: those whose embeddings are most similar, by
        the similarity that the encoder was trained for. A method that keeps an index answers from that."""
        similarity = self.backbone.similarity
        asked, given = self.embed(queries, "query"), self.embed(documents, "document")
        return nearest(comparable(asked, similarity), comparable(given, similarity), k)

    # -- an index that has to survive --------------------------------------------------------------
    def document_space(self) -> str:
        """A hash of all that determines the embedding of a document. While it stays the same, an index stays right.

        A method that reads documents in another way than `embed` of the whole backbone says here what decides.
        """
        with self.backbone.reading("document"):
            return self.backbone.identity()

    def queries_for(self, queries: Sequence[Input], space: str) -> Tensor:
        """Embeddings (n, width) of queries, to search an index of documents that were embedded in `space`.

        By default those of `embed`, whatever the space: a method that knows how its own space has moved since then
        overrides this and takes the movement back.
        """
        return self.embed(queries, "query")

    def reaches(self, space: str) -> bool:
        """Whether `queries_for` gives queries that fit an index of documents that were embedded in `space`."""
        return space == self.document_space()

    # -- two knobs -----------------------------------------------------------------------------
    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: everything that requires grad, the head apart where it has a learning rate of
        its own. Empty: nothing is trained in this task."""
        trained = [p for p in self.parameters() if p.requires_grad and p.numel()]
        apart = set() if self.head_lr is None else set(self.head.parameters())
        head: dict[str, Any] = {"params": [p for p in trained if p in apart], "lr": self.head_rate}
        if self.masked:  # rows of old classes have a gradient of zero, and weight decay would shrink them task by task
            head["weight_decay"] = 0.0
        groups = [{"params": [p for p in trained if p not in apart]}, head]
        return [group for group in groups if group["params"]]

    def head_inputs(self, inputs: Sequence[Input]) -> Tensor:
        """Features (n, width) of about the size of those that the head reads, without gradient."""
        return self.backbone.encode(inputs) if self.backbone.is_frozen else self.backbone.infer(inputs)

    @property
    def head_rate(self) -> float | None:
        """The learning rate of a head whose features have the norm of this encoder."""
        power = 2 if issubclass(self.Optimizer, torch.optim.SGD) else 1
        return None if self.head_lr is None else self.head_lr / self.feature_norm**power

    def batches(self, task: Task) -> Sequence[Examples]:
        """The batches of the task in order: every epoch shuffled by the method's seed."""
        return self.shuffled(task.train, task)

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        """(n, classes seen so far), without gradient: what training compares with the labels, by which a curriculum
        tells easy examples from hard ones."""
        return self.head(self.embed(inputs))

    # -- what is learned, taken back or joined -------------------------------------------------
    @property
    def is_exact(self) -> bool:
        """Whether `forget` and `merge` are exact for the method as it was built."""
        return self.tags.exact

    def forget(self, examples: Examples) -> None:
        """Be as if these examples, with these labels, had never been learned.

        Raises:
            EverlearnError: the method cannot do it exactly, or never learned them; nothing changes.
        """
        self._check_exact("forget")
        self.head.remove(self.embed(examples.inputs), self.labels(examples))
        self.head.solve()

    def merge(self, other: Method) -> None:
        """Be as if all that `other` has learned had been learned here too. Classes are matched by name;
        those that only `other` knows come last.

        Raises:
            EverlearnError: the method cannot do it exactly, or the two differ in more than their data.
        """
        self._check_exact("merge")
        mine, theirs = ((type(method), method.backbone.identity(), method.all_settings())
                        for method in (self, other))  # fmt: skip
        if mine != theirs:
            raise EverlearnError("merge: the two models have different methods, settings or backbones: learn both "
                                 "from the same backbone with the same settings")  # fmt: skip
        self.head.merge(other.head)
        self.head.solve()
        names = self.head.class_names
        if learned := [method.task for method in (self, other) if hasattr(method, "task")]:
            self.task = replace(learned[0], class_names=names, classes=tuple(range(len(names))))

    def all_settings(self) -> dict[str, Any]:
        """Every setting but the seed, which random heads compare themselves."""
        defaults = {p.name: p.default for p in inspect.signature(type(self)).parameters.values()}
        return {**defaults, **self.settings, "seed": None}

    def _check_exact(self, verb: str) -> None:
        if not self.is_exact:
            raise EverlearnError(f"{verb}: {type(self).__name__}, with these settings, trains weights on its examples, "
                                 "which cannot be undone exactly: learn again, or take a method that keeps "
                                 "statistics only, such as simplecil or lda")  # fmt: skip

    # -- for subclasses and users --------------------------------------------------------------
    def measures(self, inputs: Sequence[Input], task: int) -> dict[str, float]:
        """Further scores on the test inputs of a task, kept as matrices beside the accuracy: how often a
        router is right, say. It is told the task, which `predict` is not, and which may not influence `predict`.
        The same names every time, none that evaluation uses ("accuracy"), and finite numbers."""
        return {}

    def diagnostics(self) -> dict[str, Any]:
        """What the report should show besides scores, as plain JSON; most methods have nothing."""
        return {}

    def labels(self, batch: Examples) -> Tensor:
        """The batch's labels (n,), on the backbone's device."""
        return batch.labels.to(self.backbone.device)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that receive gradient, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def shuffled(self, examples: Examples, task: Task) -> Batches:
        """`examples` in batches, for as many epochs as the method and the stream ask: shuffled, unless the setting
        `order` says otherwise."""
        seed = derived_seed(self.seed, task.index)
        if task.batch_size:
            if self.curriculum is not None:
                raise EverlearnError("method.order: an online stream shows each example once, as it comes, so that "
                                     "nothing can be put off: leave it out")  # fmt: skip
            return Batches(examples, 1, task.batch_size, seed, augment=task.augment)
        if self._is_read_from_the_store and examples.positives is None and not task.augment:
            self.backbone.encode(examples.inputs)  # all at once, so that a resumed run forms the same batches
        lengths = self.backbone.lengths(examples.inputs if examples.positives is None else examples.positives)
        batches = Batches(examples, self.epochs, self.batch_size, seed, lengths, task.augment)
        return batches if self.curriculum is None else self.curriculum.ordered(batches, self)

    def train(self, mode: bool = True) -> Method:
        """As torch's, but the backbone stays in evaluation mode: without dropout a step is faster
        on a CPU, and vision backbones have no dropout anyway."""
        super().train(mode)
        self.backbone.eval()
        return self
