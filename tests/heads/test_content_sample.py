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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("capacity", [100, 40])
def test_of_rows_that_a_coarse_encoder_gives_again_the_nearest_leaves(capacity, dtype):
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(60, 16, generator=draw), dim=1)
    rows[1::2] = rows[::2] + 0.02 * torch.randn(30, 16, generator=draw)  # each row has another one near it
    sample = ContentSample(16, capacity, dtype=dtype, rounding=5e-3)
    sample.add(rows, torch.zeros(60, dtype=torch.long))
    kept = [row for row in range(60) if bool((sample.features == rows[row].to(dtype)).all(1).any())]
    assert len(kept) == min(60, capacity)
    again = rows + 3e-3 * (torch.rand(60, 16, generator=draw) - 0.5) * rows.abs().amax(1, keepdim=True)
    sample.remove(again[kept[:10]], torch.zeros(10, dtype=torch.long))
    left = {row for row in kept if bool((sample.features == rows[row].to(dtype)).all(1).any())}
    assert left == {*kept[10:]}


def test_a_row_that_is_further_away_than_the_rounding_was_never_added():
    rows, labels = torch.randn(20, 6), torch.zeros(20, dtype=torch.long)
    exact, coarse = ContentSample(6, 100), ContentSample(6, 100, rounding=5e-3)
    for sample in (exact, coarse):
        sample.add(rows, labels)
    again = rows[:1] * 1.001
    with pytest.raises(EverlearnError, match="never added"):
        exact.remove(again, labels[:1])
    with pytest.raises(EverlearnError, match="never added"):
        coarse.remove(rows[:1] * 1.01, labels[:1])
    coarse.remove(again, labels[:1])
    assert len(exact) == 20 and len(coarse) == 19
