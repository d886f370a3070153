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


@pytest.mark.parametrize("capacity", [500, 10000])
def test_every_row_that_is_kept_can_leave(capacity):
    rows, labels = torch.randn(3000, 6), torch.arange(3000)
    sample = ContentSample(6, capacity)
    sample.add(rows, labels)
    assert len(sample) == min(capacity, 3000)
    sample.remove(rows, labels)
    assert len(sample) == 0


def test_the_smallest_are_what_a_smaller_sample_would_keep():
    rows, labels = torch.randn(300, 6), torch.arange(300)
    large, small = ContentSample(6, 80), ContentSample(6, 50)
    for sample in (large, small):
        sample.add(rows, labels)
    features, found = large.smallest(50)
    assert torch.equal(features, small.features) and torch.equal(found, small.labels)
    assert len(large.smallest(80)[1]) == len(large.smallest(1000)[1]) == 80
    large.remove(features[:20], found[:20])
    without = ContentSample(6, 50)
    rest = ~torch.isin(labels, found[:20])
    without.add(rows[rest], labels[rest])
    assert torch.equal(large.smallest(50)[1], without.labels)


def test_a_merge_gives_labels_their_places():
    rows, labels = torch.randn(40, 6), torch.arange(40) % 4
    one, other, both = (ContentSample(6, 25) for _ in range(3))
    places = torch.tensor([2, 0, 3, 1])
    one.add(rows[:20], labels[:20])
    other.add(rows[20:], places.argsort()[labels[20:]])
    both.add(rows, labels)
    one.merge(other, places)
    assert torch.equal(one.keys, both.keys) and torch.equal(one.labels, both.labels)


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
