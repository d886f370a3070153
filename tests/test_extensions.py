"""What comes next fits the contract: methods of papers that are not in the package, written against it alone."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss, normalize

from everlearn import backbones, methods, run
from everlearn.backbones.backbone import Backbone
from everlearn.backbones.two_towers import TwoTowers
from everlearn.checkpoint import method_state
from everlearn.engine import Learning, Listener, learn
from everlearn.errors import EverlearnError
from everlearn.method import Method, Role, Tags
from everlearn.methods import ER, Finetune
from everlearn.metrics.retrieval import nearest
from everlearn.optimizer_step import OptimizerStep
from everlearn.peft.delta import Delta, Site
from everlearn.seeds import seeded
from everlearn.state import Stateful
from everlearn.streams import Examples, Task
from everlearn.streams.inputs import Input, content
from everlearn.testing import check_method, session, toy_stream

SMALL: dict[str, Any] = {"epochs": 8, "batch_size": 8, "lr": 1e-3}


class DERpp(ER):
    """Dark Experience for General Continual Learning, Buzzega et al., NeurIPS 2020,
    https://arxiv.org/abs/2004.07211: replay labels, and the scores that the model gave when it stored them.

    Args:
        backbone: a pre-trained encoder.
        alpha: weight of the stored scores.

    >>> DERpp(backbones.load("tiny"), alpha=0.2).alpha
    0.2
    """

    tags = Tags(family="replay", trains="backbone")

    def __init__(self, backbone: Backbone, *, alpha: float = 0.5, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.alpha = alpha

    def loss(self, batch: Examples) -> Tensor:
        loss = super().loss(batch)
        if len(self.memory):
            old = self.memory.sample(self.replay_batch_size)
            scores, stored = self.scores(old.inputs), old.columns["logits"]
            known = ~stored.isnan()  # classes that had been seen when the example was stored
            loss = loss + self.alpha * mse_loss(scores[:, : stored.shape[1]][known], stored[known])
        return loss

    def end_task(self, task: Task) -> None:
        self.memory.add(task.train, logits=self.predict(task.train.inputs))


class Packed(Delta):
    """A linear layer of which a task uses its own weights and those of the tasks before it."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        assert site.weight is not None
        self.register_buffer("owner", torch.full(site.weight.shape, -1))  # -1: free
        self.task: int | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.task is None:
            return y
        assert self.site is not None
        used = (self.owner >= 0) & (self.owner <= self.task)
        return linear(x, self.site.weight * used, self.site.leave.bias)


