"""Losses against closed forms, other definitions and finite differences."""

import math

import pytest
import torch
from torch.nn import functional

from everlearn.losses import cross_entropy, distillation, multiple_negatives_ranking

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def test_cross_entropy_over_some_classes_equals_that_of_their_columns():
    scores, labels = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.tensor([1, 3, 4, 1, 3, 4])
    losses = cross_entropy(scores, labels, classes=(1, 3, 4))
    columns = torch.tensor([1, 3, 4])
    expected = functional.cross_entropy(scores[:, columns], torch.searchsorted(columns, labels), reduction="none")
    torch.testing.assert_close(losses, expected)
    losses.mean().backward()
    assert torch.isfinite(scores.grad).all()
    assert (scores.grad[:, [0, 2]] == 0).all() and (scores.grad[:, columns] != 0).all()


def test_cross_entropy_over_all_classes_is_the_usual_one():
    scores, labels = torch.randn(6, 5), torch.randint(5, (6,))
    expected = functional.cross_entropy(scores, labels, reduction="none")
    assert torch.equal(cross_entropy(scores, labels), expected)
    assert torch.equal(cross_entropy(scores, labels, range(5)), expected)
    assert torch.equal(cross_entropy(scores, labels).mean(), functional.cross_entropy(scores, labels))
    assert (cross_entropy(scores, torch.zeros(6, dtype=torch.long), classes=[1]) == math.inf).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_has_the_gradient_of_softened_cross_entropy(temperature):
    """LwF writes cross-entropy to the teacher's softened outputs; KL differs by a constant."""
    scores, teacher = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(distillation(scores, teacher, temperature).mean(), scores)
    soft = (teacher / temperature).softmax(1)
    expected = temperature * ((scores[:, :3] / temperature).softmax(1) - soft) / 4
    assert torch.allclose(gradient[:, :3], expected) and (gradient[:, 3:] == 0).all()


def test_distillation_is_zero_at_agreement_and_never_trains_the_teacher():
    scores = torch.randn(4, 6, requires_grad=True)
    teacher = scores.detach().clone().requires_grad_()
    losses = distillation(scores, teacher)
    losses.mean().backward()
    assert losses.shape == (4,) and losses.abs().max() < 1e-6 and teacher.grad is None
    assert (distillation(scores, -teacher) > 0.1).all()


def test_ranking_loss_equals_its_definition():
    q, d = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    cosines = functional.cosine_similarity(q[:, None], d[None], dim=2)
    expected = torch.stack([(20 * cosines[i]).logsumexp(0) - 20 * cosines[i, i] for i in range(3)])
    torch.testing.assert_close(multiple_negatives_ranking(q, d), expected)
    torch.testing.assert_close(multiple_negatives_ranking(q, d, ["a", "b", "c", "d", "e"]), expected)


def test_a_copy_of_the_positive_is_no_negative():
    q, d = torch.randn(3, 8, dtype=torch.float64, requires_grad=True), torch.randn(5, 8, dtype=torch.float64)
    d[1], d[4] = d[0], d[2]  # queries 0 and 1 share a document, and a hard negative is the document of 2
    masked = multiple_negatives_ranking(q, d, ["a", "a", "c", "d", "c"])
    cosines = 20 * functional.cosine_similarity(q[:, None], d[None], dim=2)
    left = [[0, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3]]
    expected = torch.stack([cosines[i, rows].logsumexp(0) - cosines[i, i] for i, rows in enumerate(left)])
    torch.testing.assert_close(masked, expected)
    masked.mean().backward()
    assert torch.isfinite(q.grad).all()


def test_documents_of_an_equal_query_are_no_negatives():
    q, d = torch.randn(3, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    masked = multiple_negatives_ranking(q, d, ["a", "b", "c", "d"], asked=["tea", "sofa", "tea"])
    cosines = 20 * functional.cosine_similarity(q[:, None], d[None], dim=2)
    left = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3]]
    expected = torch.stack([cosines[i, rows].logsumexp(0) - cosines[i, i] for i, rows in enumerate(left)])
    torch.testing.assert_close(masked, expected)


def test_losses_agree_with_finite_differences():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 2, 2])
    documents = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    for loss, point in (
        (lambda s: cross_entropy(s, labels, [0, 2]), scores),
        (lambda s: distillation(s, teacher), scores),
        (lambda q: multiple_negatives_ranking(q, documents.detach(), "aabc"), scores),
        (lambda d: multiple_negatives_ranking(scores.detach(), d, "aabc"), documents),
    ):
        steps = 1e-6 * torch.eye(point.numel(), dtype=torch.float64).view(-1, *point.shape)
        with torch.no_grad():
            slopes = torch.stack([(loss(point + step) - loss(point - step)) / 2e-6 for step in steps], dim=1)
        for each, slope in zip(loss(point), slopes, strict=True):  # of the loss of each example
            (gradient,) = torch.autograd.grad(each, point, retain_graph=True)
            assert torch.allclose(gradient.flatten(), slope, atol=1e-7)
