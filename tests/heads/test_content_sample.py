"""The content sample is uniform and the same for every order; Ridge's tests cover merge and removal."""

import copy

import numpy as np
import pytest
import torch

from everlearn.errors import EverlearnError
from everlearn.heads.content_sample import ContentSample

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def test_any_order_and_split_keep_the_same_rows():
    rows, labels = torch.randn(200, 6), torch.arange(200)
    whole = ContentSample(6, 30)
    whole.add(rows, labels)
    assert len(whole) == 30 and torch.equal(whole.keys, whole.keys_of(rows).sort().values[:30])
    parts = ContentSample(6, 30)
    for part in torch.randperm(200).split(17):
        parts.add(rows[part], labels[part])
    assert torch.equal(parts.labels, whole.labels) and torch.equal(parts.features, whole.features)


def test_keys_are_uniform_independent_and_differ_with_the_seed():
    rows = torch.randn(4000, 6)
    keys = [ContentSample(6, 1, seed).keys_of(rows, which) for seed in (0, 1) for which in (0, 1)]
    for key in keys:
        assert float(key.min()) >= 0 and float(key.max()) < 1
        counts = torch.histc(key, 20, 0, 1)
        assert ((counts - 200) ** 2 / 200).sum() < 43.8  # 19 degrees of freedom, once in a thousand
    correlation = np.corrcoef(torch.stack(keys).numpy()) - np.eye(4)
    assert abs(correlation).max() < 0.07


def test_a_capacity_of_zero_keeps_nothing():
    sample = ContentSample(6, 0)
    sample.add(torch.randn(5, 6), torch.arange(5))
    assert len(sample) == 0 and sample.stored_bytes() == 8


def test_removal_needs_the_right_label_and_keeps_the_rest():
    rows, labels = torch.randn(20, 6), torch.arange(20)
    sample = ContentSample(6, 100)
    sample.add(rows, labels)
    with pytest.raises(EverlearnError, match="never added"):
        sample.remove(rows[:2], torch.tensor([0, 2]))
    assert len(sample) == 20
    sample.remove(rows[:2], labels[:2])
    assert sorted(sample.labels.tolist()) == list(range(2, 20))


def test_loads_into_a_fresh_sample_and_copies_are_independent():
    rows, labels = torch.randn(50, 6), torch.arange(50)
    sample, fresh = ContentSample(6, 10), ContentSample(6, 10)
    sample.add(rows, labels)
    fresh.load_state_dict(sample.state_dict())
    twin = copy.deepcopy(sample)
    for each in (sample, fresh):
        each.add(rows + 1, labels)
    assert torch.equal(fresh.features, sample.features) and torch.equal(fresh.limit, sample.limit)
    assert float(twin.limit) > float(sample.limit)
