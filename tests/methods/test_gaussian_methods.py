"""What LDA, KLDA, FeCAM and SLCA claim and the contract cannot know."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from everlearn import backbones, methods
from everlearn.checkpoint import load_method_state, method_state
from everlearn.engine import Learning, feature_norm
from everlearn.method import Method
from everlearn.seeds import seeded
from everlearn.streams.stream import Examples, Stream
from everlearn.testing import session, toy_stream


def learn(name: str, stream: Stream, **settings) -> Method:
    method = methods.get(name)(backbones.load("tiny"), **settings)
    session(method, stream).learn()
    return method


def everything(stream: Stream, part: str) -> Examples:
    return Examples.concatenate([task.examples[part] for task in stream])


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lda", {}), ("klda", {"rff": 50, "members": 2}), ("fecam", {"power": 0.5, "gamma2": 1.0})],
)
def test_number_and_order_of_tasks_do_not_matter(name: str, settings: dict) -> None:
    stream = toy_stream(tasks=3)
    expected = learn(name, stream, **settings).predict(everything(stream, "test").inputs)
    parts = {part: everything(stream, part) for part in ("train", "test")}
    shuffled = {part: data[torch.randperm(len(data))] for part, data in parts.items()}
    joined = replace(stream[2], index=0, classes=tuple(range(6)), examples=shuffled)
    found = learn(name, replace(stream, tasks=(joined,)), **settings).predict(everything(stream, "test").inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_lda_is_that_of_scikit_learn() -> None:
    stream = toy_stream()
    method = learn("lda", stream, shrinkage=0.2)
    train, test = everything(stream, "train"), everything(stream, "test")
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2)
    theirs.fit(method.embed(train.inputs).double().numpy(), train.labels.numpy())
    expected = theirs.decision_function(method.embed(test.inputs).double().numpy())
    # Theirs divides the scatter by n, ours by n - classes; the classes are of one size, so priors are one constant.
    ratio = (len(train) - 6) / len(train)
    expected = ratio * (torch.from_numpy(expected) - torch.tensor(1 / 6).log())
    torch.testing.assert_close(method.predict(test.inputs), expected.float(), rtol=1e-4, atol=1e-4)


def test_klda_averages_the_probabilities_of_different_maps() -> None:
    stream = toy_stream()
    method = learn("klda", stream, rff=40, members=3)
    test = everything(stream, "test")
    features = method.embed(test.inputs)
    each = [head(features).softmax(1) for head in method.head]
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(method.predict(test.inputs).softmax(1), sum(each) / 3)  # a second softmax would be flat
    torch.testing.assert_close(method.predict(test.inputs).exp().sum(1), torch.ones(len(test)))


def test_klda_resumes_without_saving_its_maps() -> None:
    stream = toy_stream()
    first = replace(stream, tasks=stream.tasks[:2])
    method = learn("klda", first, rff=40, members=2)
    saved = method_state(method)
    assert not [name for name in saved if "frequencies" in name or "phases" in name]
    fresh = methods.get("klda")(backbones.load("tiny"), rff=40, members=2)
    for task in first:
        fresh.begin_task(task.sealed())
    load_method_state(fresh, saved)
    for each in (method, fresh):
        each.begin_task(stream[2].sealed())
        each.end_task(stream[2])
    test = everything(stream, "test")
    assert torch.equal(fresh.predict(test.inputs), method.predict(test.inputs))


@pytest.mark.parametrize(("power", "gamma1", "gamma2"), [(1.0, 1.0, 0.0), (0.5, 1.0, 1.0), (0.7, 10.0, 2.0)])
def test_fecam_equals_the_paper_class_by_class(power: float, gamma1: float, gamma2: float) -> None:
    stream = toy_stream()
    method = learn("fecam", stream, power=power, gamma1=gamma1, gamma2=gamma2)

    def tukey(inputs):
        unit = torch.nn.functional.normalize(method.embed(inputs).double(), dim=1)
        return torch.where(unit < 0, -((-unit).clamp(0) ** power), unit.clamp(0) ** power)

    train, test = everything(stream, "train"), everything(stream, "test")
    x, queries = tukey(train.inputs), tukey(test.inputs)
    assert (x < 0).any()
    expected = torch.zeros(len(test), 6, dtype=torch.float64)
    for k in range(6):
        covariance = torch.cov(x[train.labels == k].T)
        d = len(covariance)
        v1 = covariance.trace() / d
        v2 = (covariance.sum() - covariance.trace()) / (d * d - d)
        for i in range(d):
            for j in range(d):
                covariance[i, j] += gamma1 * v1 if i == j else gamma2 * v2
        deviation = covariance.diagonal().sqrt()
        precision = torch.linalg.inv(covariance / torch.outer(deviation, deviation))
        for row, query in enumerate(queries):
            difference = query - x[train.labels == k].mean(0)
            expected[row, k] = -difference @ precision @ difference
    torch.testing.assert_close(method.predict(test.inputs).double(), expected, rtol=1e-4, atol=1e-6)


def test_fecam_of_one_example_a_class_is_the_nearest_mean() -> None:
    stream = toy_stream()
    few = tuple(replace(t, examples={**t.examples, "train": t.train[[0, len(t.train) - 1]]}) for t in stream)
    method = learn("fecam", replace(stream, tasks=few))
    test = everything(stream, "test")
    means = torch.nn.functional.normalize(method.embed(everything(replace(stream, tasks=few), "train").inputs), dim=1)
    queries = torch.nn.functional.normalize(method.embed(test.inputs), dim=1)
    torch.testing.assert_close(method.predict(test.inputs), -torch.cdist(queries, means).square(), rtol=1e-4, atol=1e-5)


def test_slca_moves_the_backbone_by_its_rate_and_the_head_by_its_own_for_features_of_norm_1() -> None:
    stream = toy_stream()
    settings = {"lr": 0.01, "head_lr": 2.0, "epochs": 1, "batch_size": 999, "alignment_epochs": 0}
    method = methods.get("slca")(backbones.load("tiny"), **settings)
    method.begin_task(stream[0].sealed())
    norm = feature_norm(method, stream[0].train.inputs)
    assert norm < 0.9 or norm > 1.1  # it counts
    trained = {id(p) for p in method.parameters()}
    assert {id(p) for group in method.param_groups() for p in group["params"]} == trained
    # One step of gradient descent moves a weight by its rate times its gradient.
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    twin = copy.deepcopy(method)
    twin.loss(stream[0].train).backward()
    learning = {name: value for name, value in twin.named_parameters() if value.grad is not None}  # not the image part
    shrunk = {"backbone": 5e-4, "head": 0.0}
    gradients = {name: value.grad + shrunk[name.split(".")[0]] * value.detach() for name, value in learning.items()}
    Learning(method, stream[0].for_learning()).fit(None, [])
    for part, rate in (("backbone", 0.01), ("head", 2.0 / norm**2)):
        names = [name for name in gradients if name.startswith(part) and gradients[name].norm() > 1e-3]
        assert names
        for name in names:
            moved = (dict(method.named_parameters())[name].detach() - before[name]).norm()
            assert moved / gradients[name].norm() == pytest.approx(rate, rel=0.05)


def test_slca_trains_on_the_classes_of_the_task_alone() -> None:
    stream = toy_stream()
    method = learn("slca", replace(stream, tasks=stream.tasks[:1]), epochs=1)
    method.begin_task(stream[1].sealed())
    method.loss(stream[1].train).backward()
    assert not method.head.weight.grad[:2].any() and method.head.weight.grad[2:].abs().sum() > 0


def test_slca_alignment_moves_the_head_and_nothing_else() -> None:
    stream = toy_stream()
    method = learn("slca", replace(stream, tasks=stream.tasks[:1]), epochs=1)
    method.begin_task(stream[1].sealed())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.zero_grad()
    method.end_task(stream[1])
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in moved if not name.startswith("memory.")} == {"head.weight", "head.bias"}
    assert all(p.grad is None for p in method.backbone.parameters())


def test_slca_draws_features_with_the_moments_it_keeps(monkeypatch) -> None:
    stream = toy_stream()
    method = learn("slca", stream, epochs=1, samples=20000, alignment_epochs=0)
    method.alignment_epochs = 1
    seen, drawn = [], method.memory.drawn

    def kept(*args, **settings):
        for part in drawn(*args, **settings):
            seen.append(tuple(tensor.clone() for tensor in part))
            yield part

    monkeypatch.setattr(method.memory, "drawn", kept)
    with seeded(0):
        method.align()
    ((features, labels),) = seen
    assert torch.bincount(labels).tolist() == [20000] * 6
    for k in range(6):
        rows = features[labels == k].double()
        decay = 0.9 + 0.1 * (k // 2 + 1) / 3
        mean = decay * method.memory.means[k]
        covariance = method.memory.covariances()[k] + 1e-4 * torch.eye(rows.shape[1])
        deviation = covariance.diagonal().sqrt()
        assert ((rows.mean(0) - mean) / deviation).abs().max() < 5 / 20000**0.5
        error = (torch.cov(rows.T) - covariance) / torch.outer(deviation, deviation)
        assert error.abs().max() < 8 / 20000**0.5
    # The decay is felt: without it the means of the oldest classes would lie outside the same bounds.
    rows, mean = features[labels == 0].double(), method.memory.means[0]
    deviation = method.memory.covariances()[0].diagonal().sqrt()
    assert ((rows.mean(0) - mean) / deviation).abs().max() > 5 / 20000**0.5


def test_slca_alignment_loss_normalises_scores_task_by_task() -> None:
    stream = toy_stream()
    method = learn("slca", stream, epochs=1)
    features, labels = torch.randn(9, method.backbone.width), torch.arange(9) % 6
    scores = method.head(features)
    norm = sum(scores[:, first : first + 2].norm(dim=1) for first in (0, 2, 4)) / 3
    expected = torch.nn.functional.cross_entropy(scores / norm[:, None] / 0.1, labels)
    tasks = torch.eye(3).repeat_interleave(2, dim=0)
    torch.testing.assert_close(method.alignment_loss(features, labels, tasks), expected)
    with torch.no_grad():
        method.head.weight.mul_(5)
        method.head.bias.mul_(5)
    torch.testing.assert_close(method.alignment_loss(features, labels, tasks), expected)


def test_slca_alignment_makes_tasks_learned_apart_comparable() -> None:
    """The head of each task alone is right within the task; aligned it is right among all classes."""
    stream = toy_stream(tasks=4)
    settings = {"epochs": 8, "batch_size": 8, "lr": 0.005, "head_lr": 8.0}
    accuracy = {}
    for alignment in (0, 5):
        method = learn("slca", stream, alignment_epochs=alignment, **settings)
        test = everything(stream, "test")
        with torch.no_grad():
            accuracy[alignment] = (method.predict(test.inputs).argmax(1) == test.labels).double().mean().item()
    assert accuracy[5] > accuracy[0] + 0.05
