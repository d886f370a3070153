"""Stages: one small classifier per task on the states of a frozen encoder, and the vote that chooses among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from everlearn.heads.linear import Linear


def attention_heads(width: int) -> int:
    """Into how many heads an attention layer of this width is divided: of 64 numbers each, or of as few more as make
    them equal.

    >>> attention_heads(384), attention_heads(200), attention_heads(32)
    (6, 2, 1)
    """
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


class ClassAttention(nn.Module):
    """A token of its own reads the states of all other tokens and becomes the feature.

    Touvron, Cord, Sablayrolles, Synnaeve & Jégou, "Going deeper with Image Transformers", ICCV 2021,
    https://arxiv.org/abs/2103.17239: a transformer block in which one token alone asks, so that its cost grows with the
    number of tokens and not with its square.

    Args:
        width: size of a state.

    >>> states, mask = torch.zeros(3, 5, 8), torch.ones(3, 5)
    >>> tuple(ClassAttention(8)(states, mask).shape)
    (3, 8)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, attention_heads(width), batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (n, tokens, width) with their mask (n, tokens), 0 for padding -> features (n, width)."""
        read = self.before(torch.cat([self.token.expand(len(states), 1, -1), states], dim=1))
        padding = nn.functional.pad(mask == 0, (1, 0), value=False)
        # The token asks the same question of every input. So the projection of the keys is applied to the question, and
        # that of the values to the mean of what was read, instead of both to every state. An offset of the keys would
        # add the same to all scores, and changes nothing.
        attention, heads = self.attention, self.attention.num_heads
        query, key, value = (part.unflatten(0, (heads, -1)) for part in attention.in_proj_weight.chunk(3))
        query_offset, _, value_offset = (part.unflatten(0, (heads, -1)) for part in attention.in_proj_bias.chunk(3))
        question = (query @ self.before(self.token) + query_offset) / key.shape[1] ** 0.5
        scores = read @ torch.einsum("hs,hsw->wh", question, key)
        weights = scores.masked_fill(padding[:, :, None], -torch.inf).softmax(1)
        means = torch.einsum("nth,ntw->nhw", weights, read)
        found = torch.einsum("nhw,hsw->nhs", means, value) + value_offset
        feature = self.token + attention.out_proj(found.flatten(1))
        return feature + self.mlp(self.between(feature))


class Stage(nn.Module):
    """The classifier of one task: class attention and a linear head over the classes of the task.

    Args:
        width: size of a state.
        classes: the labels of the task.

    >>> tuple(Stage(8, [3, 4, 5])(torch.zeros(2, 5, 8), torch.ones(2, 5)).shape)
    (2, 3)
    """

    def __init__(self, width: int, classes: Sequence[int]) -> None:
        super().__init__()
        self.classes = sorted(classes)
        self.attention, self.head = ClassAttention(width), Linear(width)
        self.head.grow(len(self.classes))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (n, tokens, width) with their mask (n, tokens) -> scores (n, classes of the task)."""
        return self.head(self.attention(states, mask))


class Stages(nn.ModuleList):
    """The stages of all tasks. Only the newest is trained; the older ones never change.

    Args:
        width: size of a state.

    >>> head = Stages(8)
    >>> head.add([0, 1])
    >>> head.add([2])
    >>> head(torch.zeros(1, 5, 8), torch.ones(1, 5)).isfinite().tolist()
    [[[True, True, False], [False, False, True]]]
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def add(self, classes: Sequence[int]) -> None:
        """Freeze the stages that are there, and have a new one for these labels."""
        self.requires_grad_(False)
        self.append(Stage(self.width, classes))

    def __iter__(self) -> Iterator[Stage]:  # type: ignore[override]
        return super().__iter__()  # type: ignore[return-value]

    @property
    def classes(self) -> int:
        """How many classes they score together."""
        return 1 + max(label for stage in self for label in stage.classes)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (n, tokens, width) with their mask (n, tokens) -> scores (n, stages, classes), -inf where a stage does
        not know a class. Several stages may know one: in each domain of a stream, say."""
        scores = states.new_full((len(states), len(self), self.classes), -torch.inf)
        for number, stage in enumerate(self):
            scores[:, number, stage.classes] = stage(states, mask)
        return scores


def chosen_stage(scores: Tensor, temperature: float) -> Tensor:
    """(n,): the stage of the lowest energy -T · logsumexp(z / T) at this temperature T.

    Args:
        scores: (n, stages, classes), -inf where a stage does not know a class.

    >>> scores = torch.tensor([[[4.0, -torch.inf], [3.9, 3.9]]])
    >>> chosen_stage(scores, 0.01).tolist(), chosen_stage(scores, 1.0).tolist()
    ([0], [1])
    """
    return (scores / temperature).logsumexp(2).argmax(1)


def vote(scores: Tensor, temperatures: Tensor) -> Tensor:
    """(n,): the stage that most temperatures choose. Of stages with equally many votes, the one of the lowest energy
    at temperature 1.

    Args:
        scores: (n, stages, classes), -inf where a stage does not know a class.
        temperatures: (t,); each of them has one vote.

    >>> scores = torch.tensor([[[4.0, -torch.inf], [3.9, 3.9]]])
    >>> vote(scores, torch.tensor([0.01, 0.02, 1.0])).tolist()
    [0]
    """
    votes = torch.zeros_like(scores[:, :, 0])
    for temperature in temperatures.tolist():
        chosen = chosen_stage(scores, temperature)[:, None]
        votes.scatter_add_(1, chosen, torch.ones_like(votes[:, :1]))
    return (votes + scores.logsumexp(2).softmax(1) / 2).argmax(1)  # what is added never outweighs a vote


def lifted(scores: Tensor, stages: Tensor) -> Tensor:
    """(n, classes): the scores of the chosen stage. Classes that it does not know have their best score from the other
    stages, all lowered together until the best of them lies 1 below the chosen stage's best.

    Args:
        scores: (n, stages, classes), -inf where a stage does not know a class.
        stages: (n,), the chosen ones.

    >>> scores = torch.tensor([[[4.0, 2.0, -torch.inf], [-torch.inf, -torch.inf, 9.0]]])
    >>> lifted(scores, torch.tensor([0])).tolist(), lifted(scores, torch.tensor([1])).tolist()
    ([[4.0, 2.0, 3.0]], [[4.0, 2.0, 9.0]])
    """
    own = scores[torch.arange(len(scores), device=scores.device), stages]
    is_known = own.isfinite()
    others = scores.amax(1).masked_fill(is_known, -torch.inf)
    above = (others.amax(1) - own.amax(1) + 1).clamp(min=0)
    return torch.where(is_known, own, others - above[:, None])
