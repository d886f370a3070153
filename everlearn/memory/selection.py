"""Counts which prompts the examples of each task select. The counts show whether a prompt pool has collapsed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from everlearn.errors import EverlearnWarning
from everlearn.state import Stateful, check_saved

SHOWN = 12  # the report's histogram of a task shows at most this many prompts


class Selection(Stateful):
    """Counts of selected prompts, one row per task, and how far the prompt keys moved while the task was learned.

    >>> chosen = Selection()
    >>> chosen.record(torch.tensor([[0, 1], [0, 1], [0, 2]]), torch.eye(4))
    >>> chosen.counts.tolist(), round(chosen.effective(chosen.counts[0]), 2)
    ([[3, 2, 1, 0]], 2.75)
    """

    counts: Tensor
    keys: Tensor
    drift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(0, 0, dtype=torch.long))
        self.register_buffer("keys", torch.zeros(0, 0))
        self.register_buffer("drift", torch.zeros(0))

    def check_saved(self, saved: dict[str, Tensor]) -> None:
        """As every module, and the counts are of as many tasks as the drifts and of as many prompts as the keys."""
        super().check_saved(saved)
        tasks, prompts = len(saved.get("drift", self.drift)), len(saved.get("keys", self.keys))
        check_saved("counts", saved.get("counts", self.counts), self.counts, (tasks, prompts))

    def record(self, chosen: Tensor, keys: Tensor) -> None:
        """Count the prompts that the training examples of a task select after it is learned.

        Args:
            chosen: (n, prompts per example) indices of prompts.
            keys: (prompts, width) the current keys of all prompts.

        Warns:
            EverlearnWarning: the selection has collapsed to a few of many prompts.
        """
        counted = torch.bincount(chosen.flatten(), minlength=len(keys)).to(self.counts)
        self.counts = torch.nn.functional.pad(self.counts, (0, len(keys) - self.counts.shape[1]))
        self.counts = torch.cat([self.counts, counted[None]])
        now, old = keys.detach().to(self.keys, copy=True), min(len(self.keys), len(keys))
        moved = self.drift.new_zeros(1)
        if old:
            moved = 1 - torch.nn.functional.cosine_similarity(self.keys[:old], now[:old], dim=1).mean()[None]
        self.drift, self.keys = torch.cat([self.drift, moved]), now
        effective, tasks = self.effective(self.counts.sum(0)), len(self.counts)
        if tasks > 1 and effective < 1.5 * chosen.shape[1] and len(keys) >= 2 * chosen.shape[1]:
            warnings.warn(
                f"prompt selection has collapsed: after {tasks} tasks, only {effective:.1f} of {len(keys)} prompts are "
                "in use (the exponential of the entropy of the selection)", EverlearnWarning, stacklevel=2,
            )  # fmt: skip

    def frequencies(self) -> Tensor:
        """The share of all selections so far that went to each prompt, of shape (prompts,)."""
        total = self.counts.sum(0)
        return total / total.sum().clamp(min=1)

    def own(self, chosen: Tensor, task: int) -> float:
        """The share of the selections `chosen` (n, prompts per example) that went to the task's own prompts. These are
        the prompts that its training examples selected with a higher frequency than those of any other task.

        >>> chosen = Selection()
        >>> for index in (0, 1):
        ...     chosen.record(torch.tensor([[index], [2]]), torch.eye(3))
        >>> chosen.own(torch.tensor([[1], [1], [0]]), task=1)
        0.6666666666666666
        """
        share = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        return (share.argmax(0)[chosen.cpu()] == task).double().mean().item()

    @staticmethod
    def effective(counts: Tensor) -> float:
        """The effective number of prompts in use: the exponential of the entropy of `counts`, (prompts,)."""
        share = counts[counts > 0] / counts.sum()
        return float((-(share * share.log()).sum()).exp())

    @staticmethod
    def _largest(counts: Tensor) -> list[int]:
        """The most frequently selected prompts, as many as the report shows."""
        return [i for i in counts.topk(min(SHOWN, len(counts))).indices.tolist() if counts[i]]

    def diagnostics(self) -> dict[str, Any]:
        """For the report: the histogram and entropy of the selections and the drift of the keys, per task."""
        told: dict[str, Any] = {}
        for t, counts in enumerate(self.counts):
            told[f"task {t + 1}"] = {
                "histogram": {f"prompt {i + 1}": int(counts[i]) for i in sorted(self._largest(counts))},
                "entropy of the choices (nats)": round(float(torch.tensor(self.effective(counts)).log()), 4),
                "prompts in use": round(self.effective(counts), 2),
                "drift of the keys (1 - cosine)": round(float(self.drift[t]), 4),
            }
        return told
