"""Probabilities: they tell how often an answer is right, they cost no accuracy, and test data has no part in them."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import everlearn
from everlearn import backbones, calibration, methods, report
from everlearn.engine import learn
from everlearn.interrupts import Interrupted
from everlearn.protocol import resume, run
from everlearn.session import Session
from everlearn.streams.stream import Examples
from everlearn.testing.toy import toy_stream

DIGITS = {"name": "digits", "tasks": 5, "max_train_per_class": 60}
RIDGE = {"name": "ranpac", "width": 300, "first_session": False}


def error_by_definition(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Guo et al. (2017), equation 5, word for word."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_the_calibration_error_is_the_published_one() -> None:
    torch.manual_seed(0)
    for sharpness in (0.1, 1.0, 9.0):
        probabilities = (sharpness * torch.randn(3000, 7)).double().softmax(1)
        labels = torch.randint(0, 7, (3000,))
        bins = calibration.reliability(probabilities, labels)
        expected = error_by_definition(probabilities.numpy(), labels.numpy())
        assert calibration.expected_calibration_error(bins) == pytest.approx(expected, abs=1e-5)
        assert sum(bin["examples"] for bin in bins) == 3000


def test_a_temperature_is_above_0_also_where_all_answers_are_right() -> None:
    scores = torch.eye(4).repeat(5, 1)
    sharp = calibration.temperature(scores, torch.arange(4).repeat(5))
    assert 0 < sharp < 1 and float(calibration.probabilities(scores, sharp).max()) < 0.999
    with_lowest = torch.cat([scores, torch.full((20, 1), torch.finfo(torch.float32).min)], 1)  # a class not learned
    assert calibration.temperature(with_lowest, torch.arange(4).repeat(5)) == pytest.approx(sharp)
    assert calibration.temperature(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)) == 1  # scores that say nothing
    assert calibration.temperature(torch.ones(3, 1), torch.zeros(3, dtype=torch.long)) == 1  # a single class


# Features of a random encoder, whose cosines hardly differ: 50 examples a fit leave some error.
@pytest.mark.parametrize("method, most", [(RIDGE, 0.05), ({"name": "klda", "rff": 200}, 0.05), ("fecam", 0.1)])
def test_the_probabilities_of_a_run_tell_how_often_it_is_right(method: object, most: float, tmp_path: Path) -> None:
    result = run(method, DIGITS, backbone="tiny", out=tmp_path / "run")
    found = result.calibration
    assert found["expected_calibration_error"] < most < found["without_temperature"]  # with a plain softmax
    model = everlearn.load(tmp_path / "run")
    assert model.temperature == found["temperature"]
    stream = everlearn.streams.load(**DIGITS)
    test = Examples.concatenate([task.test for task in stream])
    own = error_by_definition(model.predict_proba(test.inputs), test.labels.numpy())
    assert own == pytest.approx(found["expected_calibration_error"], abs=1e-4)
    scores = model.method.predict(test.inputs)
    assert np.allclose(model.predict_proba(test.inputs), (scores.double() / model.temperature).softmax(1).cpu().numpy())
    assert model.predict(test.inputs) == [model.class_names[k] for k in scores.argmax(1).tolist()]


def test_a_method_that_forgets_exactly_learns_everything_and_is_calibrated_as_if_it_had_not() -> None:
    stream = toy_stream(per_class=20)
    for name, settings in (("simplecil", {}), ("lda", {}), ("ranpac", {"width": 100, "first_session": False})):
        taught, left_out = (methods.get(name)(backbones.load("tiny"), **settings) for _ in range(2))
        held = []
        for task in stream:
            chosen = calibration.held_out_of(taught, task)
            assert len(chosen) == 8  # a fifth of 20 for each of two classes
            rows = [row for row, id in enumerate(task.train.ids) if id not in chosen.ids]
            learn(taught, task)
            learn(left_out, replace(task, examples={"train": task.train[rows]}))
            held.append(chosen)
        examples = Examples.concatenate(held)
        before = {key: value.clone() for key, value in taught.state_dict().items()}
        expected = calibration.temperature(calibration.scores_of(left_out, examples.inputs), examples.labels)
        assert calibration.fitted_temperature(taught, examples) == pytest.approx(expected, rel=1e-3)
        assert all(torch.equal(value, before[key]) for key, value in taught.state_dict().items())  # to the bit


def test_other_methods_learn_everything_and_are_calibrated_on_validation_examples_or_not_at_all() -> None:
    method, stream = methods.get("joint")(backbones.load("tiny"), epochs=1), toy_stream()
    result = run(method, stream)
    assert set(method.memory.examples().ids) == {id for task in stream for id in task.train.ids}
    assert result.calibration["temperature"] is None and result.calibration["fitted_on"] == 0
    validation = stream[0].train[range(0, 32, 2)]
    task = replace(stream[0], examples={**stream[0].examples, "validation": validation})
    chosen = calibration.held_out_of(method, task)
    assert chosen.labels.tolist() == [0, 1] and set(chosen.ids) <= set(validation.ids)
    assert chosen.ids == calibration.held_out_of(method, task).ids


def test_classes_that_a_model_rules_out_stay_out() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(3000, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    padded = torch.cat([5 * logits, torch.full((3000, 3), -torch.inf)], 1)
    fitted = calibration.temperature(padded, labels)
    assert fitted == pytest.approx(calibration.temperature(5 * logits, labels)) == pytest.approx(5, rel=0.05)
    assert calibration.probabilities(padded, fitted)[:, 4:].sum() == 0
    labels[:300] = 5  # ruled out wrongly: the model was too sure
    assert fitted * 1.2 < calibration.temperature(padded, labels) < 10 * fitted
    assert calibration.temperature(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0])) == 1


def test_rankings_have_no_probabilities() -> None:
    result = run(methods.get("finetune")(backbones.load("tiny"), epochs=1), toy_stream(goal="ranking"))
    assert result.calibration is None


def test_a_resumed_run_has_the_same_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"name": "er", "train": "head", "epochs": 1}
    whole = run(settings, DIGITS, backbone="tiny", out=tmp_path / "whole", save_steps=3)

    def stop(self: Session, *args: object) -> None:
        if self.task_index == 2:
            raise Interrupted("killed")

    monkeypatch.setattr(Session, "_stop_if_asked", stop)
    with pytest.raises(Interrupted):
        run(settings, DIGITS, backbone="tiny", out=tmp_path / "killed", save_steps=3)
    assert everlearn.load(tmp_path / "killed").temperature is None  # it is fitted at the end
    monkeypatch.undo()
    assert resume(tmp_path / "killed").calibration == whole.calibration
    # Killed after the last checkpoint, before the results.
    (tmp_path / "killed" / "results.json").unlink()
    assert resume(tmp_path / "killed").calibration == whole.calibration
    assert everlearn.load(tmp_path / "killed").temperature == whole.calibration["temperature"]


def test_the_report_shows_the_error_and_the_diagram() -> None:
    result = run("simplecil", DIGITS, backbone="tiny")
    page = report.render([result.results])
    text = re.sub(r"<[^>]*>", "", page)
    assert f"Expected calibration error: {100 * result.calibration['expected_calibration_error']:.1f} %" in text
    diagram = page.split('id="fig-reliability"')[1].split("</figure>")[0]
    assert diagram.count("<rect") - 1 == sum(bin["examples"] > 0 for bin in result.calibration["bins"])  # and a key
