"""ESN: what the paper claims of its stages, its energies and its vote."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from everlearn import backbones
from everlearn.backbones.tiny import TinyBackbone
from everlearn.engine import learn
from everlearn.heads.stages import Stages, lifted, vote
from everlearn.methods import ESN
from everlearn.testing import check_method, toy_stream

SMALL = {"epochs": 4, "batch_size": 8, "length": 3, "lr": 0.03}
OUT = -math.inf


def learned(stream, **settings) -> ESN:
    method = ESN(backbones.load("tiny"), **{**SMALL, **settings})
    for task in stream:
        learn(method, task)
    return method


def test_states_of_any_width_are_divided_into_equal_heads() -> None:
    method = ESN(TinyBackbone(width=200), length=3)
    method.begin_task(toy_stream()[0].sealed())
    assert method.head[0].attention.attention.num_heads == 2 and method.predict(["a sofa"]).shape == (1, 2)


def by_hand(stages: list[list[float]], temperatures: list[float]) -> int:
    """The vote as the paper defines it, on the scores of each stage alone."""

    def energy(scores, t):
        top = max(scores)
        return -top - t * math.log(sum(math.exp((z - top) / t) for z in scores))

    chosen = [min(range(len(stages)), key=lambda s, t=t: energy(stages[s], t)) for t in temperatures]
    most = max(map(chosen.count, chosen))
    tied = [s for s in sorted(set(chosen)) if chosen.count(s) == most]
    return min(tied, key=lambda s: energy(stages[s], 1.0))


def table(stages: list[list[float]]) -> torch.Tensor:
    """(1, stages, classes): each stage knows classes that the others do not."""
    scores, first = torch.full((1, len(stages), sum(map(len, stages))), OUT), 0
    for number, own in enumerate(stages):
        scores[0, number, first : first + len(own)] = torch.tensor(own)
        first += len(own)
    return scores


@pytest.mark.parametrize(("stages", "temperatures", "expected"), [
    ([[4.0, 0.0], [3.5, 3.5]], [0.01, 0.1, 1.0], 0),  # the highest score wins the cold votes
    ([[4.0, 0.0], [3.5, 3.5]], [0.01, 0.9, 1.0], 1),  # two scores together win the warm ones
    ([[4.0], [3.5, 3.5]], [0.01, 1.0], 1),  # one vote each: the lower energy at temperature 1
    ([[5.0, 1.0, 1.0], [4.9], [4.9, 4.8]], [0.01, 0.02, 0.8, 0.9, 1.0], 2),
])  # fmt: skip
def test_the_vote_equals_its_definition(stages, temperatures, expected):
    assert by_hand(stages, temperatures) == expected
    assert vote(table(stages), torch.tensor(temperatures)).tolist() == [expected]


def test_the_vote_equals_its_definition_on_random_scores():
    generator = torch.Generator().manual_seed(0)
    temperatures = [0.001, 0.1, 0.5, 1.0]
    for _ in range(200):
        sizes = torch.randint(1, 5, (3,), generator=generator).tolist()
        stages = [(10 + torch.randn(size, generator=generator)).tolist() for size in sizes]
        assert vote(table(stages), torch.tensor(temperatures)).item() == by_hand(stages, temperatures)


def test_the_best_score_is_that_of_the_chosen_stage():
    generator = torch.Generator().manual_seed(0)
    scores = torch.cat([table(torch.randn(3, 2, generator=generator).tolist()) for _ in range(50)])
    stages = torch.randint(0, 3, (50,), generator=generator)
    answered = lifted(scores, stages)
    own = scores[torch.arange(50), stages]
    assert torch.equal(answered.argmax(1), own.argmax(1)) and answered.isfinite().all()
    assert torch.equal(answered[own.isfinite()], own[own.isfinite()])
    for row in range(50):  # the others keep their order
        others = scores[row].amax(0)[own[row] == OUT]
        assert torch.equal(others.argsort(), answered[row][own[row] == OUT].argsort())


def test_a_class_of_several_stages_has_the_score_of_the_chosen_one():
    scores = torch.tensor([[[2.0, 1.0], [0.0, 5.0]]])
    assert lifted(scores, torch.tensor([0])).tolist() == [[2.0, 1.0]]
    assert lifted(scores, torch.tensor([1])).tolist() == [[0.0, 5.0]]


def test_old_stages_and_the_prompt_never_change():
    stream = toy_stream(per_class=8)
    method = ESN(backbones.load("tiny"), **SMALL)
    kept: dict[str, torch.Tensor] = {}
    for task in stream:
        learn(method, task)
        state = method.state_dict()
        assert all(torch.equal(state[name], before) for name, before in kept.items())
        kept |= {
            name: tensor.clone()
            for name, tensor in state.items()
            if name.startswith((f"head.{task.index}.", "prompt."))
        }
    assert len([name for name in kept if name.startswith("prompt.")]) == 1


def test_what_is_stored_grows_by_one_stage_a_task():
    method, stored = ESN(backbones.load("tiny"), **SMALL), []
    for task in toy_stream(tasks=4):
        method.begin_task(task.sealed())
        own = {name: tensor for name, tensor in method.state_dict().items() if not name.startswith("backbone.")}
        stored.append(sum(tensor.nbytes for tensor in own.values()))
    stage = sum(tensor.nbytes for tensor in method.head[0].state_dict().values())
    growth = [after - before for before, after in itertools.pairwise(stored)]
    assert growth == 3 * [stage + 4]  # and the four bytes of a temperature


@pytest.mark.parametrize("paper_compat", [False, True])
def test_training_pulls_the_energy_to_the_anchor(paper_compat):
    stream = toy_stream(tasks=1)
    texts, distances = stream[0].train.inputs, []
    for strength in (0.0, 0.1):
        method = learned(stream, strength=strength, anchor=5.0, epochs=10, lr=0.03, paper_compat=paper_compat)
        with torch.no_grad():
            distances.append((method.energy(method.stage_scores(texts)[:, 0]) + 5).abs().mean().item())
    assert distances[1] < distances[0] / 2


@pytest.mark.parametrize("paper_compat", [False, True])
def test_a_new_stage_begins_at_the_anchor(paper_compat):
    method, stream = ESN(backbones.load("tiny"), beta=0.5, paper_compat=paper_compat, **SMALL), toy_stream()
    method.begin_task(stream[0].sealed())
    energies = method.energy(method.stage_scores(stream[0].train.inputs)[:, 0])
    assert torch.allclose(energies, torch.full_like(energies, -10), atol=0.3)


def test_the_energy_is_that_of_the_paper_or_of_the_released_code():
    scores = torch.tensor([[1.0, 3.0]])
    paper, released = (ESN(backbones.load("tiny"), beta=2.0, paper_compat=compat) for compat in (False, True))
    assert paper.energy(scores).item() == pytest.approx(-math.log(math.exp(2) + math.exp(6)) / 2, rel=1e-6)
    assert released.energy(scores).item() == pytest.approx(-math.log(math.exp(-2) + math.exp(-6)) / 2, rel=1e-6)


def test_the_kept_temperature_finds_the_new_stage_most_often():
    stream = toy_stream()
    method = learned(stream, temperatures=(5.0, 0.01, 1.0))
    scores = method.stage_scores(stream[2].train.inputs)
    shares = [((scores / t).logsumexp(2).argmax(1) == 2).float().mean().item() for t in method.candidates]
    assert method.kept[2].item() == pytest.approx(method.candidates[shares.index(max(shares))])
    assert method.kept[0].item() == 5.0  # there was nothing to tell the first stage from


def test_tasks_of_different_sizes_and_a_task_that_is_told():
    head = Stages(32)
    for classes in ([2, 0, 1], [3], [0, 4]):
        head.add(classes)
    scores = head(torch.randn(2, 5, 32), torch.ones(2, 5))
    assert scores.isfinite()[0].tolist() == [[True, True, True, False, False], [False, False, False, True, False],
                                             [True, False, False, False, True]]  # fmt: skip
    stream = toy_stream()
    told = learned(stream).predict(stream[0].test.inputs, task=1)
    assert (told.argmax(1) // 2 == 1).all()


@pytest.mark.parametrize("check", ["resumes_exactly", "a_prediction_depends_on_its_example_alone"])
def test_without_a_prompt(check):
    check_method(ESN, only=check, **{**SMALL, "length": 0})


def test_the_frozen_states_have_no_gradient_after_the_first_task():
    stream = toy_stream()
    method = learned([stream[0]])
    method.begin_task(stream[1].sealed())
    assert not method._states(stream[1].train.inputs[:2])[0].requires_grad
    assert all(not p.requires_grad for p in method.head[0].parameters())


def test_domains_with_the_same_classes():
    stream = toy_stream(kind="domain-incremental")
    method = learned(stream)
    scores = method.stage_scores(stream[0].test.inputs)
    assert scores.shape[1:] == (3, 2) and scores.isfinite().all()
    answers = method.predict(stream[0].test.inputs)
    assert (answers.argmax(1) == stream[0].test.labels).float().mean() > 0.7
