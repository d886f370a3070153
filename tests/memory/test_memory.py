"""Memories: uniform inclusion, exact resume, and what a parameter carries as it grows."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.heads.linear import Linear
from everlearn.memory.memory import Memory
from everlearn.memory.per_parameter import PerParameter
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
