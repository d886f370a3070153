"""Gaussians are the sample moments, however the features arrive, leave, merge or are saved."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.errors import ContractError, EverlearnError
from everlearn.heads.gaussian import Gaussian
from everlearn.heads.gaussians import Gaussians, SharedGaussians
from everlearn.heads.mahalanobis import Mahalanobis

WIDTH, CLASSES = 6, 5


def data(n=200, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))
    return 3 * labels[:, None] + torch.randn(n, WIDTH, generator=draw) @ mixing, labels


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def empty(shared):
    return (SharedGaussians if shared else Gaussians)(WIDTH)


def filled(features, labels, shared, parts=1):
    memory = empty(shared)
    memory.grow(CLASSES)
    for x, y in zip(features.chunk(parts), labels.chunk(parts), strict=True):
        memory.add(x, y)
    return memory


def agree(a, b):
    assert torch.equal(a.counts, b.counts)
    for one, other in ((a.means, b.means), (a.covariances(), b.covariances())):
        assert one.dtype == torch.float64
        assert float((one - other).norm() / other.norm()) < 1e-9


def test_moments_are_those_of_the_samples():
    x, y = data()
    own, shared = filled(x, y, False), filled(x, y, True)
    centred = x.double() - torch.stack([x[y == k].double().mean(0) for k in range(CLASSES)])[y]
    for k in range(CLASSES):
        torch.testing.assert_close(own.means[k], x[y == k].double().mean(0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own.covariances()[k], torch.cov(x[y == k].double().T), rtol=1e-9, atol=1e-9)
    expected = centred.T @ centred / (len(x) - CLASSES)
    torch.testing.assert_close(shared.covariances(), expected[None], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("parts", [2, 10, 200])
def test_order_and_split_do_not_matter(shared, parts):
    x, y = data()
    order = torch.randperm(len(x))
    agree(filled(x[order], y[order], shared, parts), filled(x, y, shared))


@pytest.mark.parametrize("shared", [False, True])
def test_merge_equals_seeing_both_and_remove_never_having_seen(shared):
    x, y = data()
    x = x + 1000  # an offset a thousand times the deviation costs no digits that matter
    first, second, both = filled(x[:70], y[:70], shared), filled(x[70:], y[70:], shared), filled(x, y, shared)
    merged = copy.deepcopy(first)
    merged.merge(second)
    agree(merged, both)
    merged.remove(x[:70], y[:70])
    agree(merged, second)


@pytest.mark.parametrize("shared", [False, True])
def test_classes_that_arrive_later_change_nothing(shared):
    x, y = data()
    memory = empty(shared)
    for classes in (2, 3, CLASSES):
        rows = (y < classes) & (y >= memory.classes)
        memory.grow(classes)
        memory.add(x[rows], y[rows])
    agree(memory, filled(x, y, shared))
    wider = empty(shared)
    wider.merge(memory)
    agree(wider, memory)


@pytest.mark.parametrize("shared", [False, True])
def test_checkpoint_into_a_fresh_memory(shared, tmp_path):
    x, y = data()
    memory = filled(x, y, shared)
    save_file(memory.state_dict(), tmp_path / "memory.safetensors")
    fresh = empty(shared)
    fresh.load_state_dict(load_file(tmp_path / "memory.safetensors"))
    for each in (memory, fresh):
        each.add(*data(50, seed=3))
    assert all(torch.equal(value, memory.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert memory.stored_bytes() == 8 * (CLASSES + CLASSES * WIDTH + (1 if shared else CLASSES) * WIDTH**2)


def test_classes_of_no_and_one_example_have_no_covariance():
    memory = Gaussians(2)
    memory.grow(3)
    memory.add(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    memory.add(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert memory.means.tolist() == [[0, 0], [1, 2], [0, 0]] and not memory.covariances().any()


def test_bad_input_is_refused_and_leaves_nothing_behind():
    x, y = data(20)
    memory = filled(x, y, False)
    before = copy.deepcopy(memory.state_dict())
    with pytest.raises(EverlearnError, match="not finite"):
        memory.add(x * torch.nan, y)
    with pytest.raises(ContractError, match="call grow"):
        memory.add(x, y + CLASSES)
    with pytest.raises(ContractError, match="fewer than 0"):
        memory.remove(torch.cat([x, x]), torch.cat([y, y]))
    with pytest.raises(EverlearnError, match="cannot merge gaussians heads of different kinds"):
        memory.merge(filled(x, y, True))
    assert all(torch.equal(before[name], value) for name, value in memory.state_dict().items())


@pytest.mark.parametrize("head", [lambda: Gaussian(8), lambda: Gaussian(8, shrinkage=1e-6), lambda: Mahalanobis(8)])
def test_classes_of_equal_examples_have_no_covariance_and_are_told_apart(head):
    torch.manual_seed(0)
    head, rows = head(), torch.randn(4, 8)
    head.grow(4)
    for _ in range(7):  # sums of equal features are rounded, and their difference is not exactly zero
        head.add(rows * 0.1, torch.arange(4))
    assert not head.covariances().any()
    head.solve()
    assert head(rows * 0.1).argmax(1).tolist() == [0, 1, 2, 3]
