"""Logistic regression on kept rows: at the optimum, the same for every order, and bounded."""

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from everlearn.errors import EverlearnError
from everlearn.heads.logistic import STRENGTHS, Logistic, best_strength, fit, held_out_error


def blobs(n=400, classes=5, width=12, noise=1.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    return centres[labels] + noise * torch.randn(n, width, generator=draw), labels


def learned(features, labels, classes=5, **settings):
    head = Logistic(features.shape[1], **settings)
    head.grow(classes)
    head.add(features, labels)
    head.solve()
    return head


def test_the_gradient_is_zero_at_the_solution():
    x, y = blobs()
    head = learned(x, y, strength=3.0)
    rows = normalize(x, dim=1).half().double()
    error = (rows @ head.weight.double() + head.offset.double()).softmax(1) - one_hot(y).double()
    gradient = 3.0 * rows.T @ error + head.weight.double()
    assert gradient.abs().max() / len(x) < 2e-4 and error.sum(0).abs().max() / len(x) < 2e-4
    assert (3.0 * rows.T @ error).abs().max() / len(x) > 1e-3  # the penalty is felt


def test_order_and_number_of_tasks_change_no_bit():
    x, y = blobs()
    at_once, in_parts = learned(x, y), Logistic(12)
    for start in range(0, 400, 100):
        in_parts.grow(5)
        rows = slice(400 - start - 100, 400 - start)
        in_parts.add(x[rows].flip(0), y[rows].flip(0))
        in_parts.solve()
    assert torch.equal(at_once.weight, in_parts.weight) and torch.equal(at_once.offset, in_parts.offset)


def test_the_strength_that_is_chosen_has_nearly_the_least_held_out_loss():
    x, y = blobs()
    x = normalize(x, dim=1)
    losses = {C: held_out_error(x[:80], y[:80], fit(x[80:], y[80:], C)) for C in STRENGTHS}
    assert losses[best_strength(x, y)] < 1.02 * min(losses.values()) < max(losses.values())


def test_noisy_data_get_a_smaller_strength_than_clean_data():
    heads = [learned(*blobs(noise=noise), strength="auto") for noise in (0.3, 4.0)]
    chosen = [float(head.chosen) for head in heads]
    assert chosen[0] > chosen[1]


def test_the_minimum_is_that_of_scikit_learn_on_the_rows_as_they_are():
    from sklearn.linear_model import LogisticRegression

    x, y = blobs()
    x = normalize(x, dim=1)
    theirs = LogisticRegression(C=3.0, max_iter=1000, tol=1e-6).fit(x.numpy(), y.numpy())
    weight, offset, _ = fit(x, y, 3.0, tolerance=1e-6)
    torch.testing.assert_close(weight, torch.from_numpy(theirs.coef_).float().T, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(offset, torch.from_numpy(theirs.intercept_).float(), rtol=1e-2, atol=1e-2)


def test_no_more_rows_are_kept_than_asked_and_the_head_still_knows_every_class():
    x, y = blobs(n=4000)
    head, all_rows = learned(x, y, rows=500), learned(x, y)
    assert len(head.sample) == 500 and len(all_rows.sample) == 4000
    assert head.stored_bytes() < all_rows.stored_bytes() / 6
    assert all_rows.sample.features.dtype == torch.float16
    asked, truth = blobs(n=1000, seed=5)
    right = [float((model(asked).argmax(1) == truth).float().mean()) for model in (head, all_rows)]
    assert right[1] > 0.7 and right[1] - right[0] < 0.05


def test_a_class_without_a_row_never_wins_and_the_other_scores_are_those_without_it():
    x, y = blobs(classes=3)
    head, without = learned(x, y, classes=5), learned(x, y, classes=3)
    scores = head(x)
    assert scores.isfinite().all() and scores.softmax(1)[:, 3:].max() == 0
    torch.testing.assert_close(scores[:, :3], without(x))


@pytest.mark.parametrize("classes", [1, 2])
def test_one_or_two_classes(classes):
    x, y = blobs(classes=classes)
    head = learned(x, y, classes=classes, strength=10.0)
    assert (head(x).argmax(1) == y).float().mean() > 0.9 and head(x).shape == (400, classes)
    if classes == 2:  # the softmax of the two scores is scikit-learn's own probability
        from sklearn.linear_model import LogisticRegression

        rows = head.sample.features.float()
        # It penalises the difference of the two rows, and so with this C twice as much as the two.
        model = LogisticRegression(C=20.0, max_iter=1000, tol=1e-7).fit(rows.numpy(), head.sample.labels.numpy())
        theirs = torch.from_numpy(model.predict_proba(normalize(x, dim=1).numpy())).float()
        torch.testing.assert_close(head(x).softmax(1), theirs, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_that_is_documented_has_its_minimum_there(classes):
    x, y = blobs(classes=classes, noise=3.0)
    x = normalize(x, dim=1).double()
    weight, offset, _ = fit(x.float(), y, 3.0, tolerance=1e-7)

    def objective(weight, offset):
        losses = torch.nn.functional.cross_entropy(x @ weight + offset, y, reduction="sum")
        return 3.0 * losses + weight.square().sum() / 2

    found = [tensor.double().requires_grad_() for tensor in (torch.zeros_like(weight), torch.zeros_like(offset))]
    search = torch.optim.LBFGS(found, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def again():
        search.zero_grad()
        loss = objective(*found)
        loss.backward()
        return loss

    search.step(again)
    torch.testing.assert_close(weight.double(), found[0].detach(), rtol=0, atol=1e-2)
    assert objective(weight.double(), offset.double()) - objective(*found) < 1e-2


def test_what_is_removed_was_never_there():
    x, y = blobs()
    head, without = learned(x, y), learned(x[50:], y[50:])
    head.remove(x[:50], y[:50])
    head.solve()
    assert torch.equal(head.weight, without.weight)
    before = head.sample.features.clone()
    with pytest.raises(EverlearnError, match="never added"):
        head.remove(x[:1] + 5, y[:1])
    assert torch.equal(head.sample.features, before) and torch.equal(head.counts, without.counts)


@pytest.mark.parametrize("strength", [0, -1.0, float("inf"), "much"])
def test_a_strength_that_is_none(strength):
    with pytest.raises(EverlearnError, match="strength is 'auto' or above 0"):
        Logistic(4, strength=strength)
