"""Scores of each class and confusions, beside those of scikit-learn."""

from __future__ import annotations

import json
import random

import pytest
from sklearn import metrics as reference

from everlearn.metrics import FORMULAS
from everlearn.metrics.per_class import LARGEST_MATRIX, MOST_PAIRS, confusion, per_class, worst


def drawn(classes: int, examples: int = 2000) -> tuple[list[str], list[int], list[int]]:
    draw = random.Random(classes)
    truth = [draw.randrange(classes) for _ in range(examples)]
    predicted = [k if draw.random() < 0.7 else draw.randrange(classes) for k in truth]
    return [f"class {k}" for k in range(classes)], truth, predicted


@pytest.mark.parametrize("classes", [2, 9, 150])
def test_scores_are_those_of_scikit_learn(classes):
    names, truth, predicted = drawn(classes)
    found = per_class(names, truth, predicted)
    wanted = reference.precision_recall_fscore_support(truth, predicted, labels=range(classes))
    for name, column in zip(("precision", "recall", "f1", "examples"), wanted, strict=True):
        assert [score[name] for score in found] == pytest.approx(list(column)), name
    assert [score["name"] for score in found] == names


def test_confusions_are_those_of_scikit_learn():
    names, truth, predicted = drawn(9)
    found, wanted = confusion(names, truth, predicted), reference.confusion_matrix(truth, predicted)
    assert found["matrix"] == wanted.tolist()
    assert len(found["pairs"]) == MOST_PAIRS
    counts = [pair["examples"] for pair in found["pairs"]]
    assert counts == sorted((wanted[i][j] for i in range(9) for j in range(9) if i != j), reverse=True)[:MOST_PAIRS]
    for pair in found["pairs"]:
        assert wanted[names.index(pair["true"])][names.index(pair["predicted"])] == pair["examples"]
    for k, score in enumerate(per_class(names, truth, predicted)):
        others = {names[j]: wanted[k][j] for j in range(9) if j != k}
        assert others[score["confused_with"]] == max(others.values())


def test_what_is_not_defined_is_none():
    scores = per_class(["never", "unseen", "right"], [0, 2], [2, 2])
    never, unseen, _ = scores
    assert (never["precision"], never["recall"], never["f1"]) == (None, 0.0, 0.0)
    assert (unseen["precision"], unseen["recall"], unseen["f1"], unseen["confused_with"]) == (None, None, None, None)
    assert [score["name"] for score in worst(scores)] == ["never", "right"]


def test_many_classes_stay_small():
    names, truth, predicted = drawn(1000, 20_000)
    found = {"per_class": per_class(names, truth, predicted), "confusion": confusion(names, truth, predicted)}
    assert found["confusion"]["matrix"] is None and len(found["confusion"]["pairs"]) == MOST_PAIRS
    assert len(json.dumps(found, indent=1)) < 300_000
    assert confusion(*drawn(LARGEST_MATRIX))["matrix"] is not None


def test_every_score_has_its_formula():
    assert {"precision", "recall", "f1"} <= FORMULAS.keys()
