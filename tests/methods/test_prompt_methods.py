"""What the papers of the prompt family claim and the contract cannot know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everlearn import backbones, engine, methods
from everlearn.errors import EverlearnError, EverlearnWarning
from everlearn.evaluation import TOLD, Evaluation
from everlearn.features import FeatureStore, using_store
from everlearn.heads.linear import append_rows
from everlearn.losses import sparsemax
from everlearn.memory.moments import Moments
from everlearn.memory.selection import Selection
from everlearn.method import Method
from everlearn.methods.coda_prompt import orthogonal_rows
from everlearn.peft.generator import Generator, given
from everlearn.streams.stream import Examples, Stream
from everlearn.testing import check_method, session, toy_stream

QUICK = {"epochs": 2, "batch_size": 8, "lr": 0.01}


def build(name: str, **settings) -> Method:
    return methods.get(name)(backbones.load("tiny"), **{**QUICK, **settings})


def choice(method: Method, examples: Examples, learning: bool = False) -> torch.Tensor:
    """The prompts that the method chooses for each example, (n, …)."""
    return method.choose(method.backbone.encode(examples.inputs), learning)


def learn(method: Method, stream: Stream, tasks: int = 3) -> Method:
    session(method, replace(stream, tasks=stream.tasks[:tasks])).learn()
    return method


# -- L2P ---------------------------------------------------------------------------------------
def test_the_mask_gives_every_task_prompts_of_its_own():
    stream, method = toy_stream(), build("l2p", pool_size=6, selected=2, diversify="mask")
    for task in stream:
        method.begin_task(task.sealed())
        chosen = choice(method, task.train, learning=True)
        assert chosen.unique().tolist() == [2 * task.index, 2 * task.index + 1]
    free = choice(method, stream[2].train)
    assert free.shape == (len(stream[2].train), 2)  # at test no mask: the nearest keys


def test_where_the_mask_has_used_up_the_pool_the_keys_choose():
    stream, method = toy_stream(), build("l2p", pool_size=5, selected=2, diversify="mask")
    for task in stream:
        method.begin_task(task.sealed())
    assert torch.equal(choice(method, task.train, learning=True), choice(method, task.train))  # of 4 and 5, 5 is none


def test_frequency_keeps_a_task_away_from_prompts_chosen_before():
    stream, method = toy_stream(), build("l2p", pool_size=30, selected=2, diversify="frequency")
    learn(method, stream, tasks=1)
    used = set(method.chosen.counts[0].nonzero()[:, 0].tolist())
    method.begin_task(stream[1].sealed())
    chosen = set(choice(method, stream[1].train, learning=True).flatten().tolist())
    assert len(used) < 28 and not chosen & used  # a prompt that was never chosen has distance times zero


def test_a_growing_pool_keeps_its_old_prompts():
    stream, method = toy_stream(), build("l2p", pool_size=4, selected=2, grow=3)
    learn(method, stream, tasks=1)
    before = method.prompts.detach().clone()
    method.begin_task(stream[1].sealed())
    assert len(method.prompts) == len(method.keys) == 7 and torch.equal(method.prompts[:4], before)


def test_what_l2p_classifies_is_the_output_of_its_prompts_or_the_pooled_feature():
    inputs = toy_stream()[0].test.inputs[:5]
    for readout in ("prompts", "pooled"):
        method = build("l2p", pool_size=4, length=3, selected=2, readout=readout).eval()
        chosen = torch.tensor([[0, 2]]).expand(5, -1)
        with torch.no_grad(), method.inserted.given(method.prompts[chosen].flatten(1, 2)):
            states, mask, count = method.backbone.hidden(method.backbone.prepare(inputs))
        assert count == 6
        own, text = states[:, -6:].mean(1), states[:, :-6] * mask[:, :-6, None]
        expected = own if readout == "prompts" else text.sum(1) / mask[:, :-6].sum(1, keepdim=True)
        with torch.no_grad():
            found = method.prompted(inputs, chosen)
        assert torch.allclose(found, expected, atol=1e-6) and not torch.allclose(own, text.mean(1), atol=1e-3)


def test_paper_compat_votes_by_batch_and_the_default_does_not():
    stream = toy_stream()
    for compat in (False, True):
        method = build("l2p", pool_size=6, selected=1, batch_size=8, paper_compat=compat)
        method.begin_task(stream[0].sealed())
        with torch.no_grad():
            method.keys.copy_(method.backbone.encode(stream[0].train.inputs)[:6])
        chosen = choice(method, stream[0].train).flatten()
        votes = [len(group.unique()) for group in chosen.split(8)]
        assert (max(votes) == 1) == compat


def test_own_prompts_are_all_under_the_mask_and_a_share_in_a_shared_pool():
    stream = toy_stream()
    masked = learn(build("l2p", pool_size=9, selected=3, diversify="mask"), stream)
    for index in range(3):
        given = torch.arange(9)[None]  # every prompt once, a third of them the task's
        assert masked.chosen.own(given[:, 3 * index : 3 * index + 3], index) == 1
        assert masked.chosen.own(given, index) == pytest.approx(1 / 3)
    for name, key in (("l2p", "own prompts"), ("coda_prompt", "own components")):
        shares = [learn(build(name), stream).measures(task.test.inputs, task.index)[key] for task in stream]
        assert all(0 <= share <= 1 for share in shares) and 0 < sum(shares) < len(shares)


def test_a_collapse_of_the_selection_is_warned_of_and_a_spread_is_not():
    keys = torch.eye(10)
    collapsed = Selection()
    collapsed.record(torch.zeros(50, 2, dtype=torch.long) + torch.tensor([0, 1]), keys)
    with pytest.warns(EverlearnWarning, match="2.0 of 10 prompts"):
        collapsed.record(torch.zeros(50, 2, dtype=torch.long) + torch.tensor([0, 1]), keys)
    spread = Selection()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: pytest.fail("warned of a spread selection"))
        for first in (0, 4):
            spread.record(torch.arange(first, first + 4).reshape(2, 2), keys)
    assert spread.drift.tolist() == [0.0, 0.0]
    spread.record(torch.arange(4).reshape(2, 2), -keys)
    assert spread.drift[-1] == pytest.approx(2.0)


# -- DualPrompt --------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{}, {"form": "prompt", "general_length": 6, "expert_length": 6}])
def test_dual_prompt_follows_a_permutation_of_the_batch(settings):
    stream = toy_stream()
    method = learn(build("dual_prompt", **settings), stream, tasks=2)
    examples = Examples.concatenate([task.test for task in stream.tasks[:2]])
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    # In one forward pass, not in length-sorted ones: this is where the ports mixed keys with values.
    expert = choice(method, examples)
    together = method.prompted(examples.inputs, expert)
    shuffled = method.prompted(examples[order].inputs, expert[order])
    assert torch.allclose(together[order], shuffled, atol=1e-5)


def test_dual_prompt_trains_the_general_and_its_own_expert_only():
    stream, method = toy_stream(), build("dual_prompt")
    learn(method, stream, tasks=2)
    experts, keys, general = (p.detach().clone() for p in (method.experts, method.keys, method.general))
    learn_next(method, stream, 2)
    assert torch.equal(method.experts[:2], experts) and torch.equal(method.keys[:2], keys)
    assert not torch.equal(method.general, general)


def test_a_new_expert_starts_as_a_copy_of_the_last():
    stream, method = toy_stream(), build("dual_prompt")
    learn(method, stream, tasks=2)
    method.begin_task(stream[2].sealed())
    assert torch.equal(method.experts[2], method.experts[1]) and not torch.equal(method.experts[1], method.experts[0])
    assert not torch.equal(method.keys[2], method.keys[1])


def learn_next(method: Method, stream: Stream, index: int) -> None:
    """Train a method that has seen `index` tasks on the next one."""
    task = stream[index]
    method.begin_task(task.sealed())
    optimizer = method.Optimizer(method.param_groups(), lr=0.05)
    for batch in method.batches(task):
        optimizer.zero_grad()
        method.loss(batch).backward()
        optimizer.step()


def test_dual_prompt_refuses_lengths_that_do_not_fit():
    for wrong in ({"expert_length": 5}, {"form": "prompt", "general_length": 4, "expert_length": 6}):
        with pytest.raises(EverlearnError):
            build("dual_prompt", **wrong)


@pytest.mark.parametrize(("general", "experts", "is_fit"), [
    ((1,), (0,), True), ((), (0, 1), True), ((0,), (1,), True), ((1,), (5,), False), ((), (1,), False),
])  # fmt: skip
def test_dual_prompt_adds_prompts_before_block_0_or_refuses(general, experts, is_fit):
    settings = {"form": "prompt", "general_length": 4, "expert_length": 4}
    settings |= {"general_blocks": general, "expert_blocks": experts}
    if not is_fit:
        with pytest.raises(EverlearnError, match="before block 0, which is in neither"):
            build("dual_prompt", **settings)
        return
    stream, method = toy_stream(tasks=1), build("dual_prompt", **settings)
    learn(method, stream, tasks=1)
    assert method.predict(stream[0].test.inputs).isfinite().all()


# -- CODA-Prompt -------------------------------------------------------------------------------
@pytest.mark.parametrize("attention", ["dense", "topk", "sparsemax"])
def test_coda_keeps_old_components_bit_for_bit_and_starts_new_ones_orthogonal(attention):
    stream, method = toy_stream(), build("coda_prompt", components=4, attention=attention, kept=3)
    learn(method, stream, tasks=1)
    names = ("prompts", "keys", "focus")
    before = {name: getattr(method, name).detach().clone() for name in names}
    method.begin_task(stream[1].sealed())
    for name in names:
        rows = torch.nn.functional.normalize(getattr(method, name).detach().flatten(2), dim=-1)
        gram = torch.einsum("mbd,nbd->bmn", rows[4:], rows)
        assert gram[:, :, :4].abs().max() < 1e-5
        assert torch.allclose(gram[:, :, 4:], torch.eye(4).expand(2, 4, 4), atol=1e-5)
    learn_next(method, stream, 1)  # begins the task once more: twelve components
    for name in names:
        assert torch.equal(getattr(method, name)[:4], before[name])
        assert not torch.equal(getattr(method, name)[-4:].detach(), before[name])


def test_coda_weights_are_the_formula_without_softmax():
    stream, method = toy_stream(), build("coda_prompt", components=3)
    method.begin_task(stream[0].sealed())
    queries = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for n, m, b in ((0, 0, 0), (4, 2, 1)):
        a, k = queries[n] * method.focus[m, b], method.keys[m, b]
        expected = (a @ k) / (a.norm() * k.norm())
        assert method.weights(queries)[n, m, b].item() == pytest.approx(expected.item(), abs=1e-5)


def test_sparse_attention_leaves_few_components():
    stream = toy_stream()
    for attention, most in (("topk", 2), ("sparsemax", 6)):
        method = build("coda_prompt", components=8, attention=attention, kept=2)
        method.begin_task(stream[0].sealed())
        used = (method.weights(method.backbone.encode(stream[0].train.inputs)) != 0).sum(1)
        assert used.max() <= most


def test_sparsemax_is_the_projection_on_the_simplex():
    z = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = sparsemax(z)
    assert torch.allclose(p.sum(1), torch.ones(20, dtype=torch.float64)) and (p >= 0).all()
    # Nearest: no other point of the simplex is nearer; the optimality condition of the projection.
    others = torch.rand(1000, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    others = others / others.sum(-1, keepdim=True)
    assert (((z - p) * (others - p)).sum(-1) <= 1e-9).all()


def test_more_components_than_dimensions_are_unit_rows_still():
    rows = orthogonal_rows(torch.randn(6, 2, 8), 5)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(5, 2), atol=1e-5)


# -- DAP and VPT -------------------------------------------------------------------------------
def test_dap_freezes_its_position_maps_after_the_first_task():
    stream, method = toy_stream(), build("dap", positions=40)
    zero = [generator.condense.weight.detach().clone() for generator in method.generators]
    learn(method, stream, tasks=1)
    first = [generator.condense.weight.detach().clone() for generator in method.generators]
    assert all((z == 0).all() for z in zero) and any((f != 0).any() for f in first)
    learn_next(method, stream, 1)
    assert all(torch.equal(generator.condense.weight, f) for generator, f in zip(method.generators, first, strict=True))


def test_a_new_task_embedding_starts_as_a_copy_of_the_last():
    stream, method = toy_stream(), build("dap")
    learn(method, stream, tasks=1)
    method.begin_task(stream[1].sealed())
    assert torch.equal(method.tasks[1], method.tasks[0]) and not torch.equal(method.keys[1], method.keys[0])


def test_generated_prompts_are_their_formula():
    draw = torch.Generator().manual_seed(0)
    generator = Generator(6, length=2, positions=5, embedding=3, replaces=False)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(generator=draw)
    tokens, tasks = torch.randn(2, 4, 6, generator=draw), torch.randn(2, 3, generator=draw)
    with given(torch.nn.ModuleList([generator]), tasks, torch.ones(2, 4)):
        found = generator(tokens, tokens)
    assert torch.equal(found[:, :4], tokens)
    a, b = generator.condense.weight, generator.condense.bias
    for n in range(2):
        scale, shift = (generator.film.weight @ tasks[n] + generator.film.bias).split(6)
        centred = tokens[n] - tokens[n].mean(1, keepdim=True)
        normalised = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        normalised = normalised * generator.norm.weight + generator.norm.bias
        for p in range(2):
            condensed = sum(a[p, position] * normalised[position] for position in range(4)) + b[p]
            expected = scale / scale.norm() * condensed + shift / shift.norm()
            assert torch.allclose(found[n, 4 + p], expected, atol=1e-5)


def test_dap_leaves_old_keys_and_embeddings_and_paper_compat_lets_momentum_move_them():
    for compat in (False, True):
        stream, method = toy_stream(), build("dap", paper_compat=compat)
        learn(method, stream, tasks=1)
        old = method.keys[0].detach().clone(), method.tasks[0].detach().clone()
        engine.learn(method, stream[1])
        moved = [not torch.equal(now[0], before) for now, before in zip((method.keys, method.tasks), old, strict=True)]
        assert moved == [compat, compat]


def test_moments_make_the_optimizers_of_all_tasks_one():
    draw = torch.Generator().manual_seed(0)
    whole, rows, moments = torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(2, 3)), Moments()
    single = torch.optim.Adam([whole], lr=0.1, amsgrad=True)
    for known in (2, 4):  # in the first task the last two rows are not there, or their gradient is zero
        rows = append_rows(rows, torch.ones(known - len(rows), 3))
        moments.grow({"rows": rows})
        own = torch.optim.Adam([rows], lr=0.1, amsgrad=True)
        for _ in range(3):
            rows.grad = torch.randn(known, 3, generator=draw)
            whole.grad = torch.zeros(4, 3)
            whole.grad[:known] = rows.grad
            single.step()
            with moments.carried(own, {"rows": rows}):
                own.step()
    assert torch.equal(rows, whole)


@pytest.mark.parametrize("check", ["resumes_exactly", "a_copy_is_independent"])
def test_dap_with_paper_compat_keeps_its_optimizer_in_the_checkpoint(check):
    check_method(methods.get("dap"), only=check, paper_compat=True, **QUICK)


def test_paper_compat_starts_every_embedding_at_random():
    stream, method = toy_stream(), build("dap", paper_compat=True)
    for task in stream:
        method.begin_task(task.sealed())
    assert len(method.tasks.unique(dim=0)) == 3


def test_the_batch_votes_for_one_task_in_dap_with_paper_compat_only():
    stream = toy_stream()
    inputs = [task.test.inputs[n] for n in range(4) for task in stream]
    for compat in (False, True):
        method = build("dap", batch_size=5, paper_compat=compat)
        for task in stream:
            method.begin_task(task.sealed())
        queries = method.backbone.encode(inputs)
        with torch.no_grad():
            method.keys.copy_(queries[:3])
        nearest = torch.nn.functional.cosine_similarity(queries[:, None], queries[None, :3], dim=2).argmax(1)
        assert len(nearest.unique()) == 3
        for chosen, own in zip(method.choose(queries).split(5), nearest.split(5), strict=True):
            most = own.bincount().max()
            assert (len(chosen.unique()) == 1 and (own == chosen[0]).sum() == most) if compat else chosen.equal(own)


def test_dap_ignores_padding():
    stream = toy_stream()
    method = learn(build("dap", positions=40), stream, tasks=1)
    with torch.no_grad():
        for generator in method.generators:
            generator.condense.weight.normal_()
    short, long = "word0x1", "word1x2 " * 20
    tasks = torch.zeros(2, dtype=torch.long)
    padded, alone = method.prompted([short, long], tasks)[0], method.prompted([short], tasks[:1])[0]
    assert torch.allclose(padded, alone, atol=1e-5)


def test_deep_prompts_are_replaced_and_shallow_ones_pass_through():
    shallow, deep = build("vpt", train="prompt"), build("vpt", train="deep_prompt")
    texts = ["one two three", "four"]
    for method, count in ((shallow, 1), (deep, 2)):
        assert len(method.deltas) == count
        hidden = method.backbone.hidden(method.backbone.prepare(texts))
        assert hidden.prompts == 5 and hidden.states.shape[1] == 4 + 5
    before = deep.backbone(texts)
    with torch.no_grad():
        deep.deltas[1].vectors.add_(torch.randn(5, 32))
    assert not torch.allclose(deep.backbone(texts), before, atol=1e-3)


@pytest.mark.parametrize("name", ["l2p", "dual_prompt", "coda_prompt", "dap"])
def test_every_example_is_encoded_once_for_its_query(name, tmp_path):
    stream = toy_stream()
    with using_store(FeatureStore(tmp_path / "own")) as opened:
        learn(build(name, epochs=3), stream)
    texts = {text for task in stream for part in (task.train, task.test) for text in part.inputs}
    assert opened.encoded == len(texts)


# -- an insertion per task, and APER --------------------------------------------------------------
def test_insertions_of_earlier_tasks_never_change_and_the_router_alone_loses():
    stream = toy_stream()
    method = learn(build("task_adapters", epochs=8), stream, tasks=1)
    old = {name: p.detach().clone() for name, p in [*method.insertions[0].named_parameters(),
                                                    *method.heads[0].named_parameters()]}  # fmt: skip
    alone = Evaluation(stream, method).others(stream[0])[TOLD]
    for index in (1, 2):
        learn_next(method, stream, index)
        method.end_task(stream[index])
    now = dict([*method.insertions[0].named_parameters(), *method.heads[0].named_parameters()])
    assert all(torch.equal(now[name], value) for name, value in old.items())
    measured = Evaluation(stream, method).others(stream[0])
    assert measured[TOLD] == alone  # a head that is told its task forgets nothing
    right = method.predict(stream[0].test.inputs).argmax(1) == stream[0].test.labels
    assert right.double().mean().item() <= min(1.0, measured["router accuracy"] + 1e-9)


@pytest.mark.parametrize("train", ["adaptformer", "ssf", "prompt", "deep_prompt", "full"])
def test_aper_adapts_once_and_is_the_nearest_mean_of_both_features(train):
    stream = toy_stream()
    method = build("aper", train=train, lr=0.1)
    untouched = method.backbone.digests()
    learn(method, stream, tasks=1)
    adapted = {name: p.detach().clone() for name, p in method.adapted.named_parameters()}
    features = method.embed(stream[0].test.inputs)
    assert features.shape[1] == 64 and not torch.equal(features[:, :32], features[:, 32:])
    whole = learn(build("aper", train=train, lr=0.1), stream)
    assert all(torch.equal(p, adapted[name]) for name, p in whole.adapted.named_parameters())
    assert whole.backbone.digests() == untouched
    learned = Examples.concatenate([task.train for task in stream])
    seen = whole.embed(learned.inputs).double()
    means = torch.stack([seen[learned.labels == k].mean(0) for k in range(6)])
    asked = whole.embed(stream[2].test.inputs).double()
    expected = torch.nn.functional.cosine_similarity(asked[:, None], means[None], dim=2)
    torch.testing.assert_close(whole.predict(stream[2].test.inputs).double(), expected, rtol=1e-4, atol=1e-5)
