"""What the papers of replay methods claim: which examples are kept, what is replayed of them, and what holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from everlearn import backbones, methods
from everlearn.checkpoint import stored_bytes
from everlearn.engine import learn, replay
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.methods import DER, ERACE, DERpp, FeatureReplay, GDumb, ICaRL
from everlearn.streams.stream import Examples, Stream
from everlearn.testing import toy_stream

NAMES = ("er_ace", "der", "der_pp", "icarl", "gdumb", "feature_replay")
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "memory_size": 40}


def learned(name: str, stream: Stream, tasks: int | None = None, **settings: Any) -> Any:
    method = methods.get(name)(backbones.load("tiny"), **{**SMALL, **settings})
    for task in stream.tasks[:tasks]:
        learn(method, task)
    return method


def begun(name: str, stream: Stream, **settings: Any) -> Any:
    """A model that has learned the first task and begun the second."""
    method = learned(name, stream, 1, **settings)
    method.begin_task(stream[1].sealed())
    return method


def same_state(one: Method, two: Method, without: str = "memory.") -> bool:
    states = [{name: tensor for name, tensor in method.state_dict().items() if not name.startswith(without)}
              for method in (one, two)]  # fmt: skip
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def next_draw(method: Any, batch: Examples) -> Examples:
    """What the memory will draw next, without drawing it."""
    draws = int(method.memory.draws)
    drawn = method.replayed(batch)
    method.memory.draws.fill_(draws)
    return drawn


# -- all of them ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_a_setting(name: str) -> None:
    stream = toy_stream(tasks=2)
    origin = backbones.load("tiny").state_dict()
    for train, inserted in (("full", 0), ("head", 0), ("lora", 4), ("houlsby", 4)):
        method = learned(name, stream, train=train)
        moved = [key for key, tensor in method.backbone.state_dict().items() if not torch.equal(tensor, origin[key])]
        assert (len(moved) > 10) == (train == "full") and (train == "full" or not moved)
        assert len(method.deltas) == inserted and method.head.bias.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_forgotten_leaves_the_memory_and_all_that_is_kept_is_counted(name: str) -> None:
    method = learned(name, toy_stream(), epochs=1)
    before, ids = method.memory.stored_bytes(), list(method.memory.examples().ids)
    assert len(ids) == 40 and stored_bytes(method) >= before > 0
    assert method.memory.remove(ids[:10]) == 10
    assert not {*ids[:10]} & {*method.memory.examples().ids} and method.memory.stored_bytes() < before
    again = methods.get(name)(backbones.load("tiny"), **SMALL)
    replay(again, toy_stream().tasks)
    again.drop_helpers()
    again.load_state_dict(method.state_dict())
    assert again.memory.examples().ids == ids[10:]


# -- er_ace --------------------------------------------------------------------------------------------
def test_er_ace_compares_new_examples_with_the_classes_of_their_batch_and_old_ones_with_all() -> None:
    stream = toy_stream()
    method: ERACE = begun("er_ace", stream, memory_size=20, replay_batch_size=6)
    batch = stream[1].train[[0, 1, 2, 20, 21]]
    own = batch.labels.unique().tolist()
    old = next_draw(method, batch)
    new_scores, old_scores = method.scores(batch.inputs), method.scores(old.inputs)
    of_new = cross_entropy(new_scores[:, own], batch.labels - own[0])
    torch.testing.assert_close(method.new_loss(batch), of_new)
    torch.testing.assert_close(method.loss(batch), of_new + cross_entropy(old_scores, old.labels))


def test_er_ace_gives_old_classes_no_gradient_from_new_examples() -> None:
    stream = toy_stream()
    method: ERACE = begun("er_ace", stream)
    method.new_loss(stream[1].train).backward()
    assert not method.head.weight.grad[:2].any() and method.head.weight.grad[2:].any()
    method.zero_grad()
    method.old_loss(stream[1].train).backward()
    assert all(row.any() for row in method.head.weight.grad)


@pytest.mark.parametrize("input", ["text", "image"])
def test_er_ace_answers_the_classes_of_the_newest_task(input: str) -> None:
    """Only replayed examples of the task tell its classes from old ones: old examples alone push them down."""
    stream = toy_stream(input, per_class=32)
    method = learned("er_ace", stream, epochs=6, memory_size=500, head_lr=0.03)
    for task in stream:
        assert (method.predict(task.test.inputs).argmax(1) == task.test.labels).float().mean() > 0.8


@pytest.mark.parametrize("limit", [{"memory_size": 20}, {"memory_size": None, "memory_bytes": 1000}])
@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_er_ace_replays_the_memory_as_the_task_will_leave_it(policy: str, limit: dict[str, Any]) -> None:
    stream = toy_stream()
    method: ERACE = begun("er_ace", stream, replay_batch_size=20, policy=policy, **limit)
    held, batches = method.memory.examples().ids, method.batches(stream[1].for_learning())
    drawn = method.replayed(batches[0])
    assert method.memory.examples().ids == held and set(drawn.labels.tolist()) == {0, 1, 2, 3}
    method.end_task(stream[1].for_learning())
    er = learned("er", stream, 2, policy=policy, **limit)
    assert sorted(drawn.ids) == sorted(method.memory.examples().ids) == sorted(er.memory.examples().ids)


def test_er_ace_replays_of_an_online_stream_what_has_come() -> None:
    stream = toy_stream(kind="online")
    method: ERACE = begun("er_ace", stream, memory_size=200, replay_batch_size=200)
    old, batches = set(method.memory.examples().ids), method.batches(stream[1].for_learning())
    came = [set(batch.ids) for batch in batches]
    for step in (0, 1, 5):
        method.number = step
        assert set(method.replayed(batches[step]).ids) == old.union(*came[:step])


# -- der and der_pp ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "weights"), [("der", {"alpha": 0.0}), ("der_pp", {"alpha": 0.0, "beta": 0.0})])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_without_weights_der_is_finetune_to_the_bit(name: str, weights: dict[str, float], train: str) -> None:
    stream = toy_stream()
    plain = methods.get("finetune")(backbones.load("tiny"), train=train, epochs=2, batch_size=8, lr=1e-3)
    for task in stream:
        learn(plain, task)
    assert same_state(learned(name, stream, train=train, **weights), plain)
    assert not same_state(learned(name, stream, train=train), plain)


def test_der_pp_without_scores_is_er_and_without_labels_der() -> None:
    stream = toy_stream()
    assert same_state(learned("der_pp", stream, alpha=0.0, beta=1.0), learned("er", stream))
    assert same_state(learned("der_pp", stream, beta=0.0), learned("der", stream))


def test_der_keeps_the_scores_of_the_moment_and_compares_those_alone() -> None:
    stream = toy_stream()
    method: DER = begun("der", stream, memory_size=20, alpha=2.0)
    kept = method.memory.examples()
    assert method.drift(kept).abs().max() < 1e-9  # nothing has been learned since
    with torch.no_grad():
        method.head.bias[1] += 3.0
        method.head.bias[2:] += 9.0  # classes that were not known then
    torch.testing.assert_close(method.drift(kept), torch.full((20,), 4.5))  # half of 3²
    torch.testing.assert_close(method.old_loss(stream[1].train).detach(), torch.tensor(9.0))


def test_each_example_counts_equally_however_many_scores_are_kept_of_it() -> None:
    stream = toy_stream()
    method: DER = learned("der", stream, 2, memory_size=40)
    method.begin_task(stream[2].sealed())
    kept = method.memory.examples()
    unknown = kept.columns["logits"].isnan().sum(1)
    assert kept.columns["logits"].shape == (40, 4) and {*unknown.tolist()} == {0, 2}
    scores = method.predict(kept.inputs)
    for row in range(40):
        known = 4 - int(unknown[row])
        expected = (scores[row, :known] - kept.columns["logits"][row, :known]).square().mean()
        torch.testing.assert_close(method.drift(kept)[row], expected)
    method.old_loss(stream[2].train).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.trained().values() if parameter.grad is not None)


def test_der_pp_draws_labels_and_scores_apart() -> None:
    stream = toy_stream()
    method: DERpp = begun("der_pp", stream, replay_batch_size=6, memory_size=32, alpha=0.5, beta=0.25)
    batch = stream[1].train[range(8)]
    draws = int(method.memory.draws)
    first, second = method.replayed(batch), method.replayed(batch)
    method.memory.draws.fill_(draws)
    assert first.ids != second.ids
    expected = 0.5 * method.drift(first).mean() + 0.25 * cross_entropy(method.scores(second.inputs), second.labels)
    torch.testing.assert_close(method.old_loss(batch), expected)


# -- icarl ---------------------------------------------------------------------------------------------
def herded(features: Tensor) -> Iterator[int]:
    """The greedy definition, word by word: the next one brings the mean of those chosen nearest to the mean of all."""
    chosen: list[int] = []
    for _ in range(len(features)):
        left = [row for row in range(len(features)) if row not in chosen]
        gaps = [float((features.mean(0) - features[[*chosen, row]].mean(0)).norm()) for row in left]
        chosen.append(left[min(range(len(left)), key=gaps.__getitem__)])
        yield chosen[-1]


def test_icarl_keeps_the_first_exemplars_in_the_greedy_order() -> None:
    stream, orders = toy_stream(), {}
    method = ICaRL(backbones.load("tiny"), **{**SMALL, "memory_size": 18})
    for task, each in zip(stream, (9, 4, 3), strict=True):
        learn(method, task)
        features = normalize(method.embed(task.train.inputs)).double()
        for label in task.classes:
            rows = (task.train.labels == label).nonzero()[:, 0]
            orders[label] = [task.train.ids[rows[place]] for place in herded(features[rows])]
        kept = method.memory.examples()
        counts = kept.labels.bincount()
        assert len(kept) == 18 and counts.min() == each and counts.max() <= each + 1
        for label, order in orders.items():
            own = {id for id, other in zip(kept.ids, kept.labels.tolist(), strict=True) if other == label}
            assert own == set(order[: len(own)])


def test_icarl_answers_by_the_nearest_mean_in_features_of_the_present_encoder() -> None:
    stream = toy_stream()
    method: ICaRL = learned("icarl", stream, memory_size=12)
    kept, asked = method.memory.examples(), stream[0].test.inputs
    features = normalize(method.backbone.infer(kept.inputs))
    means = normalize(torch.stack([features[kept.labels == label].mean(0) for label in range(6)]))
    distances = torch.cdist(normalize(method.backbone.infer(asked)), means)
    found = method.predict(asked)
    torch.testing.assert_close(found, 1 - distances.square() / 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.argmax(1), distances.argmin(1))


def test_icarl_takes_labels_for_the_tasks_classes_and_old_answers_for_the_others() -> None:
    stream = toy_stream()
    method: ICaRL = begun("icarl", stream)
    both = Examples.concatenate([method.memory.examples()[range(3)], stream[1].train[[0, 20]]])
    with torch.no_grad():
        before = method.backbone(both.inputs) @ method.head.weight[:2].T + method.head.bias[:2]
        method.head.bias += torch.tensor([1.0, -1.0, 0.5, 0.0])
    target = torch.zeros(5, 4)
    target[:, :2] = before.sigmoid()
    target[3, 2] = target[4, 3] = 1.0
    expected = binary_cross_entropy_with_logits(method.scores(both.inputs), target, reduction="none").sum(1)
    torch.testing.assert_close(method.losses(both), expected, rtol=1e-4, atol=1e-5)


def test_icarl_learns_from_exemplars_and_new_examples_alike() -> None:
    stream = toy_stream()
    method: ICaRL = begun("icarl", stream, epochs=1)
    seen = sorted(id for batch in method.batches(stream[1].for_learning()) for id in batch.ids)
    assert seen == sorted([*method.memory.examples().ids, *stream[1].train.ids])


def test_icarl_keeps_as_many_exemplars_of_each_class_as_the_bytes_hold() -> None:
    method: ICaRL = learned("icarl", toy_stream(), memory_size=None, memory_bytes=900)
    counts = method.memory.examples().labels.bincount()
    assert method.memory.stored_bytes() <= 900 and len(counts) == 6
    assert counts.max() - counts.min() <= 1 and counts.min() >= 1
    with pytest.raises(EverlearnError, match=r"method\.memory_bytes: 100 bytes hold no exemplar of the class"):
        learned("icarl", toy_stream(), memory_size=None, memory_bytes=100)


def test_icarl_refuses_a_memory_without_room_for_every_class() -> None:
    with pytest.raises(EverlearnError, match=r"3 exemplars for 4 classes.*give 4 or more"):
        learned("icarl", toy_stream(), memory_size=3)


# -- gdumb ---------------------------------------------------------------------------------------------
def test_gdumb_depends_on_nothing_but_its_memory() -> None:
    stream = toy_stream()
    method: GDumb = learned("gdumb", stream, memory_size=12)
    assert method.memory.examples().labels.bincount().tolist() == [2] * 6
    fresh = GDumb(backbones.load("tiny"), **{**SMALL, "memory_size": 12})
    replay(fresh, stream.tasks[:2])
    fresh.memory.load_state_dict(learned("gdumb", stream, 2, memory_size=12).memory.state_dict())
    learn(fresh, stream[2])
    assert same_state(fresh, method, without="head.")  # old rows of the head are zero in both, whatever they were
    assert torch.equal(fresh.head.weight, method.head.weight)


def test_gdumb_trains_on_the_memory_as_the_task_leaves_it_and_on_nothing_else() -> None:
    stream = toy_stream()
    method: GDumb = begun("gdumb", stream, memory_size=10, epochs=3)
    origin = backbones.load("tiny").state_dict()
    assert all(torch.equal(tensor, origin[name]) for name, tensor in method.backbone.state_dict().items())
    held = method.memory.examples().ids
    batches = method.batches(stream[1].for_learning())
    assert method.memory.examples().ids == held  # so that a resumed task finds the same batches
    seen = [sorted(id for k in epoch for id in batches[k].ids) for epoch in ((0, 1), (2, 3), (4, 5))]
    method.end_task(stream[1])
    assert len(batches) == 6 and seen == [sorted(method.memory.examples().ids)] * 3


def test_gdumb_reads_its_memory_in_epochs_where_the_stream_is_online() -> None:
    stream = toy_stream(kind="online")
    method: GDumb = begun("gdumb", stream, memory_size=16, epochs=3)
    assert len(method.batches(stream[1].for_learning())) == 3 * 16 // 8


def test_gdumb_refuses_a_memory_that_holds_no_example() -> None:
    with pytest.raises(EverlearnError, match=r"method\.memory_bytes: 9 bytes hold no example.*give more"):
        learned("gdumb", toy_stream(), memory_bytes=9)


# -- feature_replay ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("input", "memory_size"), [("text", 40), ("image", 90)])
def test_feature_replay_on_a_frozen_encoder_is_er_without_raw_data(input: str, memory_size: int) -> None:
    """Texts are drawn by their length by er, where the memory holds twice a draw or more; images are not."""
    stream = toy_stream(input)
    er = learned("er", stream, memory_size=memory_size, train="head")
    method: FeatureReplay = learned("feature_replay", stream, memory_size=memory_size)
    assert same_state(method, er)
    kept, raw = method.memory.examples(), er.memory.examples()
    assert kept.ids == raw.ids and torch.equal(kept.labels, raw.labels)
    assert torch.equal(kept.columns["feature"], er.backbone.encode(raw.inputs))


def test_feature_replay_keeps_features_and_no_inputs() -> None:
    stream = toy_stream()
    method: FeatureReplay = learned("feature_replay", stream)
    kept = method.memory.examples()
    assert set(kept.inputs) == {""} and kept.columns["feature"].shape == (40, 32)
    assert method.memory.stored_bytes() == sum(8 + 4 * 32 + len(id) for id in kept.ids)
    saved = b"".join(tensor.numpy().tobytes() for tensor in method.memory.state_dict().values())
    assert not any(word.encode() in saved for task in stream for text in task.train.inputs for word in text.split())


def test_features_of_a_trained_encoder_stay_as_they_were() -> None:
    stream = toy_stream()
    method: FeatureReplay = learned("feature_replay", stream, 1, train="full", memory_size=100)
    task, then = stream[0], method.memory.examples().columns["feature"].clone()
    torch.testing.assert_close(then, method.backbone.infer(task.train.inputs))
    learn(method, stream[1])
    kept = method.memory.examples()
    assert torch.equal(kept.columns["feature"][:32], then)
    assert (method.backbone.infer(task.train.inputs) - then).abs().max() > 1e-3  # what the encoder says has moved on
    old = replace(kept, columns={**kept.columns})
    expected = cross_entropy(old.columns["feature"] @ method.head.weight.T + method.head.bias, old.labels)
    method.replayed = lambda batch: old
    torch.testing.assert_close(method.old_loss(stream[1].train), expected)
