"""Features of several layers: each pooled as the last one, from one pass."""

import pytest
import torch
from torch.nn.functional import normalize

from everlearn import backbones, methods
from everlearn.errors import EverlearnError
from everlearn.evaluation import supports
from everlearn.peft.unified import insert
from everlearn.protocol import run
from everlearn.testing import tiny_pair, toy_stream

TEXTS = ["a cup of tea", "please cancel my card, it was stolen yesterday", "hi"]


def test_the_layers_of_minilm_are_the_pooled_hidden_states_of_transformers():
    one, three = backbones.load("minilm"), backbones.load("minilm@layers=3")
    one.precision = three.precision = "float32"
    prepared = one.prepare(TEXTS)
    with torch.no_grad():
        states = one.model(**prepared, output_hidden_states=True).hidden_states[-3:]
        mask = prepared["attention_mask"][..., None]
        wanted = [normalize((layer * mask).sum(1) / mask.sum(1), dim=1) for layer in states]
        torch.testing.assert_close(three(TEXTS), torch.cat(wanted, 1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(three(TEXTS)[:, -384:], one(TEXTS), rtol=1e-4, atol=1e-5)
    assert (three.width, three.hidden_width, three.name) == (1152, 384, "minilm@layers=3")
    assert one.identity() != three.identity()


def test_the_states_of_a_pre_norm_model_go_through_its_last_normalisation():
    two = backbones.load("tiny@layers=2")
    outputs = []
    hook = two.blocks[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    feature = two(TEXTS)
    hook.remove()
    hidden = two.hidden(two.prepare(TEXTS))
    first = two.pool(hidden._replace(states=two.norm(outputs[0])))
    torch.testing.assert_close(feature[:, :32], normalize(first, dim=1))
    torch.testing.assert_close(feature[:, 32:], normalize(two.pool(hidden), dim=1))


def test_an_insertion_is_felt_in_every_layer_and_added_tokens_are_not_pooled():
    two = backbones.load("tiny@layers=2")
    before = two(TEXTS)
    insert(two, "prompt")
    after = two(TEXTS)
    assert after.shape == before.shape
    assert not torch.allclose(after[:, :32], before[:, :32], atol=1e-4)
    assert not torch.allclose(after[:, 32:], before[:, 32:], atol=1e-4)
    after.sum().backward()
    assert all(p.grad.abs().sum() > 0 for delta in two.attached for p in delta.parameters())


@pytest.mark.parametrize("method", ["logistic", "lda", "aper", "er", "task_adapters"])
def test_methods_learn_on_several_layers(method):
    result = run(method, toy_stream(), backbone="tiny@layers=2")
    assert result.final_accuracy > 0.3


@pytest.mark.parametrize("method", ["vpt", "l2p", "dual_prompt", "coda_prompt", "dap"])
def test_methods_that_pool_themselves_are_refused(method):
    with pytest.raises(EverlearnError, match="pools the last layer itself"):
        run(method, toy_stream(), backbone="tiny@layers=2")
    assert supports(methods.get(method).tags, toy_stream(), backbones.load("tiny")) is None


@pytest.mark.parametrize("name", ["tiny@layers=0", "tiny@layers=3", "tiny@layers=x", "tiny@layers=", "tiny@layers=²"])
def test_a_number_of_layers_that_there_is_not(name):
    with pytest.raises(EverlearnError, match="give a number"):
        backbones.load(name)


def test_a_pair_of_encoders_has_no_several_layers():
    pair = tiny_pair()
    with pytest.raises(EverlearnError, match=r"compares the features of two encoders, .* leave @layers= out"):
        pair.take_layers(2)
    pair.take_layers(1)
    assert (pair.layers, pair.width) == (1, 32)
