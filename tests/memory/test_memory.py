"""Memories: uniform inclusion, exact resume, and what a parameter carries as it grows."""

import copy
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.errors import EverlearnError, EverlearnWarning
from everlearn.heads.linear import Linear
from everlearn.memory.memory import Memory
from everlearn.memory.per_parameter import PerParameter
from everlearn.memory.policies import Balanced, Herded
from everlearn.streams.stream import NO_EXAMPLES, Examples

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def texts(start, stop):
    numbers = range(start, stop)
    return Examples(
        [f"text {i} é" for i in numbers], torch.tensor([i % 3 for i in numbers]), [f"id{i}" for i in numbers]
    )


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_every_example_is_equally_likely_to_be_kept(batch):
    total, capacity, trials = 50, 10, 100 if batch == 1 else 600
    kept = np.zeros(total)
    for seed in range(trials):
        memory = Memory(capacity, seed=seed)
        for start in range(0, total, batch):
            memory.add(texts(start, min(total, start + batch)))
        assert len(memory) == capacity and int(memory.seen) == total
        for name in memory.examples().ids:
            kept[int(name[2:])] += 1
    p = capacity / total
    chi_square = ((kept - trials * p) ** 2 / (trials * p * (1 - p))).sum() * (total - 1) / total
    assert chi_square < 85.4  # 49 degrees of freedom: exceeded by chance once in a thousand


def test_samples_are_uniform_distinct_and_differ_from_call_to_call():
    memory = Memory()
    memory.add(texts(0, 20))
    counts = np.zeros(20)
    for _ in range(2000):
        names = memory.sample(5).ids
        assert len(set(names)) == 5
        for name in names:
            counts[int(name[2:])] += 1
    assert ((counts - 500) ** 2 / (500 * 0.75)).sum() * 19 / 20 < 43.8  # 19 degrees of freedom, once in a thousand
    assert sorted(memory.sample(99).ids) == sorted(memory.examples().ids)


def test_no_capacity_keeps_everything_in_order():
    memory = Memory()
    memory.add(texts(0, 5))
    memory.add(texts(5, 12))
    expected = texts(0, 12)
    assert memory.examples().digest() == expected.digest() and list(memory.examples().ids) == list(expected.ids)
    empty = Memory(3)
    empty.add(NO_EXAMPLES)
    assert len(empty.sample(2)) == len(empty.examples()) == 0


