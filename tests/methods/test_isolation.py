"""What the papers of parameter isolation claim: piggyback, packnet and hat."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.parametrize import ParametrizationList

from everlearn import backbones, methods
from everlearn.engine import learn
from everlearn.errors import EverlearnError, EverlearnWarning
from everlearn.evaluation import TOLD, Evaluation
from everlearn.features import FeatureStore, using_store
from everlearn.peft.gate import Gate, Incoming, gated
from everlearn.peft.mask import packed, unpacked
from everlearn.peft.owned import FREE, owned_weights
from everlearn.testing import toy_stream

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 8}


def taught(name: str, tasks: int = 1, input: str = "text", **settings: Any) -> tuple[Any, Any]:
    stream = toy_stream(input)
    method = methods.get(name)(backbones.load("tiny"), **{**QUICK, **settings})
    for task in stream.tasks[:tasks]:
        learn(method, task)
    return method, stream


@pytest.mark.parametrize("input", ["text", "image"])
@pytest.mark.parametrize(("name", "settings"), [
    ("piggyback", {"lr": 1e-3}), ("packnet", {"lr": 1e-3}), ("packnet", {"lr": 1e-2, "train": "lora"}),
    ("packnet", {"lr": 1e-2, "train": "houlsby"}), ("hat", {"lr": 1e-3}), ("hat", {"lr": 1e-2, "train": "lora"}),
    ("hat", {"lr": 1e-2, "train": "houlsby"}),
])  # fmt: skip
def test_answers_to_old_tasks_stay_the_same_to_the_bit(name, settings, input, tmp_path):
    method, stream = taught(name, input=input, **settings)
    first = list(stream[0].test.inputs)
    answers, told = [method.predict(first, 0)], [Evaluation(stream, method).others(stream[0])[TOLD]]
    frozen = method.frozen(first)
    for task in stream.tasks[1:]:
        learn(method, task)
        with using_store(FeatureStore(tmp_path / task.name)):  # nothing is remembered of the answers before
            answers.append(method.predict(first, 0)[:, :2])
            assert torch.equal(method.frozen(first), frozen)
        told.append(Evaluation(stream, method).others(stream[0])[TOLD])
    assert all(torch.equal(later, answers[0]) for later in answers[1:]) and len(set(told)) == 1


@pytest.mark.parametrize(("name", "settings"), [
    ("piggyback", {}), ("packnet", {}), ("packnet", {"train": "lora"}), ("packnet", {"train": "houlsby"}),
    ("hat", {}), ("hat", {"train": "lora"}), ("hat", {"train": "houlsby"}),
])  # fmt: skip
def test_the_features_of_a_finished_task_are_computed_once(name, settings, tmp_path):
    store = FeatureStore(tmp_path)
    with using_store(store):
        method, stream = taught(name, **{"lr": 1e-2, **settings})
        first = list(stream[0].test.inputs)
        answers = method.predict(first, 0)
        for task in stream.tasks[1:]:
            learn(method, task)
            encoded = store.encoded
            assert torch.equal(method.predict(first, 0)[:, :2], answers) and store.encoded == encoded


@pytest.mark.parametrize("name", ["packnet", "hat"])
@pytest.mark.parametrize("train", ["full", "lora", "houlsby"])
def test_the_identity_of_a_task_follows_the_weights_that_it_uses_and_no_others(name, train):
    method, _ = taught(name, tasks=2, lr=1e-2, train=train)
    method._activate(0)
    made = [part for part in method.modules() if isinstance(part, ParametrizationList)]
    last, identities = [part for part in made if 0 < int(part().ne(0).sum()) < part.original.numel()][-1], []
    used, hidden = last().nonzero()[0].tolist(), (last() == 0).nonzero()[0].tolist()
    original = last.original.detach().clone()
    for place, write in ((hidden, last.original.detach()), (used, last.original.detach()), (used, last.original.data)):
        with torch.no_grad():
            last.original.copy_(original)
            identities.append(method.backbone.identity())
            write[tuple(place)] += 1.0
        method.backbone.doubt()
        identities.append(method.backbone.identity())
    assert identities[0] == identities[1] == identities[2] == identities[4] != identities[3] == identities[5]


def test_where_the_task_is_not_told_the_router_decides():
    method, stream = taught("piggyback", tasks=3, lr=1e-3)
    inputs = [text for task in stream for text in task.test.inputs]
    found, scores = method.route(inputs), method.predict(inputs)
    assert len(found.unique()) == 3
    for task in range(3):
        rows = (found == task).nonzero()[:, 0]
        chosen = [inputs[row] for row in rows]
        assert torch.equal(scores[rows].isfinite().nonzero()[:, 1].unique(), torch.tensor([2 * task, 2 * task + 1]))
        torch.testing.assert_close(scores[rows], method.predict(chosen, task))


# -- piggyback -------------------------------------------------------------------------------------
def test_a_mask_of_all_ones_is_the_pretrained_model_to_the_bit():
    stream, backbone = toy_stream(), backbones.load("tiny")
    texts = list(stream[0].test.inputs)
    before = backbone(texts)
    method = methods.get("piggyback")(backbone)
    method.begin_task(stream[0].sealed())
    assert len(backbone.active) == 12 and all(bool(mask.mask().all()) for mask in backbone.active)
    assert torch.equal(backbone(texts), before)
    method._settle()
    assert torch.equal(backbone(texts), before)


def test_a_mask_is_one_bit_a_weight_and_leaves_some_weights_out():
    method, _ = taught("piggyback", tasks=2, lr=1e-3)
    weights = sum(mask.site.weight.numel() for mask in method.masks[0])
    for masks in method.masks:
        assert sum(p.numel() for p in masks.parameters()) == 0
        assert sum(tensor.nbytes for tensor in masks.state_dict().values()) == weights / 8
        used = torch.cat([mask.mask().flatten() for mask in masks]).float().mean()
        assert 0.3 < used < 1


def test_the_gradient_of_a_mask_is_passed_straight_through_to_the_scores():
    stream = toy_stream()
    method = methods.get("piggyback")(backbones.load("tiny"))
    method.begin_task(stream[0].sealed())
    mask = method.masks[0][0]
    with torch.no_grad():
        mask.scores[0] = 0.0  # below the threshold
    assert mask.mask()[0].sum() == 0 and mask.mask()[1:].all()
    (2 * mask.mask()).sum().backward()
    assert torch.equal(mask.scores.grad, torch.full_like(mask.scores, 2.0))
    with pytest.raises(EverlearnError, match="no weight would be used"):
        methods.get("piggyback")(backbones.load("tiny"), score=1e-3)


@pytest.mark.parametrize("size", [0, 1, 8, 13])
def test_packed_bits_come_back(size):
    mask = torch.arange(size) % 3 == 0
    assert torch.equal(unpacked(packed(mask), size), mask) and len(packed(mask)) == -(-size // 8)


# -- packnet ---------------------------------------------------------------------------------------
def test_a_task_owns_its_share_of_what_was_free_in_every_layer():
    method, _ = taught("packnet", tasks=3, pruned=0.75)
    weights = list(owned_weights(method.deltas))
    assert len(weights) == 12
    for weight, owned in weights:
        assert owned.owner.dtype == torch.uint8 and owned.stored_bytes() == weight.numel()
        free = weight.numel()
        for task in range(3):
            kept = int((owned.owner == task).sum())
            assert kept == free - int(0.75 * free)
            free -= kept
        assert not weight[owned.owner == FREE].any()
    assert method.owned_shares() == pytest.approx([0.25, 0.25 * 0.75, 0.25 * 0.75**2], rel=1e-2)


def test_pruning_frees_the_smallest_weights_and_the_rest_is_trained_further():
    seen: dict[str, Any] = {}

    class Watched(methods.get("packnet")):
        def step(self, batch, optimizer_step):
            loss = super().step(batch, optimizer_step)
            if optimizer_step.number + 1 == self.prune_at:
                weight, owned = next(iter(owned_weights(self.deltas)))
                seen.update(weight=weight.detach().clone(), owner=owned.owner.clone())
            return loss

    method = Watched(backbones.load("tiny"), pruned=0.5, **{**QUICK, "epochs": 8}, retraining=0.5)
    learn(method, toy_stream()[0])
    weight, owned = next(iter(owned_weights(method.deltas)))
    kept = seen["owner"] == 0
    assert seen["weight"][kept].abs().min() > seen["weight"][~kept].abs().max()
    assert torch.equal(seen["owner"], owned.owner) and int(kept.sum()) == kept.numel() // 2
    assert (weight[kept] != seen["weight"][kept]).float().mean() > 0.9


def test_biases_are_trained_with_the_first_task_and_then_fixed():
    method, stream = taught("packnet")
    biases = {name: p.detach().clone() for name, p in method.deltas.named_parameters() if p.dim() == 1}
    layers = {delta.site_name: delta.site.leave.bias for delta in method.deltas}
    assert any(not torch.equal(delta.bias, layers[delta.site_name]) for delta in method.deltas)
    learn(method, stream[1])
    assert biases and all(torch.equal(dict(method.deltas.named_parameters())[name], b) for name, b in biases.items())


def test_an_online_stream_is_pruned_within_its_one_pass():
    stream = toy_stream(kind="online")
    method = methods.get("packnet")(backbones.load("tiny"), epochs=3, retraining=0.25)
    learning = learn(method, stream[0])
    assert method.prune_at == round(0.75 * learning.step) and method.owned_shares() == [0.25]


def test_packnet_refuses_an_insertion_that_has_nothing_to_share_out():
    with pytest.raises(EverlearnError, match=r"method\.train: packnet shares out weights, and ssf has none"):
        methods.get("packnet")(backbones.load("tiny"), train="ssf")


def test_packnet_refuses_more_tasks_than_a_byte_can_tell():
    method = methods.get("packnet")(backbones.load("tiny"))
    method.heads.extend(torch.nn.Linear(1, 1) for _ in range(FREE))
    with pytest.raises(EverlearnError, match="255 tasks at most"):
        method.add_task()


# -- hat -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("train", ["full", "lora", "houlsby"])
def test_weights_of_units_that_earlier_tasks_use_do_not_change_and_others_do(train):
    method, stream = taught("hat", train=train, lr=1e-2, sparsity=20.0, gate_travel=0.8)
    taken = [gate.taken for gate in method.gates]
    assert all(0 < units.float().mean() < 1 for units in taken)
    before = {name: p.detach().clone() for name, p in method.deltas.named_parameters()}
    learn(method, stream[1])
    covered = set()
    for path, part in method.deltas.named_modules():
        if isinstance(part, ParametrizationList):
            covered.add(f"{path}.original")
            gate, dim = (part[0].gate[0], 0) if isinstance(part[0], Incoming) else (part[0].gate, 1)
            same = (part.original == before[f"{path}.original"]).movedim(dim, 0)
            assert same[gate.used[0]].all() and not same[~gate.used[0]].all(), path
    others = {name: p for name, p in method.deltas.named_parameters() if name not in covered}
    assert len(covered) == len(list(gated(method.deltas)))
    assert all(torch.equal(p, before[name]) != name.endswith(".e") for name, p in others.items())


def test_the_gradient_of_e_is_the_papers_compensated_one():
    gate, s, most = Gate(5, sharpest=400.0).double(), 3.0, 400.0
    with torch.no_grad():
        gate.e.copy_(torch.tensor([-1.5, -0.2, 0.0, 0.4, 2.0]))
    gate.sharpness, weight = s, torch.arange(1.0, 6.0).double()
    attention = gate()
    torch.testing.assert_close(attention, torch.sigmoid(s * gate.e))
    (weight * attention).sum().backward()
    e = gate.e.detach().clone().requires_grad_(True)
    (weight * torch.sigmoid(s * e)).sum().backward()
    compensated = most / s * (torch.cosh(s * e) + 1) / (torch.cosh(e) + 1) * e.grad
    torch.testing.assert_close(gate.e.grad, compensated.detach())


def test_the_sharpness_rises_within_each_epoch(monkeypatch):
    seen: list[float] = []
    sharpen = methods.get("hat")._sharpen
    monkeypatch.setattr(methods.get("hat"), "_sharpen", lambda self, s: (seen.append(s), sharpen(self, s)))
    method, _ = taught("hat", sharpest=100.0)
    assert method.per_epoch == 4 and len(seen) == 2 * 16
    assert seen[::2] == pytest.approx(4 * [0.01, 0.01 + 99.99 / 3, 0.01 + 2 * 99.99 / 3, 100.0])
    assert set(seen[1::2]) == {0.0}  # whatever is asked between two steps is answered with gates of 0 or 1


def test_where_an_epoch_is_one_batch_units_are_trained_as_they_answer(monkeypatch):
    seen: list[float] = []
    sharpen = methods.get("hat")._sharpen
    monkeypatch.setattr(methods.get("hat"), "_sharpen", lambda self, s: (seen.append(s), sharpen(self, s)))
    method, stream = taught("hat", tasks=3, input="image", batch_size=32, epochs=30, lr=1e-3, head_lr=0.01,
                            gate_travel=1.5)  # fmt: skip
    assert method.per_epoch == 1 and set(seen) == {400.0, 0.0}
    right = [method.predict(task.test.inputs, task.index).argmax(1) == task.test.labels for task in stream]
    assert torch.cat(right).float().mean() > 0.8


@pytest.mark.parametrize("epochs", [4, 16])
def test_however_many_steps_a_task_has_the_gates_can_move_equally_far(epochs):
    method, _ = taught("hat", epochs=epochs, sparsity=1e6, gate_travel=1.0)  # nothing but the term for few units counts
    assert all(0.3 < units.float().mean() < 0.7 for units in (gate.used[0] for gate in method.gates))
    with pytest.warns(EverlearnWarning, match="uses no unit in 2 of 2 layers"):
        taught("hat", epochs=epochs, sparsity=1e6, gate_travel=3.0)


def test_more_sparsity_uses_fewer_units_and_the_term_counts_free_units_alone():
    few, many = (taught("hat", sparsity=strength)[0] for strength in (20.0, 0.0))
    assert sum(map(sum, few.used_shares())) < sum(map(sum, many.used_shares()))
    gate = few.gates[0]
    few.gates = (gate,)
    few.switch(1)
    with torch.no_grad():
        gate.e.fill_(1.0)
        assert few.usage() == 1
        gate.e[~gate.used[0]] = -1.0
        assert few.usage() == 0


def test_open_gates_leave_the_pretrained_model_as_it_was():
    stream, backbone = toy_stream(), backbones.load("tiny")
    texts = list(stream[0].test.inputs)
    before = backbone(texts)
    method = methods.get("hat")(backbone)
    method.begin_task(stream[0].sealed())
    assert torch.equal(backbone(texts), before) and len(backbone.active) == 4


def test_hat_refuses_what_has_no_units():
    with pytest.raises(EverlearnError, match="prefix has none"):
        methods.get("hat")(backbones.load("tiny"), train="prefix")
    backbone = backbones.load("tiny")
    backbone.blocks[1].mlp.insert(2, torch.nn.LayerNorm(64))
    with pytest.raises(EverlearnError, match="of another form"):
        methods.get("hat")(backbone)
