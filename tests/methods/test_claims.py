"""What the papers claim and the contract cannot know, method by method."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from everlearn import backbones, engine, methods
from everlearn.backbones.tiny import TinyBackbone
from everlearn.batches import Batches
from everlearn.features import FeatureStore, using_store
from everlearn.fisher import diagonal_fisher
from everlearn.method import Method
from everlearn.optimizer_step import OptimizerStep
from everlearn.seeds import seeded
from everlearn.streams.stream import Examples, Stream
from everlearn.testing import session, tiny_pair, toy_stream


def learn(name: str, stream: Stream, **settings) -> Method:
    method = methods.get(name)(backbones.load("tiny"), **settings)
    session(method, stream).learn()
    return method


def regrouped(stream: Stream, groups: list[list[int]]) -> Stream:
    """The same examples and labels in other tasks: each group joins tasks of the stream."""
    tasks = []
    for index, group in enumerate(groups):
        parts = {
            part: Examples.concatenate([stream[t].examples[part] for t in group]) for part in ("train", "test")
        }  # fmt: skip
        classes = tuple(k for t in group for k in stream[t].classes)
        names = stream.class_names[: max(max(stream[t].classes) for g in groups[: index + 1] for t in g) + 1]
        tasks.append(replace(stream[0], index=index, classes=classes, class_names=names, examples=parts))
    return replace(stream, tasks=tuple(tasks))


@pytest.mark.parametrize(("name", "settings"), [("simplecil", {}), ("ranpac", {"width": 80, "first_session": False})])
def test_order_and_number_of_tasks_do_not_matter(name: str, settings: dict) -> None:
    stream = toy_stream(tasks=4)
    everything = Examples.concatenate([task.test for task in stream])
    expected = learn(name, stream, **settings).predict(everything.inputs)
    for groups in ([[0, 1, 2, 3]], [[0, 1], [2, 3]], [[3], [0], [2], [1]]):
        found = learn(name, regrouped(stream, groups), **settings).predict(everything.inputs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "settings"), [("ranpac", {"width": 200, "first_session": False}), ("logistic", {}),
                                                ("knn", {})])  # fmt: skip
def test_what_an_encoder_of_bfloat16_gives_alone_is_forgotten_too(tmp_path, name: str, settings: dict) -> None:
    backbone, stream = TinyBackbone(width=384), toy_stream(tasks=1, per_class=40)
    backbone.precision = "bfloat16"
    longer = [text + " more" * (row % 20) for row, text in enumerate(stream[0].train.inputs)]
    train = replace(stream[0].train, inputs=longer)
    method = methods.get(name)(backbone, **settings)
    task = replace(stream[0], examples={**stream[0].examples, "train": train})
    session(method, replace(stream, tasks=(task,))).learn()
    with using_store(FeatureStore(tmp_path / "another")):
        for row in range(0, 60, 4):
            method.forget(train[[row]])
    assert int(method.head.counts.sum()) == 65


@pytest.mark.parametrize(("name", "settings"), [("simplecil", {}), ("lda", {}), ("klda", {"rff": 40, "members": 2}),
                                                ("ranpac", {"width": 40, "first_session": False}), ("logistic", {}),
                                                ("knn", {})])  # fmt: skip
def test_a_model_that_has_learned_nothing_takes_all_that_another_has_learned(name: str, settings: dict) -> None:
    stream = toy_stream(tasks=2)
    learned = learn(name, stream, **settings)
    nothing, neither = (methods.get(name)(backbones.load("tiny"), **settings) for _ in range(2))
    nothing.merge(neither)
    learned.merge(nothing)
    nothing.merge(learned)
    assert nothing.task.class_names == learned.task.class_names == stream.class_names
    inputs = stream[0].test.inputs
    assert torch.equal(nothing.predict(inputs), learned.predict(inputs))


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("name", ["gdumb", "joint", "icarl", "slca", "cofima", "esn", "proof", "prompt_fusion"])
def test_a_task_whose_examples_have_all_been_taken_out_teaches_nothing(name: str, empty: int) -> None:
    cls = methods.get(name)
    whole = toy_stream(cls.tags.inputs[0], per_class=4)
    method = cls(tiny_pair() if "two towers" in cls.tags.needs else backbones.load("tiny"), epochs=1)
    for task in whole.without(whole[empty].train.ids):
        engine.learn(method, task)
    scores = method.predict(whole[2].test.inputs)
    assert scores.shape == (12, 6) and not scores.isnan().any()


SKIPPING = [
    ("task_adapters", {}), ("dual_prompt", {}), ("dap", {}), ("esn", {"length": 2}), ("l2p", {"diversify": "mask"}),
    ("lae", {}), ("cofima", {}), ("aper", {}), ("ranpac", {"width": 40}), ("hat", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), SKIPPING)
def test_tasks_that_are_left_out_do_not_count(name: str, settings: dict) -> None:
    stream = toy_stream(tasks=4, per_class=4)
    some, first = (methods.get(name)(backbones.load("tiny"), epochs=1, **settings) for _ in range(2))
    for number, task in enumerate((stream[1], stream[3])):
        assert engine.learn(some, task).task.index == number
        engine.learn(first, replace(task, index=number))
        assert torch.equal(some.predict(task.test.inputs), first.predict(task.test.inputs))


def test_the_copy_that_aper_trains_in_full_has_no_dropout() -> None:
    method = methods.get("aper")(backbones.load("tiny"), train="full")
    assert method.adapted is not method.backbone and not method.train().adapted.training and method.training


def test_simplecil_is_the_nearest_class_mean() -> None:
    stream = toy_stream()
    method = learn("simplecil", stream)
    train = Examples.concatenate([task.train for task in stream])
    features = method.backbone.encode(train.inputs).double()
    means = torch.stack([features[train.labels == k].mean(0) for k in range(6)])
    test = stream[1].test
    queries = method.backbone.encode(test.inputs).double()
    expected = torch.nn.functional.cosine_similarity(queries[:, None], means[None], dim=2)
    torch.testing.assert_close(method.predict(test.inputs).double(), expected, rtol=1e-5, atol=1e-5)


def test_ranpac_is_ridge_regression_in_float64() -> None:
    stream = toy_stream()
    method = learn("ranpac", stream, width=80, first_session=False)
    train = Examples.concatenate([task.train for task in stream])
    h = torch.relu(method.backbone.encode(train.inputs).double() @ method.head.projection.double())
    y = torch.nn.functional.one_hot(train.labels).double()
    ridge = h.T @ h + method.head.lambda_ * torch.eye(80, dtype=torch.float64)
    expected = torch.linalg.solve(ridge, h.T @ y)
    found = method.head.solve()
    assert (found - expected).norm() / expected.norm() < 1e-9


def test_ranpac_trains_adapters_on_the_first_task_only() -> None:
    stream = toy_stream()
    method = methods.get("ranpac")(backbones.load("tiny"), width=64, epochs=2)
    before = method.deltas[0].up.weight.clone()
    one = replace(stream, tasks=stream.tasks[:1])
    session(method, one).learn()
    after_first = method.deltas[0].up.weight.clone()
    assert not torch.equal(before, after_first)
    learned = learn("ranpac", stream, width=64, epochs=2)
    assert torch.equal(learned.deltas[0].up.weight, after_first)
    assert not learned.deltas[0].up.weight.requires_grad


def test_l2p_gradient_reaches_the_selected_prompts_keys_and_the_head_only() -> None:
    stream = toy_stream()
    method = methods.get("l2p")(backbones.load("tiny"), pool_size=8, selected=2, length=2)
    method.begin_task(stream[0].sealed())
    batch = stream[0].train[[0]]
    chosen = set(method.choose(method.backbone.encode(batch.inputs)).flatten().tolist())
    method.loss(batch).backward()
    for parameter in (method.prompts, method.keys):
        reached = {row for row in range(8) if parameter.grad[row].abs().sum() > 0}
        assert reached == chosen
    assert method.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.backbone.parameters())


def test_l2p_selects_the_most_similar_keys_and_the_pull_brings_them_nearer() -> None:
    stream = toy_stream()
    method = methods.get("l2p")(backbones.load("tiny"), pool_size=6, selected=2, pull=5.0)
    with torch.no_grad():
        method.keys[3] = method.backbone.encode(stream[0].train.inputs[:1])[0]
    queries = method.backbone.encode(stream[0].train.inputs)

    def similarity() -> torch.Tensor:
        """Of each query and the keys chosen for it."""
        return method.cosines(queries).gather(1, method.choose(queries))

    assert method.choose(queries)[0, 0] == 3
    torch.testing.assert_close(similarity()[0, 0].item(), 1.0, rtol=1e-5, atol=1e-5)
    before = similarity().mean().item()
    torch.testing.assert_close(method.pull(queries, method.choose(queries)), 5.0 * (1 - similarity()).sum(1))
    session(method, replace(stream, tasks=stream.tasks[:1])).learn()
    assert similarity().mean().item() > before


def test_l2p_encodes_each_example_once_for_its_query(tmp_path) -> None:
    stream = toy_stream()
    with using_store(FeatureStore(tmp_path / "own")) as store:
        learn("l2p", stream, epochs=3)
    texts = {text for task in stream for part in (task.train, task.test) for text in part.inputs}
    assert store.encoded == len(texts)


def test_ewc_fisher_is_the_closed_form_of_a_softmax() -> None:
    """Of the bias of a linear softmax the Fisher information is E[p (1 - p)], for any features."""
    stream = toy_stream()
    method = methods.get("ewc")(backbones.load("tiny"))
    method.begin_task(stream[0].sealed())
    train = Examples.concatenate([stream[0].train] * 40)
    with seeded(0):
        found = diagonal_fisher(method, train, most=10**6)["head.bias"]
    with torch.no_grad():
        p = method.head(method.backbone(stream[0].train.inputs)).softmax(1)
    torch.testing.assert_close(found, (p * (1 - p)).mean(0), rtol=0.05, atol=0.01)


def test_ewc_penalty_is_quadratic_around_the_last_task() -> None:
    stream = toy_stream()
    method = learn("ewc", replace(stream, tasks=stream.tasks[:1]), fisher_examples=4, strength=2.0, epochs=2)
    method.begin_task(stream[1].sealed())
    batch = stream[0].train

    def loss() -> float:
        still = OptimizerStep(torch.optim.SGD, [{"params": list(method.trained().values())}], lr=0.0, clip=None)
        return method.step(batch, still).item()

    at_anchor = loss()
    plain = torch.nn.functional.cross_entropy(method.head(method.backbone(batch.inputs)), batch.labels).item()
    assert at_anchor == pytest.approx(plain, abs=1e-6)
    with torch.no_grad():
        method.head.bias.add_(0.5)
    expected = 0.5 * 2.0 * 0.25 * method.importance["head.bias"].sum().item()
    moved = torch.nn.functional.cross_entropy(method.head(method.backbone(batch.inputs)), batch.labels).item()
    assert loss() - moved == pytest.approx(expected, rel=1e-4)


def test_lwf_distils_nothing_while_the_model_is_unchanged() -> None:
    stream = toy_stream()
    method = learn("lwf", replace(stream, tasks=stream.tasks[:1]), epochs=2)
    method.begin_task(stream[1].sealed())
    batch, own = stream[1].train, list(stream[1].classes)
    place = torch.tensor([own.index(label) for label in batch.labels.tolist()])

    def among_the_task() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(method.head(method.backbone(batch.inputs))[:, own], place)

    plain = among_the_task()
    torch.testing.assert_close(method.loss(batch), plain, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        method.head.bias[0] += 1.0
    assert method.loss(batch) > among_the_task() + 1e-3


def test_er_draws_from_old_tasks_and_joint_keeps_everything() -> None:
    stream = toy_stream()
    er = learn("er", stream, memory_size=30, epochs=1)
    assert len(er.memory) == 30
    assert set(er.memory.examples().labels.tolist()) == set(range(6))
    joint = learn("joint", stream, epochs=1)
    assert sorted(joint.memory.examples().ids) == sorted(i for task in stream for i in task.train.ids)


def test_joint_starts_each_task_from_the_pre_trained_weights() -> None:
    stream = toy_stream()
    method = learn("joint", stream, epochs=1, lr=0.01)
    origin = backbones.load("tiny").state_dict()
    assert not torch.equal(method.backbone.embedding.weight, origin["embedding.weight"])
    method.begin_task(stream[2].sealed())
    assert all(torch.equal(tensor, origin[name]) for name, tensor in method.backbone.state_dict().items())


def test_frozen_reads_class_names() -> None:
    stream = toy_stream()
    names = ("ship", "bread")
    task = replace(stream[0], class_names=names)
    method = methods.get("frozen")(backbones.load("tiny"))
    method.begin_task(task.sealed())
    batch = Examples(["bread", "ship"], torch.tensor([1, 0]), ["a", "b"])
    assert method.predict(batch.inputs).argmax(1).tolist() == [1, 0]


def test_a_method_with_deltas_copies_whole() -> None:
    method = methods.get("lora")(backbones.load("tiny"))
    twin = copy.deepcopy(method)
    with torch.no_grad():
        for delta in twin.deltas:
            delta.b.add_(1.0)
    texts = ["one two", "three"]
    assert not torch.allclose(twin.backbone(texts), method.backbone(texts))
    assert torch.equal(method.backbone(texts), backbones.load("tiny")(texts))


@pytest.mark.parametrize(
    ("name", "settings", "other", "other_settings"),
    [
        ("lora", {}, "finetune", {"train": "lora"}),
        ("lora", {}, "lora", {"train": "lora(size=8, scale=2.0)"}),
        ("vpt", {}, "finetune", {"train": "deep_prompt", "lr": 1e-2}),
        ("vpt", {"train": "prompt"}, "vpt", {"train": "prompt(length=5)"}),
        ("sequential", {}, "finetune", {"train": "houlsby"}),
        ("ranpac", {"width": 40}, "ranpac", {"width": 40, "train": "relu(sites=('mlp',), size=64, scale=0.1)"}),
        ("aper", {}, "aper", {"train": "adaptformer(size=64)"}),
    ],
)
def test_two_names_of_one_thing_learn_the_same(name, settings, other, other_settings) -> None:
    stream = toy_stream(tasks=2)
    one = learn(name, stream, epochs=2, **settings).state_dict()
    two = learn(other, stream, epochs=2, **other_settings).state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["finetune", "er", "ewc", "lwf", "joint", "slca"])
def test_what_is_trained_is_a_setting(name) -> None:
    stream = toy_stream(tasks=2)
    moved = {}
    for train in ("full", "head", "lora"):
        method = learn(name, stream, epochs=1, train=train)
        origin = backbones.load("tiny").state_dict()
        held = method.backbone.state_dict()
        moved[train] = {key for key in origin if not torch.equal(held[key], origin[key])}
        assert len(method.deltas) == (4 if train == "lora" else 0)
        assert all(delta.b.abs().sum() > 0 for delta in method.deltas)
        assert method.head.bias.abs().sum() > 0
    assert not moved["head"] and not moved["lora"] and len(moved["full"]) > 10


def test_batches_are_a_function_of_seed_and_position() -> None:
    data = Examples([str(i) for i in range(10)], torch.arange(10), [str(i) for i in range(10)])
    first, second = Batches(data, 3, 4, seed=5), Batches(data, 3, 4, seed=5)
    assert second[7].ids == first[7].ids
    assert [b.ids for b in first] == [b.ids for b in second]
    for epoch in range(3):
        assert sorted(i for b in list(first)[3 * epoch : 3 * epoch + 3] for i in b.ids) == sorted(data.ids)


def test_batches_by_length_are_every_example_once_and_pad_little() -> None:
    lengths = torch.randint(1, 60, (205,), generator=torch.Generator().manual_seed(0)).tolist()
    data = Examples([f"{i}" for i in range(205)], torch.arange(205), [str(i) for i in range(205)])

    def padded(batches: Batches) -> int:
        return sum(max(lengths[int(x)] for x in batch.inputs) * len(batch) for batch in batches)

    plain, sorted_ = Batches(data, 2, 16, seed=3), Batches(data, 2, 16, seed=3, lengths=lengths)
    for epoch in range(2):
        seen = [int(x) for k in range(13 * epoch, 13 * epoch + 13) for x in sorted_[k].inputs]
        assert sorted(seen) == list(range(205)) and seen != sorted(seen)
    assert [len(batch) for batch in sorted_] == [len(batch) for batch in plain]
    assert padded(sorted_) < 1.25 * 2 * sum(lengths) < padded(plain)
    assert list(sorted_[20].ids) == list(Batches(data, 2, 16, seed=3, lengths=lengths)[20].ids)
    firsts = [lengths[int(sorted_[k].inputs[0])] for k in range(12)]
    assert firsts != sorted(firsts)  # the batches of a window come in random order