@pytest.mark.parametrize("capacity", [6, None])
def test_a_resumed_memory_is_and_draws_the_same(capacity, tmp_path):
    memory = Memory(capacity, seed=5)
    memory.add(texts(0, 20))
    memory.sample(3)
    save_file(memory.state_dict(), tmp_path / "memory.safetensors")
    fresh = Memory(capacity, seed=5)
    fresh.load_state_dict(load_file(tmp_path / "memory.safetensors"))
    for each in (memory, fresh):
        each.add(texts(20, 60))
    assert fresh.examples().digest() == memory.examples().digest()
    assert list(fresh.sample(4).ids) == list(memory.sample(4).ids)
    a, b = memory.state_dict(), fresh.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_images_paths_positives_and_missing_labels_survive_a_checkpoint(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\x00\xff")
    images = Examples([path, b"", b"\x00\x01"], torch.tensor([4, 0, 2]), ["a", "b", "é"])
    pairs = Examples(
        ["query", "", "q"], torch.empty(0, dtype=torch.long), ["1", "2", "3"], positives=["doc", "", "d\n"]
    )
    for examples in (images, pairs, NO_EXAMPLES):
        memory, fresh = Memory(), Memory()
        memory.add(examples)
        fresh.load_state_dict(memory.state_dict())
        back = fresh.examples()
        assert back.digest() == examples.digest() and list(back.ids) == list(examples.ids)
        assert [type(item) for item in back.inputs] == [bytes if examples is images else str] * len(examples)
    path.unlink()
    kept = Memory()
    kept.load_state_dict({name: value for name, value in memory.state_dict().items()})
    assert len(kept) == 0


def test_a_path_is_read_when_it_is_stored(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"first")
    memory = Memory(1)
    memory.add(Examples([path], torch.tensor([0]), ["a"]))
    path.unlink()
    assert memory.examples().inputs == [b"first"]


def test_removal_forgets_by_id_and_makes_room():
    memory = Memory(5, seed=1)
    memory.add(texts(0, 5))
    assert memory.remove(["id1", "id3", "nobody"]) == 2
    assert list(memory.examples().ids) == ["id0", "id2", "id4"]
    memory.add(texts(5, 200))
    assert len(memory) == 5 and "id1" not in memory.examples().ids


def test_copies_are_independent_and_a_checkpoint_leaves_no_second_copy():
    memory = Memory(5)
    memory.add(texts(0, 5))
    twin = copy.deepcopy(memory)
    twin.add(texts(5, 500))
    assert list(memory.examples().ids) == [f"id{i}" for i in range(5)] and int(memory.seen) == 5
    packed = sum(value.nbytes for value in memory.state_dict().values())
    assert memory.stored_bytes() == 5 * (len("text 0 é".encode()) + 8 + len("id0")) <= packed
    assert sum(buffer.numel() for buffer in memory.buffers()) == 2  # the two counters


# -- budgets and policies ----------------------------------------------------------------------
def even(start, stop, classes=3):
    """Examples of 20 bytes each: 8 of text, 4 of id, 8 of label."""
    numbers = range(start, stop)
    return Examples(
        [f"text {i:03}" for i in numbers], torch.tensor([i % classes for i in numbers]), [f"i{i:03}" for i in numbers]
    )


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_within_a_budget_of_bytes_every_example_is_equally_likely_to_be_kept(batch):
    total, room, trials = 50, 10, 100 if batch == 1 else 600
    kept = np.zeros(total)
    for seed in range(trials):
        memory = Memory(bytes=20 * room + 19, seed=seed)  # 19 bytes are room for nothing
        for start in range(0, total, batch):
            memory.add(even(start, min(total, start + batch)))
            assert memory.stored_bytes() <= 20 * room
        assert len(memory) == room and memory.stored_bytes() == 20 * room
        for name in memory.examples().ids:
            kept[int(name[1:])] += 1
    p = room / total
    chi_square = ((kept - trials * p) ** 2 / (trials * p * (1 - p))).sum() * (total - 1) / total
    assert chi_square < 85.4  # 49 degrees of freedom: exceeded by chance once in a thousand


@pytest.mark.parametrize("policy", [None, Balanced()])
def test_a_budget_of_bytes_holds_for_examples_of_any_size_with_all_that_is_kept_of_them(policy, tmp_path):
    draw = np.random.default_rng(0)
    for room in (0, 50, 400, 3000):
        memory = Memory(bytes=room, policy=policy)
        for start in range(0, 60, 6):
            inputs = ["é" * int(size) for size in draw.integers(0, 60, 6)]
            path = tmp_path / f"{room}-{start}.png"
            path.write_bytes(b"x" * int(draw.integers(1, 80)))
            examples = Examples([*inputs[:5], path], torch.arange(6) % 3, [f"id{start + i}" for i in range(6)])
            memory.add(examples, logits=torch.zeros(6, 4))
            assert memory.stored_bytes() <= room
        held = memory.examples()
        by_hand = sum(
            len(item if isinstance(item, bytes) else item.encode()) + len(name) + 8 + 4 * 4
            for item, name in zip(held.inputs, held.ids, strict=True)
        )
        assert by_hand == memory.stored_bytes()
        assert len(memory) == 0 if room == 0 else len(memory) > 0 or room == 50
        assert int(memory.seen) == 60
    assert memory.stored_bytes() > room - 200  # no more is left than one example takes


@pytest.mark.parametrize("policy", [None, Balanced()])
def test_an_example_larger_than_the_whole_budget_takes_the_place_of_no_other(policy):
    for seed in range(10):
        memory = Memory(8, bytes=200, policy=policy, seed=seed)
        memory.add(even(0, 8))
        memory.add(Examples(["x" * 300], torch.tensor([0]), ["large"]))
        assert memory.examples().ids == even(0, 8).ids
        memory.add(Examples(["x" * 150], torch.tensor([0]), ["half"]))  # this one may be kept, in place of some
        assert memory.stored_bytes() <= 200


def test_a_budget_that_suffices_for_no_example_is_told():
    memory = Memory(5, bytes=19)
    with pytest.warns(EverlearnWarning, match=r"19 bytes hold no example, and the smallest has 20: give a larger"):
        memory.add(even(0, 4))
    with warnings.catch_warnings(action="error"):
        memory.add(NO_EXAMPLES)
        for most, room in ((0, 19), (5, 0), (5, 20)):  # nothing is wanted, or there is room
            Memory(most, bytes=room).add(even(0, 4))


def test_the_tighter_of_two_budgets_holds():
    for examples, room, left in ((5, 1000, 5), (50, 100, 5), (0, 1000, 0), (5, 0, 0)):
        memory = Memory(examples, bytes=room)
        memory.add(even(0, 40))
        assert len(memory) == left
    for wrong in ({"examples": -1}, {"bytes": -1}):
        with pytest.raises(EverlearnError, match="fewer than 0 examples or bytes"):
            Memory(**wrong)


def test_a_herded_memory_keeps_what_the_greedy_definition_chooses_first():
    """iCaRL's definition, by hand: the next one is the one with which the mean of the chosen is nearest to the mean."""
    features, labels = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    memory = Memory(24, policy=Herded())
    memory.add(even(0, 60), place=Herded.places(features, labels, 24))
    more = even(60, 80)
    expected = {24: 8, 20: 20 // 4}
    for size, each in expected.items():
        wanted = set()
        for label in range(3):
            rows = (labels == label).nonzero()[:, 0].tolist()
            mean, chosen = features[rows].mean(0), []
            for _ in range(each):
                left = [row for row in rows if row not in chosen]
                chosen.append(min(left, key=lambda row: (mean - features[[*chosen, row]].mean(0)).norm().item()))
            wanted |= {f"i{row:03}" for row in chosen}
        held = memory.examples()
        assert {name for name, label in zip(held.ids, held.labels.tolist(), strict=True) if label < 3} == wanted
        assert len(wanted) == 3 * each
        if size == 24:  # a fourth class comes: the others give up what was chosen last
            memory.limits = (20, None)
            fourth = Examples(more.inputs, torch.full((20,), 3), more.ids)
            memory.add(fourth, place=Herded.places(features[:20], fourth.labels, 20))


@pytest.mark.parametrize("batch", [1, 11, 200])
def test_a_balanced_memory_keeps_equally_many_of_every_class(batch):
    labels = torch.tensor([0] * 150 + [1] * 2 + [2] * 40 + [3] * 8)
    order = torch.randperm(200)
    memory = Memory(20, policy=Balanced(), seed=1)
    for rows in order.split(batch):
        memory.add(Examples([f"text {i}" for i in rows], labels[rows], [f"id{i}" for i in rows]))
    assert memory.examples().labels.bincount().tolist() == [6, 2, 6, 6]
    assert all(labels[int(name[2:])] == label for name, label in zip(memory.examples().ids, memory.examples().labels,
                                                                     strict=True))  # fmt: skip
    memory.add(Examples([f"new {i}" for i in range(30)], torch.full((30,), 4), [f"new{i}" for i in range(30)]))
    counts = memory.examples().labels.bincount()
    assert counts.sum() == 20 and counts[1] == 2 and counts[[0, 2, 3, 4]].min() >= 4


@pytest.mark.parametrize("batch", [5, 30])
def test_in_a_balanced_memory_every_example_of_a_class_is_equally_likely_to_be_kept(batch):
    total, trials, kept = 30, 600, np.zeros(30)
    labels = torch.tensor([0] * 20 + [1] * 10)
    for seed in range(trials):
        memory = Memory(8, policy=Balanced(), seed=seed)
        for rows in torch.arange(total).split(batch):
            memory.add(Examples([f"text {i}" for i in rows], labels[rows], [f"{i}" for i in rows]))
        assert memory.examples().labels.bincount().tolist() == [4, 4]
        for name in memory.examples().ids:
            kept[int(name)] += 1
    for members, most in ((slice(0, 20), 43.8), (slice(20, 30), 27.9)):  # once in a thousand
        n = members.stop - members.start
        p = 4 / n
        assert ((kept[members] - trials * p) ** 2 / (trials * p * (1 - p))).sum() * (n - 1) / n < most


def test_a_balanced_memory_of_queries_without_labels_is_a_reservoir():
    kept = []
    for policy in (None, Balanced()):
        memory, none = Memory(5, policy=policy), torch.empty(0, dtype=torch.long)
        for start in range(0, 40, 8):
            names = [str(i) for i in range(start, start + 8)]
            memory.add(Examples([f"query {i}" for i in names], none, names, positives=[f"answer {i}" for i in names]))
        kept.append(list(memory.examples().ids))
        assert memory.examples().positives == [f"answer {i}" for i in kept[-1]] and len(memory) == 5
    assert kept[0] == kept[1]


def test_what_a_policy_of_ones_own_prefers_is_kept():
    memory = Memory(3, policy=lambda candidates: candidates.columns["loss"].argsort(descending=True))
    for start in range(0, 30, 10):
        memory.add(even(start, start + 10), loss=torch.arange(start, start + 10) * (-1.0) ** torch.arange(10))
    assert list(memory.examples().ids) == ["i024", "i026", "i028"]


# -- named columns -----------------------------------------------------------------------------
def number(name):
    return int(name[1:])


def logits(examples, width):
    """Scores that tell whose they are: row i of example n is n + i/10."""
    return torch.tensor([[number(name) + k / 10 for k in range(width)] for name in examples.ids])


def test_named_columns_stay_with_their_examples():
    memory = Memory(12, seed=3)
    for start in range(0, 60, 6):
        part = even(start, start + 6)
        own = torch.tensor([number(name) for name in part.ids])
        memory.add(part, logits=logits(part, 2), task=own, maps=own.float()[:, None, None].expand(-1, 2, 2))
    for examples in (memory.examples(), memory.sample(5), memory.sample(99), memory.examples()[[3, 1]]):
        numbers = torch.tensor([number(name) for name in examples.ids])
        assert torch.equal(examples.columns["logits"], logits(examples, 2))
        assert torch.equal(examples.columns["task"], numbers)
        assert torch.equal(examples.columns["maps"], numbers.float()[:, None, None].expand(-1, 2, 2))
    memory.remove(memory.examples().ids[:4])
    assert torch.equal(memory.examples().columns["logits"], logits(memory.examples(), 2)) and len(memory) == 8


def test_columns_come_with_the_examples_too_and_are_not_shared_with_the_giver():
    memory, scores = Memory(), torch.zeros(3, 2, requires_grad=True)
    part = even(0, 3)
    given = Examples(part.inputs, part.labels, part.ids, columns={"logits": scores, "age": torch.tensor([5, 6, 7])})
    memory.add(given, age=torch.tensor([1, 2, 3]))
    assert memory.examples().columns["age"].tolist() == [1, 2, 3]  # what is said to `add` wins
    assert not memory.examples().columns["logits"].requires_grad and set(given.columns) == {"logits", "age"}


def test_a_column_that_grows_or_comes_later_is_blank_where_it_is_not_known():
    memory = Memory()
    memory.add(even(0, 2), logits=torch.ones(2, 2), route=torch.tensor([[7], [8]]))
    memory.add(even(2, 3), logits=torch.full((1, 4), 2.0), route=torch.tensor([[3, 4]]), task=torch.tensor([5]),
               loss=torch.tensor([0.5]))  # fmt: skip
    memory.add(even(3, 4))
    memory.add(even(4, 5), logits=torch.full((1, 1), 3.0))  # narrower than those before
    columns, nan = memory.examples().columns, float("nan")
    expected = torch.tensor([[1, 1, nan, nan], [1, 1, nan, nan], [2, 2, 2, 2], [nan] * 4, [3, nan, nan, nan]])
    torch.testing.assert_close(columns["logits"], expected, equal_nan=True, rtol=0, atol=0)
    assert columns["route"].tolist() == [[7, -1], [8, -1], [3, 4], [-1, -1], [-1, -1]]
    assert columns["task"].tolist() == [-1, -1, 5, -1, -1] and columns["task"].dtype == torch.long
    loss = torch.tensor([nan, nan, 0.5, nan, nan])
    torch.testing.assert_close(columns["loss"], loss, equal_nan=True, rtol=0, atol=0)


def test_a_column_of_truths_is_false_where_it_is_not_known():
    memory = Memory()
    memory.add(even(0, 2))
    memory.add(even(2, 4), right=torch.tensor([True, False]))
    memory.add(even(4, 5))
    assert memory.examples().columns["right"].tolist() == [False, False, True, False, False]


def test_a_column_needs_a_row_for_each_example():
    memory = Memory()
    for rows in (2, 4, 0):
        with pytest.raises(EverlearnError, match=f"the column 'logits' has {rows} rows for 3 examples"):
            memory.add(even(0, 3), logits=torch.zeros(rows, 2))
    assert len(memory) == int(memory.seen) == 0


@pytest.mark.parametrize("policy", [None, Balanced()])
@pytest.mark.parametrize("limits", [{"examples": 7}, {"bytes": 400}, {}])
def test_a_resumed_memory_with_columns_is_and_draws_the_same(limits, policy, tmp_path):
    memory = Memory(**limits, policy=policy, seed=5)
    first = even(0, 20)
    memory.add(first, logits=logits(first, 2), task=torch.zeros(20, dtype=torch.long))
    memory.sample(3)
    save_file(memory.state_dict(), tmp_path / "memory.safetensors")
    fresh = Memory(**limits, policy=policy, seed=5)
    fresh.load_state_dict(load_file(tmp_path / "memory.safetensors"))
    assert fresh.examples().columns.keys() == memory.examples().columns.keys() == {"logits", "task", "draw"}
    more = even(20, 60)
    for each in (memory, fresh):
        each.add(more, logits=logits(more, 4), age=torch.arange(40))
    assert list(fresh.sample(4).ids) == list(memory.sample(4).ids)
    a, b = memory.state_dict(), fresh.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], equal_nan=True, rtol=0, atol=0)
    again = Memory(**limits, policy=policy, seed=5)
    again.add(even(90, 93), other=torch.zeros(3))  # what it held before it is loaded is gone
    again.load_state_dict(a)
    assert again.examples().columns.keys() == memory.examples().columns.keys()
    assert list(again.examples().ids) == list(memory.examples().ids)
    assert sum(buffer.numel() for buffer in memory.buffers()) == 2  # a checkpoint leaves no second copy


