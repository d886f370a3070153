"""Curriculum: easy, medium and hard examples, by what the model confuses at present, and the order to learn them in.

The idea of an order from easy to hard is that of Bengio, Louradour, Collobert & Weston (ICML 2009,
https://doi.org/10.1145/1553374.1553380): the examples drawn are first the easy ones only, later more, and at last all.
The reverse is the control, as in Wu, Dyer & Neyshabur (ICLR 2021, https://arxiv.org/abs/2012.03107), who find that the
order seldom matters where there is time enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from everlearn.batches import Batches
from everlearn.errors import EverlearnError
from everlearn.losses import within
from everlearn.seeds import derived_seed
from everlearn.state import Stateful, check_saved
from everlearn.streams.inputs import Input
from everlearn.streams.stream import Task

Order = Literal["shuffled", "easy first", "hard first", "mixed"]

EASY, MEDIUM, HARD = range(3)
CONFIDENT = 0.5
"""τ: from this probability on, the model takes a class for the right one."""
DOUBTFUL = 0.1
"""τm: from this probability of a wrong class on, a right answer is not easy."""
REPEATS = 4
"""An example is drawn at most so many times before the bands are told anew or a third begins, if there are enough
examples in all."""
RANKS = {EASY: slice(0), MEDIUM: slice(5, 30), HARD: slice(5)}
"""Where the goal is ranking: places among the documents that are nearest to a query, without likely answers."""


def bands(scores: Tensor, labels: Tensor, confident: float = CONFIDENT, doubtful: float = DOUBTFUL) -> Tensor:
    """(n,) EASY, MEDIUM or HARD: how much the model confuses each example with a wrong class.

    With p the probability of the likeliest wrong class:

    - hard: p is at least `confident`, or the right class is not likelier than it. The first are confident false
      positives. The second are false negatives, which the source of these bands leaves out and which have to be
      somewhere: the right class is not found.
    - medium: the right class is the likeliest one, and `doubtful` <= p < `confident`.
    - easy: the rest.

    Args:
        scores: (n, classes), -inf for a class that is ruled out. labels: (n,).

    >>> scores = torch.tensor([[0.05, 0.9, 0.05], [0.3, 0.36, 0.34], [0.6, 0.3, 0.1], [0.94, 0.03, 0.03]]).log()
    >>> bands(scores, torch.tensor([0, 0, 0, 0])).tolist()  # false positive, false negative, doubtful, right
    [2, 2, 1, 0]
    """
    right = labels.to(scores.device)[:, None]
    probabilities = scores.float().softmax(1)
    wrong = probabilities.scatter(1, right, 0.0).max(1).values
    found = torch.full_like(wrong, EASY, dtype=torch.long)
    found[wrong >= doubtful] = MEDIUM
    found[(wrong >= confident) | (wrong >= probabilities.gather(1, right)[:, 0])] = HARD
    return found.cpu()


class Curriculum(Stateful):
    """The bands of the examples of the current task, told anew every so many steps, and the batches drawn from them.

    The steps are cut into thirds. "easy first" draws from the easy examples, then from the easy and medium ones, then
    from all; "hard first" from the hard ones, then from the hard and medium ones, then from all; "mixed" equally often
    from each band that has examples, all the time. Until the bands are told anew or a third begins, no example is drawn
    more than REPEATS times, so that a band of few is not learned by heart: where a third has too few examples, the next
    band joins it, and in a mix the others take more. The number of steps, and of examples in a step, is the same in
    every order.

    Where the goal is ranking, the queries stay shuffled, and the bands are those of their negatives
    (`everlearn.retrieval.negatives.near`): easy is the rest of the batch, which is always there; medium and hard
    add one mined document to each query, and mixed adds one of each. A third has one band.

    The bands are state, so a run that is resumed draws the same batches.

    Args:
        order: which. rescore: steps after which the bands are told anew, which costs a pass over the examples.

    >>> curriculum = Curriculum("easy first", 10)
    >>> curriculum.bands = torch.tensor([EASY, HARD, EASY, MEDIUM])
    >>> [curriculum.stage(step, 30) for step in (0, 10, 29)], curriculum.allowed(1, 2).tolist()
    ([0, 1, 2], [0, 2, 3])
    """

    bands: Tensor
    negatives: Tensor

    def __init__(self, order: Order, rescore: int) -> None:
        super().__init__()
        self.order, self.rescore = order, rescore
        self.register_buffer("bands", torch.empty(0, dtype=torch.long))
        self.register_buffer("negatives", torch.empty(0, 0, dtype=torch.long))  # per query, rows of documents, or -1

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        super().check_saved(saved)
        found = saved.get("bands", self.bands)
        check_saved("bands", found, self.bands, (*found.shape,))
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) <= HARD:
            raise EverlearnError("the checkpoint is damaged: bands of examples are not easy, medium or hard")

    def ordered(self, batches: Batches, method: Learner) -> Batches:
        """As many batches of the same examples, in the order of this curriculum."""
        ranks = batches.examples.positives is not None
        return (OrderedNegatives if ranks else OrderedExamples)(self, batches, method)

    def stage(self, step: int, steps: int) -> int:
        """Which third of the steps it is: 0, 1 or 2."""
        return 3 * step // steps

    def allowed(self, stage: int, least: int) -> Tensor:
        """The rows (m,) that a stage draws from, at least `least` where there are as many."""
        sequence = (EASY, MEDIUM, HARD) if self.order == "easy first" else (HARD, MEDIUM, EASY)
        while True:
            rows = torch.isin(self.bands, torch.tensor(sequence[: stage + 1])).nonzero()[:, 0]
            if len(rows) >= least or stage == 2:
                return rows
            stage += 1


class Learner(Protocol):
    """What is asked of a method."""

    masked: ClassVar[bool]
    task: Task

    def current_scores(self, inputs: Sequence[Input]) -> Tensor:
        """(n, classes)."""

    def eval(self) -> Any:
        """Be as for answers."""

    def train(self, mode: bool = True) -> Any:
        """Be as in training."""


class OrderedExamples(Batches):
    """Batches of examples in the order of a curriculum. They are asked for in order, as training does: number k has
    the bands told where k was last a multiple of `rescore`, by the method as it was then."""

    def __init__(self, curriculum: Curriculum, batches: Batches, method: Learner) -> None:
        self.__dict__ |= batches.__dict__
        self.curriculum, self.method = curriculum, method
        self.size = min(self.size, len(self.examples))
        self._drawn: tuple[tuple[int, int], Tensor] = ((-1, -1), torch.empty(0))

    def rows(self, index: int) -> Tensor:
        curriculum = self.curriculum
        position = index % curriculum.rescore
        if position == 0:
            curriculum.bands = self.told()
        key = index - position, curriculum.stage(index, len(self))
        if self._drawn[0] != key:
            self._drawn = key, self._draw(*key)
        return self._drawn[1][position * self.size : (position + 1) * self.size]

    def told(self) -> Tensor:
        """The bands (n,) of all examples for the method as it is."""
        method = self.method
        method.eval()
        with torch.no_grad():
            scores = method.current_scores(self.examples.inputs)
        method.train()
        return bands(within(scores, method.task.classes) if method.masked else scores, self.examples.labels)

    def _draw(self, start: int, stage: int) -> Tensor:
        """The rows of all batches from `start` until the bands are told anew."""
        curriculum, count = self.curriculum, self.size * self.curriculum.rescore
        generator = torch.Generator().manual_seed(derived_seed(self.seed, start, stage))
        if curriculum.order == "mixed":
            bands = [(curriculum.bands == band).nonzero()[:, 0] for band in (EASY, MEDIUM, HARD)]
            parts = _shares([len(rows) for rows in bands], count)
            drawn = torch.cat([_repeated(rows, share, generator) for rows, share in zip(bands, parts, strict=True)])
            drawn = drawn[torch.randperm(len(drawn), generator=generator)]
        else:
            drawn = _repeated(curriculum.allowed(stage, -(-count // REPEATS)), count, generator)
        return self.by_length(drawn, generator)


class OrderedNegatives(Batches):
    """Shuffled batches of queries, whose negatives follow the order of a curriculum."""

    def __init__(self, curriculum: Curriculum, batches: Batches, method: Any) -> None:
        self.__dict__ |= batches.__dict__
        self.curriculum, self.method = curriculum, method
        self.documents = list(dict.fromkeys(self.examples.positives or ()))

    def __getitem__(self, index: Any) -> Any:
        from everlearn.retrieval.negatives import near

        batch = super().__getitem__(index)
        curriculum = self.curriculum
        if index % curriculum.rescore == 0:
            self.method.eval()
            curriculum.negatives = near(self.method, self.examples, self.documents)
            self.method.train()
        stage = curriculum.stage(index, len(self))
        wanted = {"easy first": [stage], "hard first": [HARD - stage], "mixed": [MEDIUM, HARD]}[curriculum.order]
        generator = torch.Generator().manual_seed(derived_seed(self.seed, index, 1))
        rows = curriculum.negatives[self.rows(index)]
        own = [list(given) for given in batch.negatives or [()] * len(batch)]
        for band in wanted:
            for query, candidates in enumerate(rows[:, RANKS[band]]):
                found = candidates[candidates >= 0]
                if len(found):
                    document = found[torch.randint(len(found), (1,), generator=generator)]
                    own[query].append(self.documents[int(document)])
        return replace(batch, negatives=own)


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` examples are drawn from bands of these sizes: equally many from each, unless one has too few,
    whose rest the others take."""
    shares, left = [0] * len(sizes), count
    for done, band in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        is_last = done == len(sizes) - 1  # the largest takes what is left, however few it has
        shares[band] = left if is_last else min(left // (len(sizes) - done), REPEATS * sizes[band])
        left -= shares[band]
    return shares


def _repeated(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the rows: all of them shuffled, then all of them again."""
    times = -(-count // len(rows)) if count else 0
    return torch.cat([rows[:0], *(rows[torch.randperm(len(rows), generator=generator)] for _ in range(times))])[:count]
