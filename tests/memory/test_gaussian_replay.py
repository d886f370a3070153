"""GaussianReplay keeps the mean and the covariance of each class, however its examples arrive, in few bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from everlearn.errors import EverlearnError
from everlearn.memory.gaussian_replay import GaussianReplay

WIDTH = 12


def data(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Features of classes that differ in mean and covariance, far from zero, and their labels."""
    draw = torch.Generator().manual_seed(0)
    parts = [50 + k + torch.randn(n, WIDTH, generator=draw) @ torch.randn(WIDTH, WIDTH, generator=draw)
             for k, n in enumerate(sizes)]  # fmt: skip
    return torch.cat(parts), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def filled(features: Tensor, labels: Tensor, parts: int = 1, classes: int = 4) -> GaussianReplay:
    memory = GaussianReplay(WIDTH)
    memory.grow(classes)
    for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).tensor_split(parts):
        memory.add(features[rows], labels[rows])
    return memory


@pytest.mark.parametrize("parts", [1, 2, 7, 58])
def test_mean_and_covariance_are_those_of_all_examples(parts: int) -> None:
    features, labels = data((40, 13, 4, 1))  # more examples than the width, one more, fewer, one
    memory = filled(features, labels, parts)
    assert memory.counts.tolist() == [40, 13, 4, 1]
    for k in range(4):
        rows = features[labels == k].double()
        torch.testing.assert_close(memory.means[k].double(), rows.mean(0), rtol=1e-6, atol=1e-6)
        expected = torch.cov(rows.T) if len(rows) > 1 else torch.zeros(WIDTH, WIDTH).double()
        scale = max(float(expected.diagonal().mean()), 1.0)
        torch.testing.assert_close(memory.covariances()[k].double(), expected, rtol=0, atol=1e-5 * scale)


def test_it_takes_the_bytes_of_its_examples_and_never_more_than_those_of_the_covariance() -> None:
    memory = filled(*data((40, 13, 4, 1)))
    assert memory.sizes.tolist() == [12, 12, 4, 1]
    assert memory.stored_bytes() == 4 * WIDTH * (12 + 12 + 4 + 1 + 4) + 16 * 4


def test_a_class_without_examples_is_not_drawn_and_may_come_later() -> None:
    features, labels = data((5, 5))
    memory = filled(features, labels + labels, classes=3)  # classes 0 and 2
    ((drawn, of),) = memory.drawn(6, times=1)
    assert drawn.shape == (12, WIDTH) and of.tolist() == 6 * [0] + 6 * [2]
    memory.add(features[:5], torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(memory.covariances()[1], memory.covariances()[0], rtol=1e-4, atol=1e-4)


def test_draws_have_the_covariance_beyond_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everlearn.memory.gaussian_replay.BLOCK", 5)
    memory = filled(*data((40, 13, 4, 1)))
    torch.manual_seed(0)
    ((features, labels),) = memory.drawn(20000, times=1)
    for k in range(3):
        covariance = memory.covariances()[k] + 1e-4 * torch.eye(WIDTH)
        deviation = covariance.diagonal().sqrt()
        error = (torch.cov(features[labels == k].T) - covariance) / torch.outer(deviation, deviation)
        assert error.abs().max() < 8 / 20000**0.5
    assert features[labels == 3].std(0).mean().item() == pytest.approx(0.01, rel=0.05)  # the jitter alone


def test_a_feature_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    memory = filled(*data((5, 5)))
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    with pytest.raises(EverlearnError, match="a feature is not finite"):
        memory.add(torch.full((2, WIDTH), float("nan")), torch.tensor([0, 1]))
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())


def test_a_saved_one_is_loaded_and_a_damaged_one_refused() -> None:
    memory, fresh = filled(*data((40, 13, 4, 1))), GaussianReplay(WIDTH)
    fresh.grow(4)
    saved = memory.state_dict()
    fresh.check_saved(saved)
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.covariances(), memory.covariances())
    for name, damaged in {"sizes": saved["sizes"] + 1, "rows": saved["rows"][1:], "means": saved["means"][1:],
                          "counts": saved["counts"][1:]}.items():  # fmt: skip
        with pytest.raises(EverlearnError, match="checkpoint"):
            fresh.check_saved({**saved, name: damaged})
    with pytest.raises(EverlearnError, match="do not fit their sizes"):
        fresh.check_saved({**saved, "sizes": torch.tensor([30, -1, 0, 0])})
