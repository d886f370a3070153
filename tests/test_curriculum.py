"""Easy, medium and hard examples, and the orders in which they are learned."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from everlearn import backbones, methods
from everlearn.batches import Batches
from everlearn.curriculum import EASY, HARD, MEDIUM, REPEATS, Curriculum, bands
from everlearn.engine import Listener, learn
from everlearn.errors import EverlearnError
from everlearn.losses import cross_entropy
from everlearn.streams.stream import Examples
from everlearn.testing.case import session, snapshot, stop_in_second_task
from everlearn.testing.toy import toy_stream

SETTINGS = {"train": "head", "epochs": 6, "batch_size": 4, "rescore": 5}


def scores(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows).log()


@pytest.mark.parametrize(("probabilities", "band"), [
    ((0.98, 0.01, 0.01), EASY), ((0.85, 0.09, 0.06), EASY),
    ((0.85, 0.11, 0.04), MEDIUM), ((0.51, 0.49, 0.0), MEDIUM), ((0.4, 0.3, 0.3), MEDIUM),
    ((0.3, 0.6, 0.1), HARD),  # a confident false positive
    ((0.3, 0.36, 0.34), HARD),  # the right class is not found, though nothing is confident
    ((0.5, 0.5, 0.0), HARD),  # nothing tells the two apart
    ((1.0, 0.0, 0.0), EASY), ((0.0, 1.0, 0.0), HARD),
])  # fmt: skip
def test_bands_of_hand_made_cases(probabilities: tuple[float, ...], band: int) -> None:
    assert bands(scores(probabilities), torch.tensor([0])).tolist() == [band]


def test_bands_have_every_example_once_and_move_with_their_thresholds() -> None:
    draw = torch.Generator().manual_seed(0)
    given, labels = 3 * torch.randn(500, 6, generator=draw), torch.randint(6, (500,), generator=draw)
    found = bands(given, labels)
    right = given.argmax(1) == labels
    assert set(found.tolist()) == {EASY, MEDIUM, HARD} and len(found) == 500
    assert (found[~right] == HARD).all() and (found[right] != HARD).all(), "with 0.5, hard is what is answered wrong"
    strict = bands(given, labels, confident=0.2)
    assert ((strict == HARD) >= (found == HARD)).all() and (strict[right] == HARD).any()
    assert (bands(given, labels, doubtful=0.0)[right] == MEDIUM).all()
    assert bands(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)).tolist() == [EASY, EASY], "with a single class"
    masked = given.masked_fill(torch.arange(6) > 3, -torch.inf)[labels < 4]
    assert torch.equal(bands(masked, labels[labels < 4]), bands(given[:, :4][labels < 4], labels[labels < 4]))


class Known:
    """A method whose scores are given; it counts how often it is asked."""

    masked = False

    def __init__(self, probabilities: torch.Tensor) -> None:
        self.probabilities, self.asked = probabilities, 0

    def current_scores(self, inputs: list[str]) -> torch.Tensor:
        self.asked += 1
        return self.probabilities.log()

    def eval(self) -> None:
        pass

    train = eval


EXAMPLES = Examples([f"text {n}" for n in range(24)], torch.zeros(24, dtype=torch.long), list(map(str, range(24))))
OF = {EASY: range(12), MEDIUM: range(12, 20), HARD: range(20, 24)}


def ordered(order: str, every: int = 6) -> tuple[Batches, Known]:
    method = Known(torch.tensor([[0.95, 0.05]] * 12 + [[0.7, 0.3]] * 8 + [[0.1, 0.9]] * 4))
    plain = Batches(EXAMPLES, 3, 4, seed=1)
    return Curriculum(order, every).ordered(plain, method), method  # type: ignore[arg-type]


def seen(batches: Batches, steps: range) -> Counter[int]:
    rows = [int(name) for step in steps for name in batches[step].ids]
    return Counter(next(band for band, members in OF.items() if row in members) for row in rows)


def test_easy_first_and_its_reverse_widen_by_thirds_and_take_equally_many_steps() -> None:
    easy, method = ordered("easy first")
    assert len(easy) == 18 and all(len(easy[step]) == 4 for step in range(18))
    easy, method = ordered("easy first")  # from the start again, as batches are asked for in order
    assert set(seen(easy, range(6))) == {EASY} and set(seen(easy, range(6, 12))) == {EASY, MEDIUM}
    assert set(seen(easy, range(12, 18))) == {EASY, MEDIUM, HARD} and method.asked == 3
    assert seen(easy, range(12, 18)) == Counter({EASY: 12, MEDIUM: 8, HARD: 4}), "at last all, each once an epoch"
    hard, _ = ordered("hard first")
    assert set(seen(hard, range(6))) == {HARD, MEDIUM}, "the four hard ones alone would be drawn six times each"
    assert set(seen(hard, range(6, 12))) == {HARD, MEDIUM}
    mixed, _ = ordered("mixed")
    assert seen(mixed, range(6)) == Counter({EASY: 8, MEDIUM: 8, HARD: 8}), "a third each"


def test_a_band_of_few_is_not_learned_by_heart() -> None:
    mixed, _ = ordered("mixed", every=18)
    found = seen(mixed, range(18))
    assert found[HARD] == 4 * REPEATS and found.total() == 72
    assert found[MEDIUM] == found[EASY] == 28


def test_a_band_that_fills_no_batch_is_joined_by_the_next() -> None:
    curriculum = Curriculum("easy first", 5)
    curriculum.bands = torch.tensor([HARD, HARD, MEDIUM, EASY])
    assert curriculum.allowed(0, 1).tolist() == [3] and curriculum.allowed(0, 2).tolist() == [2, 3]
    assert curriculum.allowed(0, 9).tolist() == [0, 1, 2, 3]
    curriculum = Curriculum("hard first", 5)
    curriculum.bands = torch.tensor([EASY] * 3)
    assert curriculum.allowed(0, 1).tolist() == [0, 1, 2], "nothing is hard"


def test_bands_follow_the_model_as_it_learns() -> None:
    class Watch(Listener):
        def __init__(self) -> None:
            self.easy: list[int] = []

        def stepped(self, learning) -> None:
            self.easy.append(int((learning.method.curriculum.bands == EASY).sum()))

    method = methods.get("finetune")(backbones.load("tiny"), order="easy first", lr=1e-3, **{**SETTINGS, "epochs": 10},
                                     head_lr=0.1)  # fmt: skip
    watch = Watch()
    learn(method, toy_stream("text", tasks=2, per_class=6).tasks[0], watch)
    assert len(set(watch.easy[:5])) == 1, "told anew every fifth step only"
    assert watch.easy[0] < watch.easy[-1], "what was confused at first is easy at last"


@pytest.mark.parametrize(("name", "order"), [
    ("finetune", "easy first"), ("finetune", "mixed"), ("lwf", "hard first"), ("task_adapters", "easy first"),
    ("l2p", "hard first"), ("aper", "mixed"),
])  # fmt: skip
def test_a_run_that_was_stopped_draws_the_same_batches_again(name: str, order: str, tmp_path: Path) -> None:
    settings = {"epochs": 6, "batch_size": 4, "rescore": 5}
    settings |= {"train": "head"} if name in ("finetune", "lwf") else {}
    stream = toy_stream("text", tasks=2, per_class=6)

    def build():
        return methods.get(name)(backbones.load("tiny"), order=order, **settings)

    straight = session(build(), stream)
    straight.learn()
    if name == "aper":  # it trains on its first task only, so nothing can be stopped inside the second
        assert len(straight.method.curriculum.bands) == len(stream[0].train)
        return
    assert stop_in_second_task(session(build(), stream, tmp_path), "step")
    resumed = session(build(), stream, tmp_path)
    resumed.restore()
    assert resumed.step % 5 != 0, "in the middle between two scorings"
    resumed.learn()
    here, there = snapshot(straight.method), snapshot(resumed.method)
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    assert len(straight.method.curriculum.bands)


TOLD = [
    ("finetune", {"train": "lora"}), ("lwf", {"strength": 0.0}), ("lae", {}), ("slca", {}), ("task_adapters", {}),
    ("extra_layers", {"strength": 0.0}), ("esn", {"strength": 0.0, "length": 2}), ("coda_prompt", {"components": 2}),
    ("dual_prompt", {"pull": 0.0}), ("dap", {"pull": 0.0}), ("l2p", {"pull": 0.0, "diversify": "mask", "selected": 2}),
    ("retrieval_augmented", {"neighbours": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), TOLD)
def test_bands_are_told_by_the_scores_that_training_compares_with_the_labels(name: str, settings: dict) -> None:
    stream = toy_stream(tasks=2)
    method = methods.get(name)(backbones.load("tiny"), epochs=2, batch_size=8, **settings)
    for task in stream:
        learn(method, task)
    batch = stream[1].train
    told = method.current_scores(batch.inputs)
    classes = stream[1].classes if method.masked else None
    assert torch.allclose(cross_entropy(told, batch.labels, classes), method.losses(batch), atol=1e-4)


def test_for_rankings_the_bands_choose_negatives(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("datasets")
    stream = toy_stream("text", goal="ranking", kind="domain-incremental", tasks=2, per_class=6)
    task = stream.tasks[0].for_learning()
    for order, wanted in (("easy first", (0, 1, 1)), ("hard first", (1, 1, 0)), ("mixed", (2, 2, 2))):
        method = methods.get("finetune")(backbones.load("tiny"), order=order, **SETTINGS)
        method.begin_task(task.sealed())
        batches = method.batches(task)
        thirds = []
        for step in range(len(batches)):
            batch = batches[step]
            most = max(len(own) for own in batch.negatives)
            assert all(positive not in own for positive, own in zip(batch.positives, batch.negatives, strict=True))
            thirds.append((3 * step // len(batches), most))
        assert tuple(max(most for third, most in thirds if third == k) for k in range(3)) == wanted, order
        assert list(batch.ids) == list(methods.get("finetune")(backbones.load("tiny"), **SETTINGS)
                                       .shuffled(task.train, task)[step].ids), "the queries stay shuffled"  # fmt: skip


def test_orders_that_cannot_be_are_one_line() -> None:
    with pytest.raises(EverlearnError, match=r"method\.order: 'easy' is not of type"):
        methods.get("er")(backbones.load("tiny"), order="easy")
    with pytest.raises(EverlearnError, match=r"unknown setting of the method"):
        methods.get("simplecil")(backbones.load("tiny"), order="easy first")
    method = methods.get("finetune")(backbones.load("tiny"), order="easy first", train="head")
    with pytest.raises(EverlearnError, match=r"method\.order: an online stream shows each example once"):
        learn(method, toy_stream("text", kind="online", tasks=2, per_class=6).tasks[0])
    curriculum = Curriculum("easy first", 5)
    with pytest.raises(EverlearnError, match="bands of examples"):
        curriculum.check_saved({"bands": torch.tensor([7])})