def test_per_parameter_grows_with_the_head_and_names_survive(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), Linear(2))
    net[0].bias.requires_grad_(False)
    net[1].grow(2)
    fisher = PerParameter()
    fisher.grow(net.named_parameters())
    assert list(fisher) == ["0.weight", "1.weight", "1.bias"] and "0.bias" not in fisher and len(fisher) == 3
    for name, value in fisher.items():
        fisher[name] = value + 1
    net[1].grow(3)
    fisher.grow(net.named_parameters())
    assert fisher["1.weight"].tolist() == [[1, 1], [1, 1], [0, 0]] and fisher["1.bias"].tolist() == [1, 1, 0]
    save_file(fisher.state_dict(), tmp_path / "fisher.safetensors")
    fresh = PerParameter()
    fresh.grow(net.named_parameters())
    fresh.load_state_dict(load_file(tmp_path / "fisher.safetensors"))
    assert all(torch.equal(fresh[name], value) for name, value in fisher.items())
    assert fisher.stored_bytes() == 4 * (4 + 6 + 3)


def test_per_parameter_keeps_values_not_references_and_takes_any_name():
    net = torch.nn.Module()
    for name in ("forward", "items", "grow"):
        net._parameters[name] = torch.nn.Parameter(torch.ones(2))
    anchor = PerParameter()
    anchor.grow(net.named_parameters())
    for name, value in net.named_parameters():
        anchor[name] = value
    with torch.no_grad():
        net._parameters["items"].zero_()
    assert anchor["items"].tolist() == [1, 1]
    assert set(anchor._buffers) == {"/forward", "/items", "/grow"}
    twin = copy.deepcopy(anchor)
    twin["grow"] = torch.zeros(2)
    assert anchor["grow"].tolist() == [1, 1]


def test_per_parameter_keeps_a_single_number_and_leaves_what_has_not_grown():
    net = torch.nn.Module()
    net.scale, net.empty = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.ones(0, 3))
    kept = PerParameter()
    kept.grow(net.named_parameters())
    assert list(kept) == ["scale", "empty"] and kept["scale"] == 0
    kept.update({"scale": net.scale})
    kept.grow(net.named_parameters())
    assert kept["scale"] == 2
