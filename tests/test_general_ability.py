"""The quality of embeddings on a task that is not learned yet: its definition, and where it is shown."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import everlearn
from everlearn import backbones, general_ability, methods
from everlearn.general_ability import GeneralAbility, leave_one_out
from everlearn.run_table import final_table
from everlearn.testing import toy_stream


def by_hand(features: torch.Tensor, labels: torch.Tensor) -> float:
    """`leave_one_out` as its docstring says it, one example after the other."""
    units = normalize(features, dim=1)
    rows = [row for row in range(len(labels)) if (labels == labels[row]).sum() > 1]
    right = 0
    for row in rows:
        others = [other for other in rows if other != row]
        means = {
            int(label): units[[o for o in others if labels[o] == label]].mean(0) for label in labels[others].unique()
        }
        right += max(means, key=lambda label: float(units[row] @ normalize(means[label], dim=0))) == int(labels[row])
    return right / len(rows)


@pytest.mark.parametrize("seed", range(5))
def test_each_example_is_left_out_of_the_mean_of_its_class(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (40,), generator=random) * 3
    features = torch.randn(40, 5, generator=random) + 0.3 * labels[:, None] * torch.eye(6, 5)[labels // 3]
    assert leave_one_out(features, labels) == pytest.approx(by_hand(features, labels))
    assert leave_one_out(features, torch.arange(40)) is None


def test_a_frozen_encoder_keeps_all_and_a_ruined_one_does_not() -> None:
    frozen = everlearn.run("lda", toy_stream(), backbone="tiny").results["general"]
    assert frozen["kept"] == 1.0 and frozen["now"] == [frozen["untouched"]] * 2 + [None]
    ruined = everlearn.run({"name": "finetune", "lr": 0.3, "epochs": 2}, toy_stream(), backbone="tiny").results
    assert ruined["general"]["kept"] < 0.8 and ruined["general"]["now"][-1] is None


def test_a_single_task_and_rankings_are_not_asked() -> None:
    assert everlearn.run("lda", toy_stream(tasks=1), backbone="tiny").results["general"] is None
    section = {"name": "finetune", "epochs": 1}
    assert everlearn.run(section, toy_stream(goal="ranking"), backbone="tiny").results["general"] is None


def test_a_large_test_set_is_asked_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = toy_stream(tasks=2)
    monkeypatch.setattr(general_ability, "MOST", 5)
    asked = GeneralAbility(stream, methods.get("frozen")(backbones.load("tiny"))).examples.ids
    every = list(stream[-1].test.ids)
    assert len(asked) == 5 < len(every) and (asked[0], asked[-1]) == (every[0], every[-1])
    places = [every.index(name) for name in asked]
    assert max(b - a for a, b in pairwise(places)) <= len(every) / 4 + 1


def test_it_is_shown_on_the_terminal_and_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = {"name": "finetune", "lr": 0.3, "epochs": 2}
    result = everlearn.run(section, {"name": "digits", "tasks": 2, "max_train_per_class": 10}, backbone="tiny",
                           out=tmp_path / "run")  # fmt: skip
    final_table(result.results, result.directory)
    shown = " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "run" / "results.json").read_text())["general"]
    assert f"the embeddings tell {100 * found['now'][0]:.1f} % of the examples apart" in shown
    assert "General ability" in (tmp_path / "run" / "report.html").read_text()
