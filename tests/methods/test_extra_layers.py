"""New layers on a frozen body: nothing changes until they are trained, and old rows of the head stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everlearn import backbones, methods
from everlearn.backbones.tiny import TinyBackbone
from everlearn.engine import learn
from everlearn.errors import EverlearnError
from everlearn.method import Method
from everlearn.streams.stream import Stream
from everlearn.testing import toy_stream

FORMS = [(layer, blocks) for layer in ("mlp", "transformer") for blocks in ("per task", "shared")]


def taught(stream: Stream, tasks: int, **settings) -> Method:
    quick = {"epochs": 3, "batch_size": 8, "hidden": 16, "lr": 0.01, **settings}
    method = methods.get("extra_layers")(backbones.load("tiny"), **quick)
    for task in stream[:tasks]:
        learn(method, task)
    return method


@pytest.mark.parametrize(("layer", "blocks"), FORMS)
def test_a_new_block_changes_no_bit_of_the_old_scores(layer: str, blocks: str) -> None:
    stream = toy_stream()
    method = taught(stream, 2, layer=layer, blocks=blocks)
    inputs = [text for task in stream for text in task.test.inputs]
    before, state = method.predict(inputs), {name: t.clone() for name, t in method.state_dict().items()}
    method.begin_task(stream[2].sealed())
    assert torch.equal(method.predict(inputs)[:, :4], before)
    assert len(method.blocks) == (1 if blocks == "shared" else 3)
    assert torch.equal(method.head.weight[:4], state["head.weight"])
    with torch.no_grad():  # and it is the new block that was zero
        for parameter in method.blocks[-1].parameters():
            parameter.add_(0.1)
    assert not torch.allclose(method.predict(inputs)[:, :4], before)


def test_states_of_any_width_are_divided_into_equal_heads() -> None:
    method = methods.get("extra_layers")(TinyBackbone(width=200), layer="transformer")
    method.begin_task(toy_stream()[0].sealed())
    assert method.blocks[0].self_attn.num_heads == 2 and method.predict(["a sofa"]).shape == (1, 2)


@pytest.mark.parametrize(("layer", "blocks"), FORMS)
def test_training_moves_the_newest_block_and_the_rows_of_the_task_only(layer: str, blocks: str) -> None:
    stream = toy_stream()
    method = taught(stream, 1, layer=layer, blocks=blocks)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    learn(method, stream[1])
    after = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert torch.equal(after["head.weight"][:2], before["head.weight"])
    assert torch.equal(after["head.bias"][:2], before["head.bias"])
    block = [name for name in before if name.startswith("blocks.0.")]
    assert block and all(torch.equal(after[name], before[name]) == (blocks == "per task") for name in block)
    learn(method, replace(stream[0], index=2, class_names=stream[1].class_names))  # the first classes once more
    assert not torch.equal(method.head.weight[:2], after["head.weight"][:2])


def test_the_body_is_read_once_per_example() -> None:
    stream = toy_stream()
    backbone = backbones.load("tiny")
    passed = type(backbone).passed
    method = methods.get("extra_layers")(backbone, epochs=5, hidden=16)
    for task in stream:
        learn(method, task)
    train = {text for task in stream for text in task.train.inputs}
    assert type(backbone).passed - passed <= len(train)


@pytest.mark.parametrize("blocks", ["per task", "shared"])
def test_distillation_is_nothing_at_first_and_holds_the_old_scores_later(blocks: str) -> None:
    stream = toy_stream()
    method = taught(stream, 1, blocks=blocks)
    method.begin_task(stream[1].sealed())
    method.train()
    loss, method.strength = method.loss(stream[1].train), 0.0
    torch.testing.assert_close(loss, method.loss(stream[1].train))
    drift = {}
    for strength in (0.0, 30.0):
        other = taught(stream, 1, blocks=blocks, strength=strength, epochs=10)
        inputs = stream[1].train.inputs
        before = other.predict(inputs).softmax(1)
        learn(other, stream[1])
        drift[strength] = (other.predict(inputs)[:, :2].softmax(1) - before).abs().mean().item()
    assert drift[30.0] < 0.5 * drift[0.0]


def test_a_transformer_layer_needs_the_states_of_one_layer() -> None:
    with pytest.raises(EverlearnError, match=r"method\.layer: a transformer layer reads one state per token"):
        methods.get("extra_layers")(backbones.load("tiny@layers=2"), layer="transformer")
