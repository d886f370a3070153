"""The Gaussian head is shrinkage LDA however the data arrive, and its random map approximates the kernel."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from everlearn.errors import ContractError, EverlearnError
from everlearn.heads import gaussian, gaussians
from everlearn.heads.gaussian import LEAST, Gaussian, shrink

WIDTH, CLASSES = 8, 5


@pytest.fixture(autouse=True)
def same_numbers_every_time(monkeypatch):
    torch.manual_seed(0)
    for module in (gaussian, gaussians):  # far fewer than the data, so that blocks are crossed
        monkeypatch.setattr(module, "ROWS", 37)


def data(n=300, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    stretch = torch.linspace(0.1, 2, WIDTH)
    return centres[labels] + stretch * torch.randn(n, WIDTH, generator=draw), labels


def learned(features, labels, parts=1, **options):
    head = Gaussian(WIDTH, **options)
    head.grow(CLASSES)
    for x, y in zip(features.chunk(parts), labels.chunk(parts), strict=True):
        head.add(x, y)
    head.solve()
    return head


def near(a, b, tolerance=1e-9):
    return float((a - b).norm() / b.norm()) < tolerance


def agree(a, b):
    assert near(a.weight, b.weight) and near(a.offset, b.offset)


@pytest.mark.parametrize("shrinkage", [0.01, 0.4, 1.0])
def test_equals_linear_discriminant_analysis_of_scikit_learn(shrinkage):
    x, y = data()
    head = learned(x, y, shrinkage=shrinkage)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x.double().numpy(), y.numpy())
    # Theirs divides the scatter by n where the unbiased one divides by n - classes, and adds log priors.
    ratio = (len(x) - CLASSES) / len(x)
    priors = torch.from_numpy(theirs.priors_).log()
    assert near(head.weight.T, ratio * torch.from_numpy(theirs.coef_))
    assert near(head.offset, ratio * (torch.from_numpy(theirs.intercept_) - priors))
    expected = ratio * (torch.from_numpy(theirs.decision_function(x.double().numpy())) - priors)
    torch.testing.assert_close(head(x), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [12, 40, 300])
def test_oas_equals_that_of_scikit_learn_on_the_same_scatter(n):
    x, y = data(n)
    onehot = torch.eye(CLASSES, dtype=torch.float64)[y][:, torch.bincount(y, minlength=CLASSES) > 0]
    within = torch.linalg.qr(onehot, mode="complete").Q[:, onehot.shape[1] :]  # orthogonal to every class mean
    rows = within.T @ x.double()  # n - classes rows of the same scatter, whose mean is known to be 0
    expected, strength = oas(rows.numpy(), assume_centered=True)
    head = learned(x, y)
    assert 0 < strength <= 1
    found = shrink(head.covariances()[0], int(head.freedom), "oas")
    assert near(found, torch.from_numpy(expected))
    assert near(head.weight, torch.linalg.solve(torch.from_numpy(expected), head.means.T))


@pytest.mark.parametrize("rff", [0, 60])
@pytest.mark.parametrize("parts", [2, 30])
def test_order_and_split_do_not_matter(rff, parts):
    x, y = data()
    order = torch.randperm(len(x))
    agree(learned(x[order], y[order], parts, rff=rff), learned(x, y, rff=rff))


@pytest.mark.parametrize("rff", [0, 60])
def test_merge_equals_seeing_both_and_remove_never_having_seen(rff):
    x, y = data()
    head, second, both = (learned(x[r], y[r], rff=rff) for r in (slice(100), slice(100, None), slice(None)))
    head.merge(second)
    head.solve()
    agree(head, both)
    head.remove(x[:100], y[:100])
    head.solve()
    agree(head, second)


def test_merge_refuses_another_map():
    for other in ({"seed": 1}, {"gamma": 0.2}, {"rff": 30}):
        with pytest.raises(EverlearnError, match="cannot merge gaussian heads of different kinds, widths"):
            Gaussian(WIDTH, **{"rff": 20, **other}).merge(Gaussian(WIDTH, rff=20))


@pytest.mark.parametrize("gamma", [0.1, 1.0, 4.0])
def test_the_random_map_approximates_the_kernel(gamma):
    x, _ = data(60)
    errors = {}
    for rff in (200, 20000):
        h = Gaussian(WIDTH, rff=rff, gamma=gamma).expand(x.double())
        unit = torch.nn.functional.normalize(x.double(), dim=1)
        errors[rff] = (h @ h.T - torch.exp(-gamma * torch.cdist(unit, unit).square())).abs()
    assert errors[20000].max() < 0.05  # five deviations of a mean of 20,000 cosines
    assert errors[20000].mean() < 0.3 * errors[200].mean()  # it falls as one over the root


def test_the_map_reads_the_direction_alone():
    x, _ = data(10)
    head = Gaussian(WIDTH, rff=50)
    torch.testing.assert_close(head.expand(x), head.expand(7 * x))


def test_a_class_without_examples_scores_least_and_one_example_a_class_is_the_nearest_mean():
    head = Gaussian(2)
    head.grow(3)
    head.add(torch.tensor([[0.0, 1.0], [4.0, 0.0]]), torch.tensor([0, 2]))
    head.solve()
    scores = head(torch.tensor([[1.0, 1.0], [4.0, 4.0]]))
    assert scores.argmax(1).tolist() == [0, 2] and (scores[:, 1] == LEAST).all()
    assert head(torch.zeros(2, 2)).softmax(1).isfinite().all()
    head.grow(4)
    assert torch.equal(head(torch.tensor([[1.0, 1.0], [4.0, 4.0]]))[:, :3], scores)


def test_bad_settings_and_bad_input_are_refused():
    x, y = data(20)
    for shrinkage in (0, -1, 1.5, "ledoit"):
        with pytest.raises(EverlearnError, match="shrinkage"):
            Gaussian(WIDTH, shrinkage=shrinkage)
    with pytest.raises(EverlearnError, match="gamma"):
        Gaussian(WIDTH, gamma=0)
    head = learned(x, y)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(EverlearnError, match="not finite"):
        head.add(x * torch.nan, y)
    with pytest.raises(ContractError, match="call grow"):
        head.add(x, y + CLASSES)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_checkpoint_into_a_fresh_head(tmp_path):
    x, y = data()
    head = learned(x, y, rff=40)
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    fresh = Gaussian(WIDTH, rff=40)
    fresh.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(fresh(x), head(x))
    for each in (head, fresh):
        each.add(*data(50, seed=3))
    assert torch.equal(fresh.solve(), head.solve())
    assert "frequencies" not in head.state_dict() and "phases" not in head.state_dict()
    with pytest.raises(EverlearnError, match="same settings and seed"):
        Gaussian(WIDTH, rff=40, gamma=0.3).load_state_dict(head.state_dict())


def test_copies_are_independent_and_predictions_do_not_depend_on_the_batch():
    x, y = data()
    head = learned(x, y, rff=40)
    twin, scores = copy.deepcopy(head), head(x)
    twin.add(x, y.flip(0))
    twin.solve()
    assert torch.equal(head(x), scores) and not torch.allclose(twin(x), scores)
    assert torch.allclose(torch.cat([head(row[None]) for row in x]), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rff", [0, 40])
def test_a_head_that_has_forgotten_all_is_as_new(rff):
    x, y = data()
    head = learned(x, y, rff=rff)
    for part in (slice(100), slice(100, None)):
        head.remove(x[part], y[part])
        head.solve()
    assert head.counts.sum() == 0 and not head.sums.any() and not head.moments.any()
    assert (head(x) == LEAST).all()


def test_the_sums_of_a_class_that_is_forgotten_are_zero():
    x, y = data()
    x = x.double() / 3  # whose sums are not exact
    head = learned(x, y)
    head.remove(x[y == 1], y[y == 1])
    assert not head.sums[1].any() and head.sums[0].any() and head.moments.any()
