"""The vote of neighbours: its formula, its mixture with a head, and what is removed leaves no bit behind."""

import copy

import pytest
import torch
from torch.nn.functional import normalize, one_hot

from everlearn.errors import EverlearnError
from everlearn.heads.knn import KNN, PARAMETRIC, TEMPERATURES, vote
from everlearn.heads.logistic import Logistic

NAMES = ["ant", "bee", "cat", "dog", "emu"]


def blobs(n=400, noise=1.0, seed=0, width=12):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 5
    centres = torch.randn(5, width, generator=torch.Generator().manual_seed(7))
    return centres[labels] + noise * torch.randn(n, width, generator=draw), labels


def learned(x, y, names=NAMES, **settings):
    head = KNN(x.shape[1], **settings)
    head.grow(names)
    head.add(x, y)
    head.solve()
    return head


def test_the_vote_is_the_formula_of_the_paper():
    (x, y), (asked, _) = blobs(), blobs(20, seed=5)
    head = learned(x, y, interpolation=1.0, neighbours=7, temperature=0.3)
    rows, query = normalize(x.double(), dim=1).half().double(), normalize(asked.double(), dim=1)
    distance = 2 - 2 * query @ rows.T
    expected = torch.zeros(20, 5, dtype=torch.float64)
    for number, row in enumerate(distance):
        for place in row.argsort()[:7].tolist():
            expected[number, y[place]] += torch.exp(-row[place] / 0.3)
    expected /= expected.sum(1, keepdim=True)
    assert 0 < (expected == 0).float().mean() < 1  # some classes have no neighbour
    torch.testing.assert_close(head(asked).double().exp(), expected, rtol=1e-4, atol=1e-5)
    assert head(asked).isfinite().all() and head(asked)[expected == 0].max() < -87


@pytest.mark.parametrize("kind", PARAMETRIC)
def test_scores_are_the_mixture_of_the_vote_and_the_head(kind):
    (x, y), (asked, _) = blobs(), blobs(20, seed=5)
    by_head, mixed, by_vote = (
        learned(x, y, parametric=kind, interpolation=share, neighbours=5, temperature=0.2) for share in (0.0, 0.3, 1.0)
    )
    expected = 0.7 * by_head(asked).exp() + 0.3 * by_vote(asked).exp()
    torch.testing.assert_close(mixed(asked).exp(), expected, rtol=1e-4, atol=1e-6)
    if kind == "logistic":  # λ = 0 is logistic regression at another temperature
        plain = Logistic(12)
        plain.grow(NAMES)
        plain.add(x, y)
        plain.solve()
        assert torch.equal(by_head(asked).argmax(1), plain(asked).argmax(1))


@pytest.mark.parametrize("kind", PARAMETRIC)
def test_what_was_removed_or_merged_differs_in_no_bit(kind):
    (x, y), (asked, _) = blobs(), blobs(50, seed=5)
    never = learned(x[60:], y[60:], parametric=kind)
    head = learned(x.flip(0), y.flip(0), parametric=kind)
    assert not torch.equal(head(asked), never(asked))
    head.remove(x[:60], y[:60])
    head.solve()
    assert torch.equal(head(asked), never(asked))

    other = learned(x[:60], 4 - y[:60], NAMES[::-1], parametric=kind)
    head.merge(other)
    head.solve()
    assert torch.equal(head(asked), learned(x, y, parametric=kind)(asked))
    other.merge(never)
    other.solve()
    assert torch.equal(other.weight.flip(1), head.weight) and torch.equal(other.chosen, head.chosen)
    torch.testing.assert_close(other(asked).flip(1), head(asked))  # a softmax adds up the classes in their order


def test_rows_that_tie_all_vote_and_their_order_is_not_felt():
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [-1.0, 0.0]])
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 3, 4, 1]):
        labels = torch.tensor([0, 1, 1, 2, 3])[order]
        head = learned(rows[order], labels, interpolation=1.0, neighbours=2, temperature=1.0)
        found = head(torch.tensor([[1.0, 0.0]])).exp()[0]
        torch.testing.assert_close(found[1], 2 * found[2])
        assert found[0] > found[1] > 0 and found[3] < 1e-30


def test_what_is_auto_has_the_least_held_out_loss_of_all_that_could_be_chosen():
    x, y = blobs(noise=1.5)
    head = learned(x, y)
    held, rows, labels = 80, head.sample.features.float(), head.sample.labels

    def loss(**settings):
        other = learned(rows[held:], labels[held:], **settings)  # the same rows, without those held out
        return float(-other(rows[:held]).exp().mul(one_hot(labels[:held], 5)).sum(1).clamp_min(1e-6).log().mean())

    share, k, temperature = head.chosen.tolist()
    chosen = loss(interpolation=share, neighbours=int(k), temperature=temperature)
    assert chosen < loss(interpolation=1.0, neighbours=1, temperature=1.0)
    assert chosen < loss(interpolation=1.0, neighbours=int(k), temperature=temperature)
    fixed = learned(x, y, interpolation=0.2, neighbours=3)
    assert fixed.chosen[:2].tolist() == pytest.approx([0.2, 3])


@pytest.mark.parametrize("k", [300, 3])
def test_the_temperature_is_chosen_for_as_many_neighbours_as_are_asked_for(k):
    x, y = blobs(2000, noise=4.0)
    head = learned(x, y, interpolation=1.0, neighbours=k)
    held, rows, labels = 400, head.sample.features.float(), head.sample.labels

    def loss(temperature):
        votes = vote(rows[:held] @ rows[held:].T, labels[held:], 5, k, temperature)
        return float(-votes.mul(one_hot(labels[:held], 5)).sum(1).clamp_min(1e-6).log().mean())

    assert float(head.chosen[2]) == min(TEMPERATURES, key=loss)


def test_neighbours_win_where_no_line_separates_and_the_head_where_the_data_are_noisy():
    draw = torch.Generator().manual_seed(0)
    angle = torch.rand(600, generator=draw) * 2 * torch.pi
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    sectors = (angle / (2 * torch.pi) * 8).long() % 2  # eight sectors of two classes in turn
    assert learned(circle, sectors).chosen[0] >= 0.9
    assert learned(*blobs(noise=3.0)).chosen[0] <= 0.5


@pytest.mark.parametrize("n", [0, 1, 4])
def test_few_rows_or_none(n):
    x, y = blobs(n)
    scores = learned(x, y)(blobs(3, seed=2)[0])
    assert scores.shape == (3, 5) and scores.isfinite().all()
    if n:
        assert (scores.argmax(1) < n).all()


def test_a_wrong_removal_changes_nothing():
    x, y = blobs()
    head = learned(x, y)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(EverlearnError, match="never added"):
        head.remove(x[:1] + 5, y[:1])
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


def test_settings_that_are_none():
    for wrong in ({"interpolation": 1.1}, {"neighbours": 0}, {"temperature": 0.0}, {"temperature": "warm"}):
        with pytest.raises(EverlearnError, match=f"knn: {next(iter(wrong))} is 'auto' or from"):
            KNN(4, **wrong)
    with pytest.raises(EverlearnError, match="unknown parametric head 'lad': did you mean 'lda'"):
        KNN(4, parametric="lad")
    assert vote(torch.zeros(2, 0), torch.zeros(0, dtype=torch.long), 3, 5, 1.0).tolist() == [[0.0] * 3] * 2
