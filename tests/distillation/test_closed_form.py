"""The closed forms: gradients against finite differences, and sets that beat random subsets on data with structure."""

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from everlearn.distillation import closed_form, inner, subsets, texts


def clusters(n=40, classes=3, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 2, width, generator=generator)
    labels = torch.arange(n * classes) % classes
    modes = torch.randint(2, (len(labels),), generator=generator)
    return centres[labels, modes] + 0.5 * torch.randn(len(labels), width, generator=generator), labels


def test_the_gradient_through_the_solution_of_ridge_regression_agrees_with_differences():
    features, labels = clusters()
    real, wanted = normalize(features.double(), dim=1), closed_form.centred(labels, 3)
    for m in (4, 9):  # fewer rows than columns, and more: the two systems
        made, targets = real[:m].clone().requires_grad_(True), wanted[:m].clone().requires_grad_(True)
        assert torch.autograd.gradcheck(
            lambda x, y: closed_form.outer_loss(x, y, real, wanted, 0.1), (made, targets), rtol=1e-4
        )


def test_both_systems_of_ridge_regression_are_the_same():
    rows, targets = torch.randn(5, 5).double(), torch.randn(5, 2).double()
    wide = torch.cat([rows, torch.zeros(5, 3)], 1)  # more columns than rows: solved in the kernel
    assert torch.allclose(closed_form.ridge(wide, targets, 0.3)[:5], closed_form.ridge(rows, targets, 0.3))


def test_distilled_features_lower_the_loss_and_learned_labels_lower_it_further():
    features, labels = clusters()
    real, wanted = normalize(features.double(), dim=1), closed_form.centred(labels, 3)

    def loss(per_class, **settings):
        made, _, targets = closed_form.distil_features(features, labels, 3, per_class, lr=0.02, **settings)
        return float(closed_form.outer_loss(made.double(), targets.double(), real, wanted, 0.1))

    began, distilled, learned = loss(1, steps=1), loss(1, steps=20), loss(1, steps=20, learn_labels=True)
    assert learned < distilled < began
    # As many learned labels as dimensions give the least squared error that a linear map can have.
    best = closed_form.outer_loss(real, closed_form.best_labels(real, real, wanted, 0.1), real, wanted, 0.1)
    exact = torch.linalg.lstsq(real, wanted).solution
    assert float(best) == pytest.approx(float((real @ exact - wanted).square().sum(1).mean()), rel=1e-6)
    assert loss(2, steps=1, learn_labels=True) == pytest.approx(float(best), rel=1e-4)


def test_the_implicit_gradient_of_the_weights_agrees_with_differences():
    features, labels = clusters()
    rows = inner.with_offset(features.double(), normalize(features.double(), dim=1).mean(0))
    targets = one_hot(labels, 3).double()
    own, weights = torch.arange(12), torch.linspace(0.5, 2.0, 12).double()

    def outer(weights):
        solution = inner.solve(rows[own], targets[own], weights, steps=300)
        for _ in range(2):  # steps of Newton: differences ask for more digits than a line search can give
            slope = rows[own].T @ (weights[:, None] * ((rows[own] @ solution).softmax(1) - targets[own]))
            slope += solution / inner.STRENGTH
            solution = solution - inner.adjoint(rows[own], weights, solution, slope, steps=500)
        return solution, float(-(targets * (rows @ solution).log_softmax(1)).sum(1).mean())

    solution, _ = outer(weights)
    gradient = rows.T @ ((rows @ solution).softmax(1) - targets) / len(rows)
    found = inner.by_weight(
        rows[own], targets[own], solution, inner.adjoint(rows[own], weights, solution, gradient, steps=500)
    )
    for place in (0, 5, 11):
        sides = []
        for move in (1e-3, -1e-3):
            moved = weights.clone()
            moved[place] += move
            sides.append(outer(moved)[1])
        assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(float(found[place]), rel=1e-4)


def test_selected_and_weighted_rows_beat_the_mean_of_random_ones():
    features, labels = clusters(n=100)
    rows = inner.with_offset(features, normalize(features, dim=1).mean(0))
    targets = one_hot(labels, 3).float()

    def loss(chosen, weights):
        solution = inner.solve(rows[chosen], targets[chosen], weights)
        return float(-(targets * (rows @ solution).log_softmax(1)).sum(1).mean())

    chosen, weights = texts.select(rows, labels, 3, 3)
    assert labels[chosen].bincount().tolist() == [3, 3, 3] and len(set(chosen.tolist())) == 9
    assert (weights >= 0.0999).all() and (weights <= 10.001).all()
    drawn = [loss(subsets.random_rows(labels, 3, seed), torch.ones(9)) for seed in range(8)]
    assert loss(chosen, weights) < sum(drawn) / len(drawn)
    assert loss(chosen, weights) < 0.95 * loss(subsets.herding(rows, labels, 3), torch.ones(9))
    few = texts.select(rows[:7], labels[:7], 3, 5)[0]  # a class with fewer examples gives all that it has
    assert sorted(few.tolist()) == list(range(7))


def test_subsets_are_of_real_rows_and_herding_keeps_the_mean():
    features, labels = clusters(n=60)
    herded, medoids = subsets.herding(features, labels, 5), subsets.medoids(features, labels, 5)
    for chosen in (herded, medoids, subsets.random_rows(labels, 5, 3)):
        assert labels[chosen].bincount().tolist() == [5, 5, 5] and len(set(chosen.tolist())) == 15
    gaps = [(features[rows][labels[rows] == 0].mean(0) - features[labels == 0].mean(0)).norm()
            for rows in (herded, subsets.random_rows(labels, 5, 0))]  # fmt: skip
    assert gaps[0] < 0.5 * gaps[1]