class PackNet(Method):
    """PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning, Mallya & Lazebnik, CVPR 2018,
    https://arxiv.org/abs/1711.05769: after each task prune, and give the freed weights to the next one.

    Args:
        backbone: a pre-trained encoder; the weights of its linear layers are trained.
        keep: share of the free weights that a task keeps.
        epochs: passes over each task, and again after pruning.
        batch_size: examples per step.
        lr: learning rate (SGD).
        seed: of the head and the order of examples.

    >>> len(PackNet(backbones.load("tiny")).packed)
    12
    """

    tags = Tags(family="isolation", trains="backbone", task_at_test="needed")
    Optimizer = torch.optim.SGD
    masked = True

    def __init__(
        self, backbone: Backbone, *, keep: float = 0.5, epochs: int = 8, batch_size: int = 8, lr: float = 0.1,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        self.keep = keep
        sites = [site for i in range(backbone.depth) for site in backbone.block(i).operations]
        layers = [site for site in sites if isinstance(site.leave, nn.Linear)]
        self.packed = nn.ModuleList(backbone.attach(Packed(site), site) for site in layers)
        for site in layers:
            site.leave.weight.requires_grad_(True)

    def step(self, batch: Examples, optimizer_step: OptimizerStep) -> Tensor:
        loss = self.loss(batch)
        optimizer_step.backward(loss)
        for packed in self.packed:
            packed.site.leave.weight.grad[(packed.owner >= 0) & (packed.owner != self.task.index)] = 0
        optimizer_step.apply()
        return loss.detach()

    def end_task(self, task: Task) -> None:
        for packed in self.packed:
            weight, free = packed.site.leave.weight, packed.owner < 0
            mine = free & (weight.abs() >= weight[free].abs().quantile(1 - self.keep))
            packed.owner[mine], packed.task = task.index, task.index
            with torch.no_grad():
                weight[free & ~mine] = 0
        again = OptimizerStep(self.Optimizer, self.param_groups(), self.lr, self.clip)
        for batch in self.batches(task):
            self.step(batch, again)
        for packed in self.packed:
            packed.task = None

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        for packed in self.packed:
            packed.task = task
        try:
            return super().predict(inputs)
        finally:
            for packed in self.packed:
                packed.task = None


class NameMatcher(Method):
    """A toy of two towers: a projected image is compared with the names of the classes, 2026,
    https://example.org/two-towers

    Args:
        backbone: an encoder of images and one of texts.
        epochs: passes over each task.
        batch_size: examples per step.
        lr: learning rate of the projection.
        seed: of the projection and the order of examples.

    >>> NameMatcher(two_towers()).projection.weight.shape
    torch.Size([32, 32])
    """

    tags = Tags(family="baseline", trains="head", inputs=("image",), needs=("class names", "two towers"))

    def __init__(
        self, backbone: Backbone, *, epochs: int = 8, batch_size: int = 8, lr: float = 1e-2, seed: int = 0
    ) -> None:  # fmt: skip
        super().__init__(backbone, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        with seeded(seed):
            self.projection = nn.Linear(backbone.width, backbone.width)
        self.head = nn.Identity()

    def begin_task(self, task: Task) -> None:
        self.task = task
        self.names = normalize(self.backbone.encode(task.class_names))

    def features(self, inputs: Sequence[Input], role: Role = "query") -> Tensor:
        return self.projection(self.backbone.encode(inputs))

    def scores(self, inputs: Sequence[Input]) -> Tensor:
        return 20 * normalize(self.features(inputs)) @ self.names.T

    def predict(self, inputs: Sequence[Input], task: int | None = None) -> Tensor:
        return 20 * normalize(self.embed(inputs)) @ self.names.T


def two_towers() -> TwoTowers:
    tiny = type(backbones.load("tiny"))
    return TwoTowers(image=tiny(seed=1), text=tiny(seed=2))


class Shelf(Stateful):
    """Embeddings of documents by their content."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(0, dtype=torch.long))
        self.register_buffer("vectors", torch.zeros(0, width))

    def key(self, document: Input) -> int:
        return int.from_bytes(hashlib.blake2b(content(document), digest_size=7).digest(), "little")

    def place(self, document: Input) -> int | None:
        found = (self.keys == self.key(document)).nonzero()
        return int(found[0]) if len(found) else None

    def put(self, documents: Sequence[Input], vectors: Tensor) -> None:
        keys = torch.tensor([self.key(document) for document in documents])
        self.keys, self.vectors = torch.cat([self.keys, keys]), torch.cat([self.vectors, vectors.detach()])


class Indexed(Finetune):
    """A retriever whose index keeps every document as it was embedded when its task was learned."""

    def __init__(self, backbone: Backbone, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        self.index = Shelf(backbone.width)
        self.embedded: list[Input] = []  # documents that a search had to embed

    def end_task(self, task: Task) -> None:
        assert task.corpus is not None
        self.index.put(task.corpus.texts, self.embed(task.corpus.texts, "document"))

    def search(self, queries: Sequence[Input], documents: Sequence[Input], k: int = 10) -> list[list[int]]:
        vectors = torch.empty(len(documents), self.backbone.width)
        for row, document in enumerate(documents):
            place = self.index.place(document)
            if place is None:
                self.embedded.append(document)
            vectors[row] = self.embed([document], "document")[0] if place is None else self.index.vectors[place]
        return nearest(self.embed(queries), vectors, k)


def lines_of(cls: type) -> int:
    """Lines of code of a class, without its docstring and blank lines."""
    source = textwrap.dedent(inspect.getsource(cls))
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    docstring = tree.body[0]
    doc = range(docstring.lineno, (docstring.end_lineno or 0) + 1)
    return sum(bool(line.strip()) for number, line in enumerate(source.splitlines(), 1) if number not in doc)


@pytest.mark.parametrize("cls", [DERpp])
def test_a_subclass_of_er_in_25_lines_holds_the_contract(cls):
    assert lines_of(cls) <= 25
    check_method(cls, memory_size=20, replay_batch_size=8, **SMALL)


def test_der_stores_the_scores_of_its_time():
    stream, method = toy_stream(), DERpp(backbones.load("tiny"), memory_size=100, **SMALL)
    learn(method, stream[0])
    with torch.no_grad():
        answered = method.predict(stream[0].train.inputs)
    learn(method, stream[1])
    held = method.memory.examples()
    rows = [row for row, name in enumerate(held.ids) if name in stream[0].train.ids]
    assert torch.allclose(held.columns["logits"][rows, :2], answered, atol=1e-6) and len(rows) == len(answered)
    assert held.columns["logits"][rows, 2:].isnan().all() and held.columns["logits"].shape[1] == 4


def test_ewc_on_lora_costs_what_lora_costs():
    stream = toy_stream()
    lora, ewc, full = (
        methods.get(name)(
            backbones.load("tiny"), train=train, **({"fisher_examples": 4} if name == "ewc" else {}), **SMALL
        )
        for name, train in (("finetune", "lora"), ("ewc", "lora"), ("ewc", "full"))
    )
    trained = [max(learn(method, task).trainable for task in stream) for method in (lora, ewc, full)]
    assert trained[1] == trained[0] < trained[2] / 10
    sizes = [sum(t.numel() for t in method_state(method).values()) for method in (lora, ewc, full)]
    assert sizes[1] == 3 * sizes[0] and sizes[1] < sizes[2] / 10  # weights, anchor and Fisher of what is trained
    assert all(name.startswith(("deltas.", "head.")) for name in ewc.importance)
    assert all(value.abs().sum() > 0 for name, value in ewc.importance.items() if name.endswith((".b", "weight")))


@pytest.mark.parametrize("train", ["head", "lora", "houlsby", "prefix", "deep_prompt", "ssf", "full"])
@pytest.mark.parametrize(
    "name", ["er", "ewc", "lwf", "joint", "si", "mas", "l2_sp", "feature_distillation", "a_gem", "gem"]
)
def test_every_defence_works_on_whatever_is_trained(name, train):
    stream, small = toy_stream(tasks=2), {**SMALL, "lr": 1e-2 if train != "full" else 1e-3}
    method = methods.get(name)(backbones.load("tiny"), train=train, **small)
    before = method.backbone.digests()
    seen = [learn(method, task) for task in stream]
    assert (method.backbone.digests() == before) == (train != "full")
    with torch.no_grad():
        own = method.predict(stream[1].train.inputs)[:, 2:]  # among its own classes: lwf does not compare the others
        right = (own.argmax(1) + 2 == stream[1].train.labels).double().mean()
    assert right > 0.6 and all(learning.trainable > 0 for learning in seen)


def test_packnet_that_is_told_the_task_forgets_nothing():
    stream = toy_stream(kind="task-incremental")
    check_method(PackNet)
    method = PackNet(backbones.load("tiny"))
    answers = []
    for task in stream:
        learn(method, task)
        with torch.no_grad():
            answers.append(method.predict(task.test.inputs, task.index))
    for task, answered in zip(stream, answers, strict=True):
        with torch.no_grad():
            now = method.predict(task.test.inputs, task.index)
        assert torch.allclose(now[:, : answered.shape[1]], answered, atol=1e-6)
    result = session(PackNet(backbones.load("tiny")), stream).learn()
    assert result.retention == 1.0 and result.gain > 0.8
    with pytest.raises(EverlearnError, match="needs the task's id at test"):
        run(PackNet(backbones.load("tiny")), toy_stream())


def test_two_towers_hold_the_contract_and_have_identities_of_their_own():
    check_method(NameMatcher, backbone=two_towers)
    both = two_towers()
    ids = [tower.identity() for tower in both.encoders()]
    with torch.no_grad():
        next(both.towers["image"].parameters()).add_(1)
    after = [tower.identity() for tower in both.encoders()]
    assert len({*ids, *after}) == 3 and ids[1] == after[1]
    stream = toy_stream("image")
    with pytest.raises(EverlearnError, match="needs a backbone with two encoders"):
        run(NameMatcher(backbones.load("tiny")), stream)
    learned = session(NameMatcher(two_towers()), stream).learn()
    assert learned.accuracy_matrix[0][0] == 1.0


def test_a_method_that_owns_an_index_is_asked_by_search():
    stream = toy_stream(goal="ranking", kind="domain-incremental")
    method = Indexed(backbones.load("tiny"), epochs=2, batch_size=8, lr=1e-3)
    result = session(method, stream).learn()
    assert result.metric == "nDCG@10" and 0 < result.final_accuracy <= 1
    method.embedded.clear()
    old = method.embed(stream[0].corpus.texts, "document")
    found = method.search(stream[0].test.inputs, stream[0].corpus.texts)
    assert not method.embedded and not torch.allclose(method.index.vectors[: len(old)], old)  # kept as they were
    assert found == nearest(method.embed(stream[0].test.inputs), method.index.vectors[: len(old)])


EXACT = [
    ("simplecil", {}), ("lda", {}), ("klda", {"rff": 64, "members": 2}), ("fecam", {}), ("logistic", {}),
    ("knn", {}), ("knn", {"head": "lda"}),
    ("ranpac", {"width": 64, "first_session": False}), ("ranpac", {"width": 0, "first_session": False}),
]  # fmt: skip


def large(seed: int = 0) -> Examples:
    """360 examples of six classes."""
    tasks = toy_stream(per_class=60, seed=seed).tasks
    return Examples.concatenate([task.train for task in tasks])


def taught(name: str, settings: dict[str, Any], examples: Examples, names: Sequence[str]) -> Method:
    """A method that has learned these examples in one task; label k has the k-th of the names."""
    method = methods.get(name)(backbones.load("tiny"), **settings)
    learn(method, Task(0, "all", tuple(range(len(names))), tuple(names), examples={"train": examples}))
    return method


def assert_same(one: Method, other: Method, inputs: Sequence[Input], columns: Sequence[int]) -> None:
    """Equal statistics to 1e-9, and scores up to their own float32."""
    a, b = one.head.state_dict(), other.head.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        if a[name].dtype == torch.float64 and columns == list(range(len(columns))):
            scale = b[name].abs().max().clamp_min(1)
            assert ((a[name] - b[name]).abs().max() / scale) < 1e-9, name
    scores = one.predict(inputs), other.predict(inputs)[:, columns]
    scale = scores[1][scores[1] > torch.finfo(torch.float32).min].abs().max()
    assert torch.allclose(scores[0] / scale, scores[1] / scale, atol=2e-6)


NAMES = [f"class {k}" for k in range(6)]


@pytest.mark.parametrize(("name", "settings"), EXACT)
def test_forgetting_100_examples_is_as_if_they_had_never_been_seen(name, settings):
    data = large()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(3))
    gone, kept = data[order[:100]], data[order[100:]]
    method = taught(name, settings, data, NAMES)
    method.forget(gone)
    assert_same(method, taught(name, settings, kept, NAMES), data.inputs, list(range(6)))
    with pytest.raises(EverlearnError):
        method.forget(Examples(["never seen"] * 300, torch.zeros(300, dtype=torch.long), list(map(str, range(300)))))


@pytest.mark.parametrize(("name", "settings"), EXACT)
def test_two_methods_that_met_the_classes_in_opposite_orders_merge_to_the_one_that_saw_both(name, settings):
    data = large()
    even, odd = data[range(0, 360, 2)], data[range(1, 360, 2)]
    backward = replace(odd, labels=5 - odd.labels)
    one, other = taught(name, settings, even, NAMES), taught(name, settings, backward, NAMES[::-1])
    one.merge(other)
    both = taught(name, settings, data, NAMES)
    assert one.task.class_names == tuple(NAMES)
    assert_same(one, both, data.inputs, list(range(6)))
    other.merge(taught(name, settings, even, NAMES))
    assert other.task.class_names == tuple(NAMES[::-1])
    assert_same(other, both, data.inputs, [5 - k for k in range(6)])


def test_what_cannot_be_exact_is_refused():
    stream = toy_stream()
    for name, settings in (("er", {}), ("ranpac", {"width": 64, "epochs": 1}), ("aper", {"epochs": 1})):
        method = methods.get(name)(backbones.load("tiny"), **settings)
        learn(method, stream[0])
        for act in (lambda m: m.forget(stream[0].train), lambda m: m.merge(m)):
            with pytest.raises(EverlearnError, match="cannot be undone exactly"):
                act(method)
    one, other = (taught("fecam", {"power": power}, large(), NAMES) for power in (1.0, 0.5))
    with pytest.raises(EverlearnError, match="different methods, settings or backbones"):
        one.merge(other)


def test_listeners_hear_every_step_of_the_engine():
    heard: list[str] = []

    class Ear(Listener):
        def begun(self, learning: Learning) -> None:
            heard.append("begun")

        def stepped(self, learning: Learning) -> None:
            heard.append(f"{learning.step}/{learning.steps}")
            assert torch.isfinite(learning.loss)

        def fitted(self, learning: Learning) -> None:
            heard.append("fitted")

        def ended(self, learning: Learning) -> None:
            heard.append("ended")

    learn(Finetune(backbones.load("tiny"), epochs=1, batch_size=16), toy_stream()[0], Ear())
    assert heard == ["begun", "1/2", "2/2", "fitted", "ended"]
