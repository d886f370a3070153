"""Heads grow by appending, remember exactly and load into a fresh module."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.errors import ContractError, EverlearnError
from everlearn.heads.cosine import Cosine
from everlearn.heads.linear import Linear
from everlearn.heads.mahalanobis import Mahalanobis
from everlearn.heads.prototype import Prototype
from everlearn.heads.ridge import Ridge
from everlearn.heads.zero_shot import ZeroShot

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


HEADS = [Linear, Cosine, Prototype, Ridge, ZeroShot]


@pytest.mark.parametrize("kind", HEADS)
def test_grows_to_a_number_of_classes_and_never_shrinks(kind):
    head = kind(5)
    for classes, expected in ((2, 2), (2, 2), (6, 6), (3, 6)):
        head.grow(classes)
        assert head.classes == expected
        assert head(torch.randn(4, 5)).shape == (4, expected)
        assert torch.isfinite(head(torch.randn(4, 5))).all()


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize("trained", [True, False])
def test_old_rows_stay_bit_for_bit(kind, trained):
    head = kind(5).to(torch.float64)
    head.grow(3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter).requires_grad_(trained)
    old = {name: value.clone() for name, value in head.state_dict().items()}
    head.grow(8)
    for name, parameter in head.named_parameters():
        assert parameter.requires_grad == trained and parameter.dtype == torch.float64
        kept = parameter[:3] if parameter.dim() else parameter
        assert torch.equal(kept, old[name])
    assert float(head.weight[3:].detach().abs().min()) > 0
    assert len(head.weight[3:].unique(dim=0)) == 5


def test_linear_without_bias_and_its_scores():
    head = Linear(2, bias=False)
    head.grow(1)
    assert head.bias is None and [name for name, _ in head.named_parameters()] == ["weight"]
    x = torch.randn(3, 2)
    assert torch.allclose(head(x), x @ head.weight.T)


def test_cosine_ignores_lengths_and_trains_its_scale():
    head = Cosine(3, scale=4.0)
    head.grow(2)
    x = torch.randn(5, 3)
    assert torch.allclose(head(x), head(7 * x), atol=1e-6)
    assert torch.allclose(head(head.weight.detach()).diagonal(), torch.tensor([4.0, 4.0]))
    head(x).sum().backward()
    assert head.scale.grad != 0


def test_prototype_is_the_nearest_class_mean():
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    head = Prototype(4)
    head.grow(4)
    head.add(x, y)
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    expected = torch.nn.functional.cosine_similarity(x[:, None], means[None], dim=2)
    assert torch.allclose(head(x)[:, :3], expected, atol=1e-6)
    assert (head(x)[:, 3] == -1).all()


def test_prototype_order_split_merge_and_removal_are_exact():
    x, y = torch.randn(300, 4), torch.randint(5, (300,))
    whole, parts, other, more = (Prototype(4) for _ in range(4))
    whole.grow(5)
    whole.add(x, y)
    parts.grow(5)
    other.grow(5)
    for rows in torch.randperm(200).split(7):
        parts.add(x[rows], y[rows])
    other.add(x[200:], y[200:])
    parts.merge(other)
    assert torch.equal(parts.counts, whole.counts)
    assert torch.allclose(parts.sums, whole.sums, rtol=1e-13, atol=1e-13)
    parts.remove(x[200:], y[200:])
    more.grow(5)
    more.add(x[:200], y[:200])
    assert torch.allclose(parts.sums, more.sums, rtol=1e-12, atol=1e-12)
    more.merge(whole)  # into fewer classes works as well
    empty = Prototype(4)
    empty.merge(whole)
    assert torch.equal(empty.sums, whole.sums)


def test_prototype_refuses_unknown_labels_and_impossible_removals():
    head = Prototype(2)
    head.grow(["tea", "sofa"])
    with pytest.raises(ContractError, match="call grow"):
        head.add(torch.ones(1, 2), torch.tensor([2]))
    with pytest.raises(ContractError, match="label 2 in a head of 2 classes: it was never added; nothing was removed"):
        head.remove(torch.ones(1, 2), torch.tensor([2]))
    with pytest.raises(ContractError, match=r"the class 'tea' would be left with fewer than 0 examples.*nothing was"):
        head.remove(torch.ones(1, 2), torch.tensor([0]))
    assert float(head.sums.abs().sum()) == 0


@pytest.mark.parametrize("kind", [Prototype, Ridge])
def test_statistics_load_into_a_fresh_head_that_has_not_grown(kind, tmp_path):
    head, x, y = kind(4), torch.randn(30, 4), torch.arange(30) % 3
    head.grow(3)
    head.add(x, y)
    if kind is Ridge:
        head.solve()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    fresh = kind(4)
    fresh.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(fresh(x), head(x))


def test_parameters_keep_strict_shapes():
    grown = Linear(4)
    grown.grow(3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        Linear(4).load_state_dict(grown.state_dict())


def test_zero_shot_is_the_cosine_to_the_names():
    head, names, x = ZeroShot(4), torch.randn(3, 4), torch.randn(5, 4)
    head.grow(3)
    head.set(names)
    expected = torch.nn.functional.cosine_similarity(x[:, None], names[None], dim=2)
    assert torch.allclose(head(x), expected, atol=1e-6)
    head.grow(4)
    assert torch.allclose(head(x)[:, :3], expected, atol=1e-6) and (head(x)[:, 3] == 0).all()


@pytest.mark.parametrize("kind", HEADS)
def test_copies_are_independent(kind):
    head = kind(4)
    head.grow(2)
    twin = copy.deepcopy(head)
    with torch.no_grad():
        for value in twin.state_dict().values():
            value.add_(1)
    twin.grow(3)
    assert head.classes == 2
    assert all(
        not torch.equal(a, b)
        for a, b in zip(head.state_dict().values(), twin.state_dict().values(), strict=True)
        if a.numel()
    )


def test_a_covariance_that_cannot_be_inverted_is_one_line():
    head = Mahalanobis(8, gamma1=1.0, gamma2=1.0)
    head.grow(1)
    head.add(torch.ones(3, 8), torch.zeros(3, dtype=torch.long))
    head.moments[0] += torch.full((8, 8), 3.0, dtype=torch.float64)  # every pair of features is fully correlated
    with pytest.raises(EverlearnError, match="the covariance of class 0 cannot be inverted: give a larger gamma1"):
        head.solve()


def test_the_correlations_of_a_few_classes_at_once_are_factored(monkeypatch):
    monkeypatch.setattr("everlearn.heads.mahalanobis.AT_ONCE", 2)
    head, asked = Mahalanobis(6, gamma2=0.3), []
    head.grow(5)
    head.add(torch.randn(40, 6), torch.arange(40) % 5)
    expected = torch.linalg.cholesky(head.correlations()).float()
    whole = head.correlations
    monkeypatch.setattr(head, "correlations", lambda some: asked.append(some) or whole(some))
    assert torch.equal(head.solve(), expected) and len(asked) == 3
    head.gamma1 = head.gamma2 = 1.0
    head.sums[3], head.moments[3] = 0.0, 1.0  # every pair of features is fully correlated
    with pytest.raises(EverlearnError, match="the covariance of class 3 cannot be inverted"):
        head.solve()
    assert torch.equal(head.factors, expected)
