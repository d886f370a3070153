"""What LAE claims and the contract cannot know."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from everlearn import backbones, methods
from everlearn.checkpoint import method_state
from everlearn.engine import Learning, Listener, learn
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.peft import interop
from everlearn.peft.prefix import Prefix, _Joined
from everlearn.peft.unified import insert
from everlearn.testing import toy_stream

SMALL = {"epochs": 3, "batch_size": 8, "lr": 0.01}
TRAINS = ["gelu(sites=('attention',), size=5)", "lora(size=5, sites=('key', 'value'))", "prefix(compensated=True)"]


def built(**settings) -> Method:
    return methods.get("lae")(backbones.load("tiny"), **{**SMALL, **settings})


def values(deltas: torch.nn.Module) -> torch.Tensor:
    """All parameters of an insertion in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in deltas.parameters()])


class Recorded(Listener):
    """The online and the offline insertion and the head after every step of a task."""

    def __init__(self) -> None:
        self.online: list[torch.Tensor] = []
        self.offline: list[torch.Tensor] = []
        self.head: list[torch.Tensor] = []

    def begun(self, learning: Learning) -> None:
        self.stepped(learning)

    def stepped(self, learning: Learning) -> None:
        method = learning.method
        self.online.append(values(method.deltas).clone())
        self.offline.append(values(method.offline).clone() if len(method.offline) else torch.empty(0))
        self.head.append(method.head.weight.detach().clone())


@pytest.mark.parametrize("train", TRAINS)
def test_offline_is_the_closed_form_average_of_the_online_states(train: str) -> None:
    method, decay, stream = built(train=train, decay=0.9), 0.9, toy_stream(tasks=3)
    learn(method, stream[0])
    assert not len(method.offline)
    offline = values(method.deltas).clone()  # the copy when the second task begins
    for task in stream.tasks[1:]:
        seen = Recorded()
        learn(method, task, seen)
        torch.testing.assert_close(seen.offline[0], offline)
        states = seen.online[1:]
        n = len(states)
        closed = decay**n * offline + sum((1 - decay) * decay ** (n - 1 - k) * states[k] for k in range(n))
        torch.testing.assert_close(values(method.offline), closed, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(closed, offline, atol=1e-3)
        offline = values(method.offline).clone()


def test_the_published_decay_hardly_moves_in_few_steps() -> None:
    method = built()
    learn(method, toy_stream()[0])
    start, seen = values(method.deltas).clone(), Recorded()
    learn(method, toy_stream()[1], seen)
    moved = (values(method.offline) - start).norm()
    assert 0 < moved < 1e-3 * (values(method.deltas) - start).norm() * len(seen.online)


@pytest.mark.parametrize("train", TRAINS)
def test_a_class_gets_the_larger_of_its_two_probabilities(train: str) -> None:
    method, stream = built(train=train, decay=0.9), toy_stream(tasks=2)
    texts = stream[0].test.inputs + stream[1].test.inputs
    learn(method, stream[0])
    torch.testing.assert_close(method.predict(texts).exp().sum(1), torch.ones(len(texts)))  # one model alone
    learn(method, stream[1])
    online = method.head(method.embed(texts)).softmax(1)
    twin = copy.deepcopy(method)
    twin.deltas.load_state_dict(method.offline.state_dict())
    offline = twin.head(twin.embed(texts)).softmax(1)
    assert not torch.allclose(online, offline, atol=1e-3)
    torch.testing.assert_close(method.predict(texts).exp(), torch.maximum(online, offline))
    assert [delta.is_active for delta in method.deltas] == [True] * len(method.deltas)
    assert not any(delta.is_active for delta in method.offline)


def test_the_head_learns_alone_in_the_first_steps_of_later_tasks() -> None:
    method, stream = built(frozen=0.5, decay=0.5, epochs=4), toy_stream(tasks=2)
    first, second = Recorded(), Recorded()
    learn(method, stream[0], first)
    assert not torch.equal(first.online[0], first.online[1])
    before = method.backbone.passed
    learn(method, stream[1], second)
    steps = len(second.online) - 1
    still = [torch.equal(second.online[0], state) for state in second.online[1:]]
    assert still == [True] * (steps // 2) + [False] * (steps // 2)
    assert all(not torch.equal(one, two) for one, two in zip(second.head, second.head[1:], strict=False))
    n = len(stream[1].train)
    # Once for both epochs of the head, twice for the other two, and 32 for the norm of the features.
    assert method.backbone.passed - before == n + 2 * n + 32


@pytest.mark.parametrize("input", ["text", "image"])
@pytest.mark.parametrize("train", TRAINS)
def test_more_tasks_of_the_same_classes_store_nothing_more(train: str, input: str) -> None:
    method, sizes = built(train=train), []
    for task in toy_stream(input, kind="domain-incremental", tasks=4):
        learn(method, task)
        sizes.append(sum(t.numel() * t.element_size() for t in method_state(method).values()))
    assert sizes[1] == sizes[2] == sizes[3]


def test_which_blocks_get_the_insertion() -> None:
    assert {delta.site_name for delta in built().deltas} == {"block 0 attention", "block 1 attention"}
    assert {delta.site_name for delta in built(blocks=1).deltas} == {"block 0 attention"}
    assert {delta.site_name for delta in built(train="lora(blocks=1)").deltas} == {"block 1 query", "block 1 value"}
    for other in ("prompt", "ssf", "deep_prompt(length=3)"):
        with pytest.raises(EverlearnError, match="lae takes adapters, LoRA or prefixes, not"):
            built(train=other)


# -- compensated prefixes --------------------------------------------------------------------------
def test_a_compensated_prefix_counts_in_full() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 4, generator=draw)
    keys, values_ = torch.randn(2, 1, 3, 8, generator=draw)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    with _Joined(keys, values_, compensated=True):
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    p_k, p_v = (rows.reshape(1, 3, 2, 4).transpose(1, 2).expand(2, -1, -1, -1) for rows in (keys, values_))
    weights = torch.cat([query @ p_k.mT / 2, (query @ key.mT / 2).masked_fill(~mask, -torch.inf)], dim=-1).softmax(-1)
    share = weights[..., :3].sum(-1, keepdim=True)
    expected = weights[..., 3:] @ value + (weights[..., :3] / share) @ p_v
    torch.testing.assert_close(found, expected)


def test_compensation_is_a_setting_of_prefixes_alone(tmp_path) -> None:
    tiny = backbones.load("tiny")
    plain, compensated = insert(tiny, "prefix"), insert(tiny, "prefix(compensated=True)")
    compensated.load_state_dict(plain.state_dict())
    text = ["a cup of tea"]
    with compensated.only(False):
        before, identity = tiny(text), tiny.identity()
    with plain.only(False):
        assert not torch.allclose(tiny(text), before) and tiny.identity() != identity
    assert isinstance(plain[0], Prefix) and not plain[0].compensated
    with pytest.raises(EverlearnError, match="only a prefix has a share of attention"):
        insert(tiny, "lora(compensated=True)")
    with pytest.raises(EverlearnError, match="holds no compensated prefixes"):
        interop.save(compensated, tiny, tmp_path / "adapter")
